"""Per-sample losses that learn less from wrong labels than cross-entropy does: gce, sce and elr.

Each is cross-entropy's own fused kernel with something around it, in float32 and finite for any finite logits. Class
weights, gate and denominator come after them, and are the business of `judge` and `losses`. The memory that elr's
targets come from is `target_memory`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wv_train.errors import FieldError

LossKind = Literal["cross_entropy", "gce", "sce", "elr"]

_LEAST = 1e-4
"""Probabilities in elr are kept within [1e-4, 1 − 1e-4], and 1 − ⟨p, t⟩ at 1e-4 or more, as its authors' code does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """A phase's loss of a sample, as a recipe says it."""

    kind: LossKind = "cross_entropy"
    """`cross_entropy`: −log p of the label. `gce`: (1 − p^q) / q (Zhang and Sabuncu, "Generalized Cross Entropy Loss",
    2018). `sce`: alpha · cross-entropy + beta · reverse cross-entropy (Wang et al., "Symmetric Cross Entropy", 2019).
    `elr`: cross-entropy + elr_lambda · log(1 − ⟨p, t⟩), t the sample's own earlier predictions (Liu et al.,
    "Early-Learning Regularization", 2020); it can be less than 0."""
    q: float = 0.7
    """Of `gce`, in (0, 1]: towards 0 it is cross-entropy, 1 is the absolute error 1 − p (Zhang and Sabuncu: 0.7)."""
    alpha: float = 0.1
    """Of `sce`: factor of cross-entropy (Wang et al.: 0.1 on CIFAR-10, 6 on CIFAR-100)."""
    beta: float = 1.0
    """Of `sce`: factor of reverse cross-entropy, −log_zero · (1 − p) (Wang et al.: 1; 0.1 on CIFAR-100)."""
    log_zero: float = -4.0
    """Of `sce`: what stands for log 0, less than 0 (Wang et al.: −4)."""
    elr_lambda: float = 3.0
    """Of `elr`: factor of the regularisation (Liu et al.: 3 on CIFAR-10, 7 on CIFAR-100)."""
    elr_beta: float = 0.7
    """Of `elr`, in [0, 1): t is at each visit elr_beta · t + (1 − elr_beta) · p (Liu et al.: 0.7 on CIFAR-10, 0.9 on
    CIFAR-100)."""
    elr_top_k: int = 10
    """Of `elr`: so many of t's largest values are kept of each sample, 4 bytes each and rank (6 with more than 65,536
    classes), the same in all phases with elr. All of t where there are no more classes."""

    def __post_init__(self) -> None:
        if not 0.0 < self.q <= 1.0:
            raise FieldError("q", "0 < q <= 1", self.q)
        for key in ("alpha", "beta", "elr_lambda"):
            if getattr(self, key) < 0:
                raise FieldError(key, "0 or more", getattr(self, key))
        if self.alpha == self.beta == 0:
            raise FieldError("beta", "more than 0 where alpha is 0", self.beta)
        if self.log_zero >= 0:
            raise FieldError("log_zero", "less than 0", self.log_zero)
        if not 0.0 <= self.elr_beta < 1.0:
            raise FieldError("elr_beta", "0 <= elr_beta < 1", self.elr_beta)
        if self.elr_top_k < 1:
            raise FieldError("elr_top_k", "1 or more", self.elr_top_k)

    def __str__(self) -> str:
        if self.kind == "gce":
            return f"gce (q {self.q:g})"
        if self.kind == "sce":
            return f"sce (alpha {self.alpha:g}, beta {self.beta:g}, log 0 = {self.log_zero:g})"
        if self.kind == "elr":
            return f"elr (lambda {self.elr_lambda:g}, beta {self.elr_beta:g}, top {self.elr_top_k})"
        return "cross-entropy"


def robust_losses(logits: Tensor, labels: Tensor, targets: Tensor | None, config: LossConfig) -> Tensor:
    """(n,) with gradient, of logits (n, K) float32 and labels (n,); `kind` is not cross_entropy.

    targets: (n, 2k) of elr, see `target_memory`; None for the others.
    """
    plain = F.cross_entropy(logits, labels, reduction="none")  # −log p
    if config.kind == "gce":
        # exp, not expm1: its gradient keeps its digits for hopeless samples, and the loss needs none below 1e-7.
        return (1.0 - torch.exp(-config.q * plain)) / config.q
    if config.kind == "sce":
        return config.alpha * plain - config.beta * config.log_zero * (1.0 - torch.exp(-plain))
    assert config.kind == "elr"
    assert targets is not None
    return plain + config.elr_lambda * _early_learning(logits, targets, config.elr_beta)


def renewed_targets(logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """elr's targets after a visit, (n, 2k) float32: the k largest values of β·t + (1 − β)·p; without gradient."""
    class_ids, values = _split(targets)
    shown = _clamped(logits.detach())
    # Added, not set: an empty row says class 0 k times, with a value of 0.
    whole = ((1.0 - beta) * _normalized(shown)).scatter_add_(1, class_ids, beta * values)  # (n, K)
    largest = whole.topk(values.shape[1], dim=1)
    return torch.cat([largest.indices.float(), largest.values], dim=1)


def _early_learning(logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """log(1 − ⟨p, t⟩), (n,), with t = β·(what is remembered) + (1 − β)·p that knows the present visit."""
    class_ids, values = _split(targets)
    shown = _clamped(logits)  # (n, K)
    remembered = (shown.gather(1, class_ids) * values).sum(dim=1)
    present = (shown * _normalized(shown.detach())).sum(dim=1)
    return (1.0 - beta * remembered - (1.0 - beta) * present).clamp(min=_LEAST).log()


def _split(targets: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 2k) → class ids (n, k) int64, values (n, k)."""
    class_ids, values = targets.chunk(2, dim=1)
    return class_ids.long(), values


def _clamped(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1).clamp(_LEAST, 1.0 - _LEAST)


def _normalized(shown: Tensor) -> Tensor:
    return shown / shown.sum(dim=1, keepdim=True)
