"""Class weights, logit priors, and the weighted, gated cross-entropy of a global batch.

The loss of a global batch is Σ wᵢ·keepᵢ·ceᵢ / D with D the global weight of all its samples or of the kept ones, so
that the gradient does not depend on how many ranks share the batch (law 8). Gathering D is the business of `step`.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ClassWeights = Literal["none", "inverse", "sqrt", "effective", "file"]
LogitPrior = Literal["none", "adjusted", "balanced_softmax"]

_EFFECTIVE_BETA = 0.999
"""β of the effective number of samples; with exposures of 10 … 10,000 the weights then span a factor of about 100."""
_UNSEEN_SHOWS = 0.5
"""A class that is never shown counts as shown so often in a prior, whose logarithm must be finite."""


def class_weights(
    kind: ClassWeights, exposure: NDArray[np.float64], given: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Weight of each class, (K,) float32, from its expected shows an epoch *after* sampling, (K,).

    none: 1. inverse: 1/E. sqrt: 1/√E. effective: (1−β)/(1−β^E), Cui et al., "Class-Balanced Loss Based on Effective
    Number of Samples", CVPR 2019. file: `given`, (K,). The mean over what is shown, ΣE·w/ΣE, is 1; a class that is
    never shown weighs 0.
    """
    shown = exposure > 0
    count = np.where(shown, exposure, 1.0)
    if kind == "none":
        weights = np.ones_like(count)
    elif kind == "inverse":
        weights = 1.0 / count
    elif kind == "sqrt":
        weights = 1.0 / np.sqrt(count)
    elif kind == "effective":
        weights = (1.0 - _EFFECTIVE_BETA) / -np.expm1(count * np.log(_EFFECTIVE_BETA))
    else:
        assert given is not None  # a recipe names the file
        weights = given
    weights = np.where(shown, weights, 0.0)
    total = float((exposure * weights).sum())
    if total > 0:
        weights = weights * (exposure.sum() / total)
    return weights.astype(np.float32)


def logit_prior(kind: LogitPrior, exposure: NDArray[np.float64], strength: float) -> NDArray[np.float32] | None:
    """What is added to the logits in the loss, (K,) float32, or None: strength · log(share of the exposure).

    adjusted: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, with τ = `strength`. balanced_softmax:
    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020: the same with 1. The exposure,
    (K,), is that after sampling. Predictions are made without it.
    """
    if kind == "none":
        return None
    count = np.where(exposure > 0, exposure, _UNSEEN_SHOWS)
    prior: NDArray[np.float64] = np.log(count / count.sum())
    return (prior * (strength if kind == "adjusted" else 1.0)).astype(np.float32)


def gated_loss(losses: Tensor, weights: Tensor, *, denominator: Tensor, world_size: int) -> Tensor:
    """This rank's share of the global batch's loss, a scalar to call `backward` on under DDP's averaging.

    losses: (n,) cross-entropy with gradient. weights: (n,), 0 where gated or invalid. denominator: () of the global
    batch, on the losses' device; 0 says that nothing is kept anywhere, which gives an exact zero that still has a
    gradient (of zeros), so that every rank takes part in the backward pass.
    """
    scale = (world_size / denominator).where(denominator > 0, 0.0)
    return (losses * (weights * scale).to(losses.dtype)).sum()
