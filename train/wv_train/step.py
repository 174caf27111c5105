"""One optimiser step on a global batch: forward, gate, one gather, backward, update, ledger.

Everything that depends on the whole batch (the loss's denominator, whether anything was kept, whether someone was asked
to stop) comes out of one all-gather of a row per sample, so every rank decides alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wv_loader import Batch
from wv_shards import combine
from wv_train.distributed import World
from wv_train.gate import ConfidenceKind, confidence
from wv_train.ledger import Ledger
from wv_train.losses import gated_loss
from wv_train.models import normalization

GATHERED = ("ordinal", "label_conf", "top1_conf", "prediction", "kept", "weight", "correct", "loss")
"""Columns of a gathered row, float64 (exact for ordinals below 2^53). ordinal is −1 where the slot is invalid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSetting:
    """What a phase asks of one step."""

    class_weights: Tensor
    """(K,) float32 on the device."""
    gate_kind: ConfidenceKind | None
    threshold: float
    label_smoothing: float
    denominator: str
    """`all` or `kept`."""


@dataclass(slots=True)
class Totals:
    """Sums and counts over samples of global batches; whoever shows them divides last."""

    steps: int = 0
    zero_steps: int = 0
    samples: int = 0
    correct: int = 0
    kept: int = 0
    weight: float = 0.0
    loss: float = 0.0
    """Σ weight · cross-entropy over all valid samples, kept or not: comparable with and without a gate."""

    def add(self, other: "Totals") -> None:
        """Add another's sums to these."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def mean_loss(self) -> float:
        """Weighted mean cross-entropy; 0 where nothing was weighed."""
        return self.loss / self.weight if self.weight > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What every rank knows after a step."""

    totals: Totals
    stop_signal: int
    """The largest signal number that any rank received, 0 for none."""
    finite: bool
    """False: some kept sample's loss is NaN or infinite; nothing was updated."""
    ordinals: NDArray[np.int64]
    """(B,) of the global batch, −1 where invalid."""


class TrainStep:
    """Holds what all steps share: model, optimiser, scaler, ledger, world."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ledger: Ledger,
        world: World,
        seed: int,
        amp: str,
    ) -> None:
        self.optimizer, self.ledger, self.world = optimizer, ledger, world
        self._seed = seed
        self._mean, self._std = normalization(model)
        self._amp_dtype = _amp_dtype(amp, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self._amp_dtype is torch.float16)
        device_ids = [world.device] if world.device.type == "cuda" else None
        # Running statistics are only written in training, so rank 0's are broadcast before an evaluation instead.
        self._forward: Callable[[Tensor], Tensor] = (
            DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False) if world.size > 1 else model
        )

    def __call__(self, batch: Batch, setting: StepSetting, *, step: int, stop_signal: int = 0) -> StepResult:
        """Train on this rank's part of a global batch. `step`: number of the step in the run, seeds dropout."""
        # A generator's state that follows from (seed, step, rank) needs no saving and moves to any machine.
        torch.manual_seed(int(combine(self._seed, step, self.world.rank)) >> 1)
        label_sum, seen = self.ledger.history(batch.ordinals)
        here = batch.to(self.world.device)
        images = here.normalized(self._mean, self._std)
        with torch.autocast(self.world.device.type, self._amp_dtype, enabled=self._amp_dtype is not None):
            logits = self._forward(images)
        losses, weights, keep, rows = judge(logits.float(), here, setting, label_sum, seen)

        # (W, 1 + B/W, C): each rank's first row carries its signal.
        header = rows.new_zeros((1, rows.shape[1]))
        header[0, 0] = stop_signal
        gathered = self.world.all_gather(torch.cat([header, rows])).cpu()
        result, kept_weight = self._read(gathered)
        if not result.finite:
            return result
        divisor = kept_weight if setting.denominator == "kept" else result.totals.weight
        self._update(
            gated_loss(
                losses, weights, keep, denominator=divisor if kept_weight > 0 else 0.0, world_size=self.world.size
            ),
            moves=kept_weight > 0,
        )
        return result

    def _update(self, loss: Tensor, *, moves: bool) -> None:
        """Backward on every rank; the weights move unless the whole batch was gated or invalid (a zero step)."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if moves:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _read(self, gathered: Tensor) -> tuple[StepResult, float]:
        """Enter the batch in the ledger; totals, and the weight of what was kept."""
        rows = gathered[:, 1:].reshape(-1, len(GATHERED)).numpy()  # (B, C), in the batch's global order
        ordinal, label_conf, top1_conf, prediction, kept, weight, correct, loss = rows.T
        ordinals, keep = ordinal.astype(np.int64), kept > 0
        finite = bool(np.isfinite(loss[weight > 0]).all())
        if finite:
            self.ledger.update(
                ordinals,
                label_conf=label_conf,
                top1_conf=top1_conf,
                prediction=prediction.astype(np.int64),
                kept=keep,
            )
        kept_weight = float(weight[keep].sum())
        totals = Totals(
            steps=1,
            zero_steps=int(kept_weight == 0),
            samples=int((ordinals >= 0).sum()),
            correct=int(correct.sum()),
            kept=int(keep.sum()),
            weight=float(weight.sum()),
            loss=float((weight[weight > 0] * loss[weight > 0]).sum()),
        )
        signal = int(gathered[:, 0, 0].max())
        return StepResult(totals=totals, stop_signal=signal, finite=finite, ordinals=ordinals), kept_weight


def judge(
    logits: Tensor, batch: Batch, setting: StepSetting, label_sum: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses with gradient, weights, keep, each (B/W,), and the rows to gather, (B/W, C) float64, from logits (B/W, K)."""
    labels = batch.labels.clamp(min=0)  # padded slots have no label
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=setting.label_smoothing)
    probabilities = logits.detach().softmax(dim=1)  # (B/W, K)
    top1_conf, prediction = probabilities.max(dim=1)
    label_conf = probabilities.gather(1, labels[:, None]).squeeze(1)
    keep = batch.valid
    if setting.gate_kind is not None:
        held = confidence(
            setting.gate_kind,
            top1=top1_conf,
            label=label_conf,
            label_sum=label_sum.to(logits.device),
            seen=seen.to(logits.device),
        )
        keep = keep & (held >= setting.threshold)
    weights = torch.where(batch.valid, setting.class_weights[labels], 0.0)
    correct = batch.valid & (prediction == labels)
    ordinals = torch.where(batch.valid, batch.ordinals, -1)
    columns = (ordinals, label_conf, top1_conf, prediction, keep, weights, correct, losses.detach())
    return losses, weights, keep, torch.stack([column.double() for column in columns], dim=1)


def _amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on a GPU, None for none (always on a CPU)."""
    if device.type != "cuda" or amp == "off":
        return None
    if amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if amp == "bf16" else torch.float16
