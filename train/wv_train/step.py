"""One optimiser step on a global batch: forward, gate, one gather, backward, update, ledger.

Everything that depends on the whole batch (the loss's denominator, whether anything was kept, whether someone was asked
to stop) comes out of one all-gather of a row per sample, so every rank decides alike. The host reads these rows while
the device works on the backward pass. How a step goes:

  one pass     forward of all, gather, backward of what is kept
  two passes   forward of all without gradients, gather, forward and backward of the kept alone
  by the past  the ledger's verdict, forward of the kept and of some to look at again, gather, backward

With micro-batches the first and the last go forward and backward piece by piece, gather, and divide the gradients.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_loader import Batch
from wv_shards import combine
from wv_train.ema import WeightAverage
from wv_train.errors import TrainError
from wv_train.gate import BY_HISTORY, past_confidence
from wv_train.gathered import Gathered, HostRows
from wv_train.guard import ClassGuard
from wv_train.judge import COLUMNS, Slots, StepSetting, decide, judged_rows, sample_losses, unjudged_rows
from wv_train.learner import Learner
from wv_train.ledger import Ledger
from wv_train.lesson import Lesson
from wv_train.losses import gated_loss
from wv_train.mixup import Mix
from wv_train.skipping import Skipping
from wv_train.target_memory import TargetMemory
from wv_train.totals import Totals

_SIZES = 16
"""A pass over chosen samples has one of so many sizes: few shapes for compilers and cuDNN."""
_SMALLEST = 2
"""Of these sizes, so that batch norm's statistics are never of a handful of pictures: an eighth of a rank's part."""
_REVISIT_SALT = 0x72657669  # "revi"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run stands; all ranks must agree on it."""

    phase: int = 0
    step: int = 0
    """Optimiser steps of the run before this one; seeds dropout."""


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
    """Holds what all steps share: model, optimiser, ledger, guard."""

    def __init__(
        self,
        *,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        ledger: Ledger,
        guard: ClassGuard,
        seed: int,
        clip_norm: float = 0.0,
        average: WeightAverage | None = None,
        bands: NDArray[np.int64] | None = None,
        right: NDArray[np.int8] | None = None,
        skipping: Skipping | None = None,
        targets: TargetMemory | None = None,
    ) -> None:
        """Put a step together.

        Args:
            learner: the model on this rank.
            optimizer: of its parameters.
            ledger: is told of every sample.
            guard: of the gate; is told too.
            seed: of dropout, mixup and of what is looked at again.
            clip_norm: largest norm of the gradient; 0: any.
            average: follows the weights.
            bands: (K,) number of each class's band, to count kept samples by.
            right: (N,) of each sample's label: 1 right, 0 wrong, −1 unknown; to count the gate's precision.
            skipping: is told of what the gate holds far under it.
            targets: memory of the phases whose loss is elr, told as the ledger is.
        """
        self.learner, self.optimizer, self.ledger, self.guard = learner, optimizer, ledger, guard
        self.average, self.targets = average, targets
        self._world, self._seed, self._clip_norm = learner.world, seed, clip_norm
        self._bands, self._right, self._skipping = bands, right, skipping
        self._band_count = 0 if bands is None else int(bands.max()) + 1
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.grad_norm_sum = torch.zeros((), device=self._world.device)
        """Σ of the gradient's norm before clipping; whoever reads it sets it back."""

    def __call__(self, batch: Batch, setting: StepSetting, place: Place, *, stop_signal: int = 0) -> StepResult:
        """Train on this rank's part of a global batch.

        Raises TrainError where ranks are not at the same place.
        """
        # A generator's state that follows from (seed, step, rank) needs no saving and moves to any machine.
        self._seed_dropout(int(combine(self._seed, place.step, self._world.rank)) >> 1)
        self.optimizer.zero_grad(set_to_none=True)
        if setting.overlays is not None:
            batch = setting.overlays.relabelled(batch)
        device = self._world.device
        task = self._task(batch if batch.labels.device == device else batch.to(device), setting, place, stop_signal)
        gate = setting.gate
        if gate is not None and gate.kind == "label_past":
            gathered, divisor = self._by_the_past(task)
        elif gate is not None and self._picks_first(task):
            gathered, divisor = self._two_passes(task), None
        else:
            # Without a gate all weights are known beforehand, as blending asks for.
            gathered, divisor = self._learn(task, weights=task.slots.weights if gate is None else None)
        host = gathered.on_host()
        self._check_places(host)
        finite, moves = host.finite, host.moves
        if finite:
            self._enter(host, gated=gate is not None)
            if self._skipping is not None and gate is not None:
                self._skipping.note(
                    host.ordinals, host.column("held"), host.keep, gate=gate, threshold=setting.threshold
                )
            if self.targets is not None and task.slots.targets is not None:
                self.targets.update(np.where(host.judged, host.ordinals, -1), host.rows[:, len(COLUMNS) :])
            if moves:
                self._move(divisor)
        return StepResult(
            totals=self._count(host, setting, finite=finite, moves=moves),
            stop_signal=int(host.headers[:, 0].max()),
            finite=finite,
            ordinals=host.ordinals,
        )

    def _task(self, batch: Batch, setting: StepSetting, place: Place, stop_signal: int) -> "_Task":
        device, facts = self._world.device, batch.on_host()
        asks = setting.gate is not None and setting.gate.kind in BY_HISTORY
        none = torch.zeros(len(facts.ordinals))
        label_sum, seen = self.ledger.history(facts.ordinals) if asks else (none, none)
        ordinals, weights = batch.ordinals, setting.class_weights[batch.labels]
        soft = None
        if (overlays := setting.overlays) is not None:
            places = facts.ordinals.numpy()
            if (of_tiers := overlays.weights(places)) is not None:
                weights = weights * torch.from_numpy(of_tiers).to(device, non_blocking=True)
            if (soft := overlays.targets(places, facts.labels.numpy())) is not None:
                soft = soft.to(device)
        if not bool(facts.valid.all()):
            ordinals, weights = ordinals.where(batch.valid, -1), weights.where(batch.valid, 0.0)
        by_past = setting.gate is not None and setting.gate.kind == "label_past"
        targets = None
        if setting.loss.kind == "elr":
            assert self.targets is not None
            targets = self.targets.recall(facts.ordinals.numpy()).to(device, non_blocking=True)
        slots = Slots(
            labels=batch.labels,
            ordinals=ordinals,
            weights=weights,
            label_sum=label_sum.to(device, non_blocking=True),
            seen=seen.to(device, non_blocking=True),
            targets=targets,
            soft=soft,
        )
        limits = self.guard.limits(setting.gate.min_kept_fraction) if setting.gate is not None else None
        return _Task(
            images=self.learner.images(batch),
            slots=slots,
            valid=facts.valid,
            ordinals=facts.ordinals,
            held=past_confidence(label_sum, seen).double() if by_past else none,
            setting=setting,
            place=place,
            header=torch.from_numpy(np.array([[stop_signal, place.phase, place.step]], dtype=np.float64)),
            limits=None if limits is None else torch.from_numpy(limits),
            labels=facts.labels,
        )

    def _picks_first(self, task: "_Task") -> bool:
        """Whether the decision shall, or must, be known before anything is learned."""
        assert task.setting.gate is not None
        in_pieces = len(self.learner.pieces(len(task.images))) > 1
        blends = task.setting.mixup_alpha > 0
        return task.setting.two_passes or blends or (in_pieces and task.setting.gate.unit == "share")

    def _two_passes(self, task: "_Task") -> Gathered:
        """Forward of all without gradients, gather, then forward and backward of the kept alone."""
        logits = self.learner.look(task.images)
        losses = sample_losses(logits, task.slots, task.setting)
        gathered = self._gather(judged_rows(logits, losses, task.slots, task.setting), task)
        host = gathered.on_host()
        if not host.finite or not host.moves:  # every rank knows it
            return gathered
        mine = self._own(len(task.images))
        keep = torch.from_numpy(host.keep[mine])
        chosen = _padded(keep, torch.from_numpy(host.column("held")[mine]))
        weights = gathered.decision.weights[mine][chosen.to(self._world.device)]
        lesson = self._lesson(task, chosen, active=keep)
        weighed = lesson.loss_weights(weights)
        for piece, _, losses in lesson.forward(self.learner):
            self._backward(losses, weighed[..., piece], gathered.decision.denominator)
        return gathered

    def _by_the_past(self, task: "_Task") -> tuple[Gathered, Tensor | None]:
        """The ledger's verdict, then forward of the kept and of some to look at again, gather, backward."""
        gate = task.setting.gate
        assert gate is not None
        rows = unjudged_rows(task.held, task.host_slots())
        if gate.unit == "share" and self._world.size > 1:  # a share of the batch needs the batch
            whole = self._world.all_gather(rows.to(self._world.device)).flatten(0, 1).cpu()
            keep = decide(whole, task.setting, task.limits).keep[self._own(len(rows))]
        else:
            keep = decide(rows, task.setting, task.limits).keep
        # By ordinal: the same samples whatever rank they are on.
        draw = combine(self._seed, task.place.step, _REVISIT_SALT, task.ordinals.numpy())
        again = task.valid & torch.from_numpy(draw < np.uint64(gate.revisit_fraction * 2**64))
        weights = task.slots.weights * keep.to(self._world.device)
        return self._learn(task, weights=weights, chosen=_padded(keep | again, task.held), active=keep)

    def _learn(
        self, task: "_Task", *, weights: Tensor | None, chosen: Tensor | None = None, active: Tensor | None = None
    ) -> tuple[Gathered, Tensor | None]:
        """Forward, gather, backward.

        Args:
            task: what is asked.
            weights: (n,) of the loss, where they are known before the forward pass.
            chosen: places (m,) of the slots that go through the model; None: all.
            active: (n,) bool on the host, what may be blended; None: what is valid.

        Returns:
            The rows, and what the gradients are yet to be divided by: None where they are whole.
        """
        device, size = self._world.device, self._world.size
        lesson = self._lesson(task, chosen, active=task.valid if active is None else active)
        places = None if chosen is None else chosen.to(device)
        known = None if weights is None else lesson.loss_weights(weights if places is None else weights[places])
        in_pieces = len(self.learner.pieces(len(lesson.images))) > 1
        parts = []
        if in_pieces:
            nominal = torch.full((), float(size * len(task.images)), dtype=torch.float64, device=device)
            limits = task.limits_on(device)
        for piece, logits, losses in lesson.forward(self.learner):
            means = lesson.mean_losses(losses)
            parts.append(judged_rows(logits, means, lesson.slots.at(piece), task.setting))
            if in_pieces:  # a threshold on confidence does not depend on the batch, only the denominator does
                here = decide(parts[-1], task.setting, limits).weights if known is None else known[..., piece]
                self._backward(losses, here, nominal)
        rows = torch.cat(parts) if in_pieces else parts[0]
        if places is not None:
            rows = unjudged_rows(task.held.to(device), task.slots).index_copy(0, places, rows)
        gathered = self._gather(rows, task)
        decision = gathered.decision
        if in_pieces:
            return gathered, decision.denominator / nominal
        if known is None:
            known = lesson.loss_weights(decision.weights[self._own(len(task.images))])
        self._backward(losses, known, decision.denominator)
        return gathered, None

    def _lesson(self, task: "_Task", chosen: Tensor | None, *, active: Tensor) -> Lesson:
        """The `chosen` slots, blended among the `active` of each stream if the phase asks for it."""
        setting, device = task.setting, self._world.device
        images, slots = task.images, task.slots
        if chosen is not None:
            where = chosen.to(device)
            images = images[where].contiguous(memory_format=torch.channels_last)
            slots = slots.at(where)
        if not setting.mixup_alpha:
            return Lesson(images=images, slots=slots, setting=setting)
        places = torch.arange(len(task.images)) if chosen is None else chosen
        mix = Mix.draw(setting.mixup_alpha, seed=self._seed, step=task.place.step)
        partners = mix.partners(places // (len(task.images) // setting.streams), active[places]).to(device)
        return Lesson(images=images, slots=slots, setting=setting, mix=mix, partners=partners)

    def _gather(self, rows: Tensor, task: "_Task") -> Gathered:
        """This rank's rows (n, C) → those of the global batch, with the decision on them: the step's one collective."""
        if self._world.size == 1:
            return Gathered(rows, task.header, decide(rows, task.setting, task.limits_on(rows.device)))
        header = torch.zeros((1, rows.shape[1]), dtype=torch.float64)
        header[:, : task.header.shape[1]] = task.header
        joined = self._world.all_gather(torch.cat([header.to(rows.device, non_blocking=True), rows]))  # (W, 1 + n, C)
        whole = joined[:, 1:].flatten(0, 1)  # (B, C)
        decision = decide(whole, task.setting, task.limits_on(rows.device))
        return Gathered(whole, joined[:, 0, : task.header.shape[1]], decision)

    def _own(self, slots: int) -> slice:
        """This rank's part of a global batch."""
        return slice(self._world.rank * slots, (self._world.rank + 1) * slots)

    def _backward(self, losses: Tensor, weights: Tensor, denominator: Tensor) -> None:
        self.learner.backward(gated_loss(losses, weights, denominator=denominator, world_size=self._world.size))

    def _move(self, divisor: Tensor | None) -> None:
        """The optimiser's step."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if divisor is not None:
            torch._foreach_mul_(gradients, divisor.reciprocal().float())
        if self._clip_norm > 0:
            self.learner.scaler.unscale_(self.optimizer)
            self.grad_norm_sum += torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self.learner.scaler.step(self.optimizer)
        self.learner.scaler.update()
        if self.average is not None:
            self.average.update(self.learner.model)

    def _enter(self, host: HostRows, *, gated: bool) -> None:
        """Tell the ledger, and the guard of a gate."""
        ordinals, judged = host.ordinals, host.judged
        all_judged = judged.all()
        self.ledger.update(
            ordinals if all_judged else np.where(judged, ordinals, -1),
            label_conf=host.column("label_conf"),
            top1_conf=host.column("top1_conf"),
            prediction=host.column("prediction").astype(np.int64),
            kept=host.keep,
        )
        valid = ordinals >= 0
        if not all_judged:
            self.ledger.skip(ordinals[valid & ~judged])
        if gated:
            self.guard.update(host.labels[valid], host.column("held")[valid], host.keep[valid])

    def _count(self, host: HostRows, setting: StepSetting, *, finite: bool, moves: bool) -> Totals:
        ordinals, labels = host.ordinals, host.labels
        valid = ordinals >= 0
        judged = valid & host.judged
        totals = Totals(
            steps=1,
            zero_steps=int(finite and not moves),
            nonfinite_steps=int(not finite),
            guarded_steps=int(host.guarded.any()),
            two_pass_steps=int(setting.two_passes),
            samples=int(np.count_nonzero(valid)),
            judged=int(np.count_nonzero(judged)),
            correct=int(np.count_nonzero(judged & (host.column("prediction") == labels))),
            kept=int(np.count_nonzero(host.keep)),
        )
        if finite:
            weight = host.column("weight")[judged]
            totals.weight = float(weight.sum())
            totals.loss = float((weight * np.where(weight > 0, host.column("loss")[judged], 0.0)).sum())
        if self._right is not None:
            right = np.where(valid, self._right[ordinals], -1)
            totals.shown_known, totals.shown_right = int((right >= 0).sum()), int((right == 1).sum())
            kept = right[host.keep]
            totals.kept_known, totals.kept_right = int((kept >= 0).sum()), int((kept == 1).sum())
        if self._bands is not None and setting.gate is not None:
            bands = self._bands[labels]
            totals.band_samples = np.bincount(bands[valid], minlength=self._band_count)
            totals.band_kept = np.bincount(bands[host.keep], minlength=self._band_count)
        return totals

    def _check_places(self, host: HostRows) -> None:
        places = {(int(phase), int(step)) for _, phase, step in host.headers}
        if len(places) > 1:
            found = ", ".join(f"phase {phase} step {step}" for phase, step in sorted(places))
            raise TrainError(f"ranks are at different places: {found}; resume from the last checkpoint on all of them")

    def _seed_dropout(self, seed: int) -> None:
        # Not torch.manual_seed, which formats a stack trace at each call where CUDA is not in use.
        torch.default_generator.manual_seed(seed)
        if self._world.device.type == "cuda":
            torch.cuda.manual_seed(seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """A rank's part of a global batch, and what is asked of it."""

    images: Tensor
    """(n, 3, S, S) on the device."""
    slots: Slots
    """On the device."""
    valid: Tensor
    """(n,) on the host, as the next three."""
    ordinals: Tensor
    labels: Tensor
    held: Tensor
    """(n,) float64 confidence by the past."""
    setting: StepSetting
    place: Place
    header: Tensor
    """(1, H) what this rank tells all others."""
    limits: Tensor | None
    """(K,) of the guard, on the host."""

    def limits_on(self, device: torch.device) -> Tensor | None:
        """The guard's limits on a device."""
        return None if self.limits is None else self.limits.to(device, non_blocking=True)

    def host_slots(self) -> Slots:
        """What a decision on the host needs; its weights are not the classes', and no denominator comes from it."""
        none = torch.zeros(len(self.ordinals))
        ordinals = self.ordinals.where(self.valid, -1)
        return Slots(labels=self.labels, ordinals=ordinals, weights=none, label_sum=none, seen=none)


def _padded(keep: Tensor, held: Tensor) -> Tensor:
    """Places of the kept, rising; to the next of the few sizes filled up with the most confident of the others.

    keep: (n,) bool, held: (n,) float64, on the host.
    """
    size = -(-len(keep) // _SIZES)
    count = min(len(keep), max(_SMALLEST * size, -(-int(keep.sum()) // size) * size))
    first = torch.where(keep, torch.inf, held.nan_to_num(0.0)).argsort(descending=True, stable=True)[:count]
    return first.sort().values
