"""From logits to what a global batch teaches: a row per sample, and the gate's decision over all rows.

Works on the device without waiting for it, and the same way on every rank: all of them hold all rows.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wv_train.gate import GateConfig, confidence, passes
from wv_train.phase_overlays import PhaseOverlays
from wv_train.robust_losses import LossConfig, renewed_targets, robust_losses
from wv_train.teacher import SoftTargets, soft_cross_entropy

COLUMNS = ("ordinal", "label", "label_conf", "top1_conf", "prediction", "held", "weight", "loss", "judged")
"""Of a sample's row, float64 (exact for ordinals below 2^53). ordinal is −1 where the slot is invalid; held is the
confidence that the gate's threshold is held against; weight the class's, 0 where invalid; loss the phase's;
judged is 0 where no forward pass has seen the sample (nor then are confidences, prediction and loss anything). Where
the phase's loss is elr, a sample's new targets stand behind them: 2k columns as in `Slots.targets`."""

_AT = {name: index for index, name in enumerate(COLUMNS)}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSetting:
    """What a phase asks of one step."""

    class_weights: Tensor
    """(K,) float32 on the device."""
    gate: GateConfig | None
    threshold: float
    """The gate's, at this step."""
    label_smoothing: float
    denominator: Literal["all", "kept"]
    prior: Tensor | None = None
    """(K,) float32 on the device, added to the logits in the loss."""
    mixup_alpha: float = 0.0
    streams: int = 1
    """Of this rank: its slots are so many equal stretches, within which mixup finds partners."""
    two_passes: bool = False
    """Whether the gate picks in a pass of its own, see `GateConfig.passes`."""
    loss: LossConfig = field(default_factory=LossConfig)
    overlays: PhaseOverlays | None = None
    """What they give the phase; None: nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """A rank's part of a global batch but for its images, (n,) each, on the device."""

    labels: Tensor
    ordinals: Tensor
    """int64, −1 where invalid."""
    weights: Tensor
    """float32, the class's (times the tier's under a curriculum), 0 where invalid."""
    label_sum: Tensor
    seen: Tensor
    """float32, the samples' history: see `Ledger.history`; zeros where the gate does not ask for it."""
    targets: Tensor | None = None
    """(n, 2k) float32 what elr remembers of them, see `TargetMemory.recall`; None with other losses."""
    soft: SoftTargets | None = None
    """What a teacher makes of the labels, where the phase has one."""

    def at(self, places: slice | Tensor) -> Self:
        """Of some of the slots."""
        if isinstance(places, slice) and places == slice(0, len(self.labels)):
            return self
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        some: dict[str, Any] = {name: None if value is None else value[places] for name, value in values}
        return type(self)(**some)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What samples teach: of a global batch the same on every rank."""

    keep: Tensor
    """(B,) bool."""
    guarded: Tensor
    """(B,) bool: kept by the guard alone."""
    weights: Tensor
    """(B,) float64 class weight of what is kept, else 0."""
    denominator: Tensor
    """() float64: what the loss is divided by; 0 where nothing is kept: a zero step."""


def cross_entropy(logits: Tensor, labels: Tensor, setting: StepSetting) -> Tensor:
    """(n,) with gradient, after the phase's prior and label smoothing."""
    return F.cross_entropy(
        _adjusted(logits, setting), labels, reduction="none", label_smoothing=setting.label_smoothing
    )


def sample_losses(logits: Tensor, slots: Slots, setting: StepSetting) -> Tensor:
    """(n,) with gradient: the phase's loss of each sample, of logits (n, K) float32."""
    if slots.soft is not None:
        return soft_cross_entropy(_adjusted(logits, setting), slots.soft, label_smoothing=setting.label_smoothing)
    if setting.loss.kind == "cross_entropy":
        return cross_entropy(logits, slots.labels, setting)
    return robust_losses(_adjusted(logits, setting), slots.labels, slots.targets, setting.loss)


def judged_rows(logits: Tensor, losses: Tensor, slots: Slots, setting: StepSetting) -> Tensor:
    """Rows (n, C) of samples that went through the model: logits (n, K) float32, losses (n,); without gradient."""
    probabilities = logits.detach().softmax(dim=1)
    top1_conf, prediction = probabilities.max(dim=1)
    label_conf = probabilities.gather(1, slots.labels.unsqueeze(1)).squeeze(1)
    held = confidence(
        setting.gate.kind if setting.gate else "label",
        top1=top1_conf,
        label=label_conf,
        label_sum=slots.label_sum,
        seen=slots.seen,
    )
    columns = (slots.ordinals, slots.labels, label_conf, top1_conf, prediction, held)
    rows = _stack(*columns, slots.weights, losses.detach(), judged=1.0)
    if slots.targets is None:
        return rows
    renewed = renewed_targets(_adjusted(logits, setting), slots.targets, setting.loss.elr_beta)
    return torch.cat([rows, renewed.double()], dim=1)


def unjudged_rows(held: Tensor, slots: Slots) -> Tensor:
    """Rows (n, C) of samples that no model has seen; held (n,) is from their history."""
    none = torch.zeros_like(held)
    rows = _stack(slots.ordinals, slots.labels, none, none, none, held, slots.weights, none, judged=0.0)
    return rows if slots.targets is None else torch.cat([rows, slots.targets.double()], dim=1)


def column(rows: Tensor, name: str) -> Tensor:
    """One of COLUMNS of rows (…, C)."""
    return rows[..., _AT[name]]


def decide(rows: Tensor, setting: StepSetting, limits: Tensor | None) -> Decision:
    """Hold the gate against rows (B, C) of a whole global batch, in its order.

    With `unit = "confidence"` a part of the batch is decided as it would be in the whole, but for the denominator.
    limits: (K,) float64 of the guard, see `ClassGuard.limits`.
    """
    valid, held, weight = column(rows, "ordinal") >= 0, column(rows, "held"), column(rows, "weight")
    keep, guarded = valid, torch.zeros_like(valid)
    if setting.gate is not None:
        keep = passes(held, valid, unit=setting.gate.unit, threshold=setting.threshold)
        if limits is not None:
            guarded = valid & ~keep & (held >= limits[column(rows, "label").long()])
            keep = keep | guarded
    weights = weight.where(keep, 0.0)
    kept_weight = weights.sum()
    whole = kept_weight if setting.denominator == "kept" else weight.sum()
    return Decision(keep=keep, guarded=guarded, weights=weights, denominator=whole.where(kept_weight > 0, 0.0))


def _adjusted(logits: Tensor, setting: StepSetting) -> Tensor:
    return logits if setting.prior is None else logits + setting.prior


def _stack(*columns: Tensor, judged: float) -> Tensor:
    """(n,) each → (n, C) float64; `judged` is the last column."""
    if columns[0].device.type != "cpu":
        ones = torch.full_like(columns[0], judged, dtype=torch.float64)
        return torch.stack([*(item.double() for item in columns), ones], dim=1)
    rows = np.empty((len(columns[0]), len(COLUMNS)))  # where nothing runs beside, a sixth of torch's time
    for index, item in enumerate(columns):
        rows[:, index] = item.numpy()
    rows[:, -1] = judged
    return torch.from_numpy(rows)
