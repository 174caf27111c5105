"""The gate: which samples of a batch teach, by a threshold on a confidence that falls over the phase.

After Sun et al., "Learning From Web data: learning all or learning good?", WebVision 2018. Decides only; the loss
(`losses`) turns the decision into weights, `guard` keeps classes from being shut out. Confidence is always taken from a
detached softmax.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wv_train.errors import FieldError

GateKind = Literal["top1", "label", "label_average", "label_past", "agreement"]
GateUnit = Literal["confidence", "share"]
GateCurve = Literal["linear", "step", "cosine"]
GatePasses = Literal["auto", "one", "two"]

BY_HISTORY: tuple[GateKind, ...] = ("label_average", "label_past")
"""Kinds that ask the ledger for a sample's earlier visits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSchedule:
    """Threshold on a sample's confidence, or share of the batch to gate, lowered over a phase (easy samples first)."""

    start: float
    """Threshold at the phase's first step, in [0, 1]."""
    steps: int
    """Optimiser steps until the threshold has reached `end`."""
    end: float = 0.0
    """Threshold from then on: 0 learns from everything again."""
    curve: GateCurve = "linear"
    levels: int = 4
    """Of `step`: how many equal falls lead from `start` to `end`."""

    def __post_init__(self) -> None:
        _check_thresholds(self.start, self.end, most=1.0)
        if self.steps < 1:
            raise FieldError("steps", "1 or more", self.steps)

    def threshold(self, step: int) -> float:
        """Threshold at `step` of the phase (0 is its first)."""
        done = min(1.0, step / self.steps)
        if self.curve == "step":
            done = math.floor(done * self.levels) / self.levels
        elif self.curve == "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        return self.end + (self.start - self.end) * (1.0 - done)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """A phase's gate, as a recipe says it."""

    start: float
    """Threshold at the phase's first step, in [0, 1); `agreement` takes 1 too."""
    end: float = 0.0
    """Threshold at the end: 0 learns from everything again, more is a floor."""
    unit: GateUnit = "confidence"
    """What the threshold is. `confidence`: a probability, samples below it are gated (Sun et al.). `share`: the
    fraction of each global batch that is gated, the least confident first; it suits a model at any stage."""
    kind: GateKind = "label_average"
    """`top1`: the largest softmax (Sun et al.). `label`: the given label's. `label_average`: the given label's,
    averaged over all visits of the sample so far, the present one included (from the ledger). `label_past`: the same
    without the present one, known before the forward pass, so that gated samples cost nothing; a sample without a visit
    passes. `agreement`: the label's over the largest, 1 where the prediction is the label."""
    schedule: GateCurve = "linear"
    """How the threshold falls: `linear`, `cosine`, or in `levels` equal falls (`step`)."""
    levels: int = 4
    """Of `step`: how many equal falls lead from `start` to `end`."""
    lowered_by: float = 1.0
    """Fraction of the phase, in (0, 1], after which the threshold has reached `end`."""
    min_kept_fraction: float = 0.1
    """A class that has kept less than this of its last visits is gated by its own mean confidence until it keeps more:
    a guard against the collapse of a gate that feeds on itself; 0: none. See `guard`."""
    passes: GatePasses = "auto"
    """`one`: forward and backward of the whole batch, gated samples weigh 0. `two`: a forward pass without gradients
    picks the samples, a second pass learns from them alone. `auto`: two while less than two thirds are kept."""
    revisit_fraction: float = 0.1
    """Of `label_past`: share of the gated samples that are looked at all the same, without teaching: else nothing could
    change the verdict on them."""
    skip_visits: int = 0
    """Leave out of an epoch, unread and undecoded, samples that were far under the gate at so many visits in a row, the
    last ones; 0: none. The verdict is frozen for the epoch and written to RUN/skipped, an overlay of kind `exclude`;
    the ledger counts a skipped visit as gated. With `unit = "share"` what is skipped counts as a part of the share. It
    has no part in the loss's denominator, so a step holds more samples that teach. Epochs get shorter, and a phase of
    so many steps has more of them."""
    skip_margin: float = 0.5
    """Far under the gate, for `skip_visits`: the confidence is below this fraction of that at which the gate cuts."""
    skip_revisit_fraction: float = 0.1
    """Share of the samples to be skipped that an epoch shows all the same, others in each: else nothing could change
    the verdict on them."""

    def __post_init__(self) -> None:
        _check_thresholds(self.start, self.end, most=1.0 if self.kind == "agreement" else math.nextafter(1.0, 0.0))
        if not 0.0 < self.lowered_by <= 1.0:
            raise FieldError("lowered_by", "a fraction in (0, 1]", self.lowered_by)
        if self.levels < 1:
            raise FieldError("levels", "1 or more", self.levels)
        if not 0 <= self.skip_visits <= 255:
            raise FieldError("skip_visits", "0 to 255", self.skip_visits)
        if self.skip_visits and not self.min_kept_fraction:
            raise FieldError("min_kept_fraction", "more than 0 with skip_visits, so that no class is lost", 0.0)
        if not 0.0 < self.skip_margin <= 1.0:
            raise FieldError("skip_margin", "a fraction in (0, 1]", self.skip_margin)
        for key in ("min_kept_fraction", "revisit_fraction", "skip_revisit_fraction"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise FieldError(key, "a fraction in [0, 1)", getattr(self, key))
        if self.unit == "share" and self.start >= 1.0:
            raise FieldError("start", "a share below 1", self.start)

    def over(self, phase_steps: int) -> GateSchedule:
        """The schedule over a phase of `phase_steps` steps."""
        return GateSchedule(
            start=self.start,
            end=self.end,
            steps=max(1, round(phase_steps * self.lowered_by)),
            curve=self.schedule,
            levels=self.levels,
        )


def confidence(kind: GateKind, *, top1: Tensor, label: Tensor, label_sum: Tensor, seen: Tensor) -> Tensor:
    """The confidence that the threshold is held against, (B,) float.

    top1, label: (B,) of the present visit. label_sum, seen: (B,) the label's confidence summed over the sample's
    earlier visits, and their number, from the ledger (asked for by the kinds in BY_HISTORY only).
    """
    if kind == "top1":
        return top1
    if kind == "label":
        return label
    if kind == "agreement":
        return label / top1
    if kind == "label_past":
        return past_confidence(label_sum, seen)
    return (label_sum + label) / (seen + 1)


def past_confidence(label_sum: Tensor, seen: Tensor) -> Tensor:
    """(B,) the label's confidence averaged over earlier visits, 1 where there is none: what is not known teaches."""
    return torch.where(seen > 0, label_sum / seen.clamp(min=1), 1.0)


def passes(held: Tensor, valid: Tensor, *, unit: GateUnit, threshold: float) -> Tensor:
    """Which samples of a *global* batch teach, (B,) bool, without waiting for a device.

    held: (B,) confidences. valid: (B,). With unit "share", of n valid samples the ⌊threshold · n⌋ least confident are
    gated; those that tie with the least confident that passes pass too.
    """
    if unit == "confidence":
        return valid & (held >= threshold)
    ranked = torch.where(valid, held, torch.inf).sort().values
    first = (valid.sum().double() * threshold).to(torch.int64)
    return valid & (held >= ranked[first.clamp(max=len(ranked) - 1)])


def _check_thresholds(start: float, end: float, *, most: float) -> None:
    if not 0.0 <= start <= most:
        raise FieldError("start", f"a probability, 0 <= end <= start {'<=' if most == 1.0 else '<'} 1", start)
    if not 0.0 <= end <= start:
        raise FieldError("end", f"0 <= end <= start ({start})", end)
