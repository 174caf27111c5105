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
from wv_train.gate import GateConfig, confidence, passes
from wv_train.ledger import Ledger
from wv_train.losses import gated_loss
from wv_train.models import normalization

GATHERED = ("ordinal", "label_conf", "top1_conf", "prediction", "held", "weight", "correct", "loss")
"""Columns of a gathered row, float64 (exact for ordinals below 2^53). ordinal is −1 where the slot is invalid; held is
the confidence that the gate's threshold is held against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSetting:
    """What a phase asks of one step."""

    class_weights: Tensor
    """(K,) float32 on the device."""
    gate: GateConfig | None
    threshold: float
    """The gate's, at this step."""
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
    """False: the loss of a sample with a weight is NaN or infinite; nothing was updated."""
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
        self._amp_dtype = amp_dtype(amp, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self._amp_dtype is torch.float16)
        device_ids = [world.device] if world.device.type == "cuda" else None
        # Running statistics are only written in training, so rank 0's are broadcast before an evaluation instead.
        self._forward: Callable[[Tensor], Tensor] = (
            DistributedDataParallel(model, device_ids=device_ids, forward_sync_buffers=False)
            if world.size > 1
            else model
        )

    def __call__(self, batch: Batch, setting: StepSetting, *, step: int, stop_signal: int = 0) -> StepResult:
        """Train on this rank's part of a global batch. `step`: number of the step in the run, seeds dropout."""
        # A generator's state that follows from (seed, step, rank) needs no saving and moves to any machine.
        self._seed_dropout(int(combine(self._seed, step, self.world.rank)) >> 1)
        here = batch.to(self.world.device)
        images = _filled(here.normalized(self._mean, self._std), here.valid)
        with torch.autocast(self.world.device.type, self._amp_dtype, enabled=self._amp_dtype is not None):
            logits = self._forward(images)
        # Behind the forward pass, which works on a GPU while this waits for ordinals that lie there.
        label_sum, seen = self.ledger.history(batch.ordinals.cpu())
        losses, rows = judge(logits.float(), here, setting, label_sum, seen)

        # (W, 1 + B/W, C): each rank's first row carries its signal.
        header = rows.new_zeros((1, rows.shape[1]))
        header[0, 0] = stop_signal
        gathered = self.world.all_gather(torch.cat([header, rows])).cpu()
        decision = decide(gathered[:, 1:].reshape(-1, len(GATHERED)).numpy(), setting)  # rows (B, C), in global order
        result = self._account(decision, stop_signal=int(gathered[:, 0, 0].max()))
        if not result.finite:
            return result
        mine = torch.from_numpy(decision.weights.reshape(self.world.size, -1)[self.world.rank]).to(losses)
        loss = gated_loss(losses, mine, denominator=decision.denominator, world_size=self.world.size)
        self._update(loss, moves=not result.totals.zero_steps)
        return result

    def _seed_dropout(self, seed: int) -> None:
        # Not torch.manual_seed, which formats a stack trace at each call where CUDA is not in use.
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _update(self, loss: Tensor, *, moves: bool) -> None:
        """Backward on every rank; the weights move unless the whole batch was gated or invalid (a zero step)."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if moves:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _account(self, decision: "Decision", *, stop_signal: int) -> StepResult:
        """Enter a batch in the ledger, unless its loss is broken."""
        ordinal, label_conf, top1_conf, prediction, _, weight, correct, loss = decision.rows.T
        ordinals, weighed = ordinal.astype(np.int64), weight > 0
        finite = bool(np.isfinite(loss[weighed]).all())
        if finite:
            self.ledger.update(
                ordinals,
                label_conf=label_conf,
                top1_conf=top1_conf,
                prediction=prediction.astype(np.int64),
                kept=decision.keep,
            )
        totals = Totals(
            steps=1,
            zero_steps=int(decision.denominator == 0),
            samples=int((ordinals >= 0).sum()),
            correct=int(correct.sum()),
            kept=int(decision.keep.sum()),
            weight=float(weight.sum()),
            loss=float((weight[weighed] * loss[weighed]).sum()),
        )
        return StepResult(totals=totals, stop_signal=stop_signal, finite=finite, ordinals=ordinals)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a global batch teaches: the same on every rank."""

    rows: NDArray[np.float64]
    """(B, C) as gathered."""
    keep: NDArray[np.bool_]
    """(B,)"""
    weights: NDArray[np.float64]
    """(B,) class weight of what is kept, else 0."""
    denominator: float
    """What the loss is divided by; 0 where nothing is kept: a zero step."""


def _filled(images: Tensor, valid: Tensor) -> Tensor:
    """(B/W, 3, S, S) with the valid pictures, in turn, in the slots of the invalid.

    These weigh nothing in the loss, but batch norm would see them: an epoch's last batch may be two pictures and
    padding, whose statistics blow up the gradient. On a rank that has no valid picture nothing can be done.
    """
    found = valid.nonzero().squeeze(1)
    if not 0 < len(found) < len(valid):
        return images
    source = torch.arange(len(valid), device=valid.device)
    source[~valid] = found[torch.arange(len(valid) - len(found), device=valid.device) % len(found)]
    return images[source].contiguous(memory_format=torch.channels_last)


def judge(logits: Tensor, batch: Batch, setting: StepSetting, label_sum: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """From logits (B/W, K): losses (B/W,) with gradient, and the rows to gather, (B/W, C) float64.

    label_sum, seen: (B/W,) the samples' history, see `Ledger.history`.
    """
    labels = batch.labels
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=setting.label_smoothing)
    probabilities = logits.detach().softmax(dim=1)  # (B/W, K)
    top1_conf, prediction = probabilities.max(dim=1)
    label_conf = probabilities.gather(1, labels[:, None]).squeeze(1)
    held = confidence(
        setting.gate.kind if setting.gate else "label",
        top1=top1_conf,
        label=label_conf,
        label_sum=label_sum.to(logits.device),
        seen=seen.to(logits.device),
    )
    weights = torch.where(batch.valid, setting.class_weights[labels], 0.0)
    correct = batch.valid & (prediction == labels)
    ordinals = torch.where(batch.valid, batch.ordinals, -1)
    columns = (ordinals, label_conf, top1_conf, prediction, held, weights, correct, losses.detach())
    return losses, torch.stack([column.double() for column in columns], dim=1)


def decide(rows: NDArray[np.float64], setting: StepSetting) -> Decision:
    """Hold the gate against a whole global batch, (B, C) rows in its order."""
    column = dict(zip(GATHERED, rows.T, strict=True))
    keep = column["ordinal"] >= 0
    if setting.gate is not None:
        keep = passes(column["held"], keep, unit=setting.gate.unit, threshold=setting.threshold)
    weights = np.where(keep, column["weight"], 0.0)
    kept_weight = float(weights.sum())
    whole = kept_weight if setting.denominator == "kept" else float(column["weight"].sum())
    return Decision(rows=rows, keep=keep, weights=weights, denominator=whole if kept_weight > 0 else 0.0)


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on a GPU, None for none (always on a CPU)."""
    if device.type != "cuda" or amp == "off":
        return None
    if amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if amp == "bf16" else torch.float16
