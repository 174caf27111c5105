"""Weights of an ensemble: how they are written, and how they are fitted on one half of a validation set.

The ensemble's probability of a class is the weighted mean of its members' softmaxes. Fitting maximises the likelihood
of the labels under that mixture; only the label's probability under each member is needed, (n, M) numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_shards import key_hash

_HALF_SEED = 0x48414C46
"""Keeps this hash of the keys apart from the order of the shards."""
_MOST_ITERATIONS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Fitted weights, with proof of how good they are."""

    weights: NDArray[np.float64]
    """(M,) sum 1."""
    samples: int
    iterations: int
    mean_log_likelihood: float
    """Of a label under the mixture, in nats."""
    gap: float
    """No weights at all have a mean log-likelihood higher than this one's by more than the gap, in nats."""


def parse_member(text: str) -> tuple[Path, float | None]:
    """`RUN` or `RUN:WEIGHT`: what comes after the last colon is the weight if it is a number.

    Raises ValueError for a weight that is negative or not finite, and for none behind the colon of a run that is there.
    """
    path, colon, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        if colon and path and not Path(text).exists() and Path(path).exists():
            raise ValueError(f"expected RUN or RUN:WEIGHT, found {text!r}: {tail!r} is no number") from None
        return Path(text), None
    if not (colon and path):
        return Path(text), None
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"expected a weight of 0 or more behind the colon, found {text!r}")
    return Path(path), weight


def normalized(weights: Sequence[float | None]) -> NDArray[np.float64] | None:
    """Weights that sum to 1; None where none was given.

    Raises ValueError: only some are given, or all are 0.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return None
    if len(given) != len(weights):
        raise ValueError(f"expected a weight for every run or for none, found {len(given)} for {len(weights)} runs")
    if sum(given) <= 0:
        raise ValueError("expected a weight above 0 for at least one run, found only 0")
    return np.array(given) / sum(given)


def in_fitting_half(keys: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) whether a sample is one to fit on; the others are to test on.

    By a hash of the key alone, so that it is the same half for every model, machine and build of the set.
    """
    return np.array([key_hash(key, _HALF_SEED) & 1 for key in keys], dtype=np.bool_)


def mixture(log_probabilities: Tensor, weights: NDArray[np.float64]) -> Tensor:
    """log Σ w_m p_m: (M, n, K) → (n, K); `weights` (M,) sum to 1."""
    some = np.flatnonzero(weights)  # a weight of 0 takes no part: log 0 has no gradient, and no meaning
    logs = torch.tensor(np.log(weights[some]), dtype=log_probabilities.dtype, device=log_probabilities.device)
    return torch.logsumexp(log_probabilities[some.tolist()] + logs[:, None, None], dim=0)


def fit_weights(label_log_probabilities: NDArray[np.float64], *, tolerance: float = 1e-5) -> Fit:
    """The mixture weights of highest likelihood.

    Expectation-maximisation (Dempster et al., 1977), for mixture weights alone Cover, "An algorithm for maximizing
    expected log investment return", 1984: w_m ← w_m · g_m with g_m = mean over samples of p_m / Σ_k w_k p_k. The
    log-likelihood is concave in w and rises with every iteration; it is at most max_m g_m − 1 below the best there is.

    Args:
        label_log_probabilities: (n, M) of each sample's label under each member.
        tolerance: stop when that bound, in nats per sample, is no larger.
    """
    samples, members = label_log_probabilities.shape
    weights = np.full(members, 1 / members)
    if not samples:
        return Fit(weights=weights, samples=0, iterations=0, mean_log_likelihood=0.0, gap=math.inf)
    largest = label_log_probabilities.max(axis=1, keepdims=True)
    likelihoods = np.exp(label_log_probabilities - largest)  # (n, M), the largest of each sample 1: nothing underflows
    iterations = 0
    while True:
        mixed = likelihoods @ weights  # (n,)
        growth = likelihoods.T @ (1 / mixed) / samples  # (M,)
        gap = float(growth.max()) - 1
        if gap <= tolerance or iterations == _MOST_ITERATIONS:
            break
        weights = weights * growth
        weights /= weights.sum()
        iterations += 1
    log_likelihood = float((np.log(likelihoods @ weights) + largest[:, 0]).mean())
    return Fit(weights=weights, samples=samples, iterations=iterations, mean_log_likelihood=log_likelihood, gap=gap)
