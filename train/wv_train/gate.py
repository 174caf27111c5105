"""The gate: which samples of a batch teach, by a threshold on a confidence that falls over the phase.

After Sun et al., "Learning From Web data: learning all or learning good?", WebVision 2018. Decides only; the loss
(`losses`) turns the decision into weights. Confidence is always taken from a detached softmax.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wv_train.errors import FieldError

ConfidenceKind = Literal["top1", "label", "label_average"]
GateUnit = Literal["confidence", "share"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSchedule:
    """Threshold on a sample's confidence, or share of the batch to gate, lowered linearly (easy samples first)."""

    start: float
    """Threshold at the phase's first step, a probability in [0, 1)."""
    steps: int
    """Optimiser steps until the threshold has reached `end`."""
    end: float = 0.0
    """Threshold from then on: 0 learns from everything again."""

    def __post_init__(self) -> None:
        _check_thresholds(self.start, self.end)
        if self.steps < 1:
            raise FieldError("steps", "1 or more", self.steps)

    def threshold(self, step: int) -> float:
        """Threshold at `step` of the phase (0 is its first)."""
        left = max(0.0, 1.0 - step / self.steps)
        return self.end + (self.start - self.end) * left


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """A phase's gate, as a recipe says it."""

    start: float
    """Threshold at the phase's first step, in [0, 1)."""
    end: float = 0.0
    """Threshold at the end; 0 learns from everything again."""
    unit: GateUnit = "confidence"
    """What the threshold is. `confidence`: a probability, samples below it are gated (Sun et al.). `share`: the
    fraction of each global batch that is gated, the least confident first; it suits a model at any stage."""
    kind: ConfidenceKind = "label_average"
    """`top1`: the largest softmax (Sun et al.). `label`: the given label's. `label_average`: the given label's,
    averaged over all visits of the sample so far, the present one included (from the ledger)."""
    lowered_by: float = 1.0
    """Fraction of the phase, in (0, 1], after which the threshold has reached `end`."""

    def __post_init__(self) -> None:
        _check_thresholds(self.start, self.end)
        if not 0.0 < self.lowered_by <= 1.0:
            raise FieldError("lowered_by", "a fraction in (0, 1]", self.lowered_by)

    def schedule(self, phase_steps: int) -> GateSchedule:
        """The schedule over a phase of `phase_steps` steps."""
        return GateSchedule(start=self.start, end=self.end, steps=max(1, round(phase_steps * self.lowered_by)))


def confidence(kind: ConfidenceKind, *, top1: Tensor, label: Tensor, label_sum: Tensor, seen: Tensor) -> Tensor:
    """The confidence that the threshold is held against, (B,) float.

    top1, label: (B,) of the present visit. label_sum, seen: (B,) the label's confidence summed over the sample's
    earlier visits, and their number, from the ledger.
    """
    if kind == "top1":
        return top1
    if kind == "label":
        return label
    return (label_sum + label) / (seen + 1)


def passes(
    held: NDArray[np.float64], valid: NDArray[np.bool_], *, unit: GateUnit, threshold: float
) -> NDArray[np.bool_]:
    """Which samples of a *global* batch teach, (B,).

    held: (B,) confidences. valid: (B,). With unit "share", of n valid samples the ⌊threshold · n⌋ least confident are
    gated; those that tie with the least confident that passes pass too.
    """
    if unit == "share" and valid.any():
        ranked = np.sort(held[valid])
        threshold = float(ranked[int(threshold * len(ranked))])
    return valid & (held >= threshold)


def _check_thresholds(start: float, end: float) -> None:
    if not 0.0 <= start < 1.0:
        raise FieldError("start", "a probability, 0 <= end <= start < 1", start)
    if not 0.0 <= end <= start:
        raise FieldError("end", f"0 <= end <= start ({start})", end)
