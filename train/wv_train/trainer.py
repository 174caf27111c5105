"""The training loop: a recipe's phases in order, from any position to the end.

It counts, saves, validates and stops; the numbers of a step are made in `step`, files are named in `run_directory`.
Everything that decides a weight is a function of the position, so a resumed run is the run.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wv_loader import Batch, Loader, LoaderStats
from wv_train.checkpoint import Checkpoint, Position
from wv_train.distributed import World
from wv_train.errors import NonFiniteLossError
from wv_train.evaluate import evaluate
from wv_train.gate import GateSchedule
from wv_train.ledger import Ledger
from wv_train.losses import class_weights
from wv_train.optim import learning_rate, make_optimizer, set_learning_rate
from wv_train.plateau import PlateauDetector
from wv_train.progress import RunLog
from wv_train.recipe import Phase, Recipe
from wv_train.run_directory import RunDirectory
from wv_train.signals import Stopped, StopSignals
from wv_train.step import StepResult, StepSetting, Totals, TrainStep
from wv_train.table import to_table

_SMALLEST_KEPT_FRACTION = 0.1
"""Under this the gate is more likely to collapse (it learns from little, so it believes little) than to choose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasePlan:
    """A phase with what its loader says about it."""

    phase: Phase
    steps: int
    """Optimiser steps, at most where it ends at a plateau."""
    exposure: NDArray[np.float64]
    """(K,) expected shows of each class in an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What the trainer knows of the data: how to open loaders, and who the samples are."""

    open_phase: Callable[[int], Loader]
    open_validation: Callable[[], Loader] | None
    samples: int
    classes: list[str]
    manifest_digest: str
    right: NDArray[np.int8] | None = None
    """(N,) 1: the label is right, 0: wrong, −1: not known. None without a truth, and on other ranks than 0."""


def plan_phase(phase: Phase, loader: Loader) -> PhasePlan:
    """Length and exposures of a phase, from its freshly opened loader."""
    steps = phase.steps or phase.max_steps or (phase.epochs or 0) * len(loader)
    return PhasePlan(phase=phase, steps=steps, exposure=loader.expected_exposure())


class Trainer:
    """One run in memory. `train` works until the end, a signal (Stopped) or an error."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        plans: list[PhasePlan],
        model: nn.Module,
        data: TrainingData,
        world: World,
        run: RunDirectory,
        log: RunLog | None,
    ) -> None:
        self.recipe, self.plans, self.model, self.data, self.world = recipe, plans, model, data, world
        self.position = Position()
        self.ledger = Ledger(data.samples)
        self._run, self._log = run, log
        self._optimizer = make_optimizer(model, recipe.optimizer)
        self._step = TrainStep(
            model=model, optimizer=self._optimizer, ledger=self.ledger, world=world, seed=recipe.seed, amp=recipe.amp
        )
        self._plateau = PlateauDetector(recipe.phases[0].plateau)
        self._totals = Totals()
        self._best_top1: float | None = None
        self._loader_state: dict[str, object] | None = None
        self._signals = StopSignals()
        self._last_save = time.monotonic()
        self._busy_s = self._mark = self._waited = 0.0

    def train(self) -> None:
        """Raises Stopped after a signal, NonFiniteLossError, CheckpointError (nowhere to save)."""
        self.model.train()
        with self._signals:
            while self.position.phase < len(self.plans):
                self._train_phase(self.plans[self.position.phase])

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where the checkpoint was taken; it must belong to this data and recipe."""
        self.position = Position(**checkpoint.position)
        self.model.load_state_dict(checkpoint.model)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        if checkpoint.scaler:
            self._step.scaler.load_state_dict(checkpoint.scaler)
        self.ledger.load_state(checkpoint.ledger)
        self._loader_state = checkpoint.loader
        self._totals = Totals(**checkpoint.totals)
        if self.position.phase < len(self.plans):
            self._plateau = PlateauDetector(self.plans[self.position.phase].phase.plateau)
            self._plateau.load_state_dict(checkpoint.plateau)
        self._best_top1 = checkpoint.best_top1
        if self.world.is_main:
            self.ledger.save(self._run.ledger, self.data.manifest_digest, step=self.position.step)

    def _train_phase(self, plan: PhasePlan) -> None:
        gate = plan.phase.gate.schedule(plan.steps) if plan.phase.gate else None
        weights = torch.from_numpy(class_weights(plan.phase.class_weights, plan.exposure)).to(self.world.device)
        with closing(self.data.open_phase(self.position.phase)) as loader:
            if self._loader_state is None:
                self._event("start")
            else:
                loader.load_state_dict(self._loader_state)
            self._waited = loader.stats.wait_seconds_total
            while not self._phase_done(plan):
                loader.set_epoch(self.position.epoch)
                epoch, before = self.position.epoch, loader.stats.snapshot()
                self._train_epoch(plan, loader, gate, weights)
                self._log_loading(plan.phase, epoch, loader.stats.since(before))
            self._log_totals(plan, loader)
        self._validate(plan.phase)
        self._event("end")
        self.position.phase += 1
        self.position.phase_step = self.position.epoch = self.position.epoch_step = 0
        self._loader_state = None
        if self.position.phase < len(self.plans):
            self._plateau = PlateauDetector(self.plans[self.position.phase].phase.plateau)
        self._save()

    def _train_epoch(self, plan: PhasePlan, loader: Loader, gate: GateSchedule | None, weights: torch.Tensor) -> None:
        """The rest of an epoch, or of the phase if that is shorter."""
        position = self.position
        self._mark = time.perf_counter()
        for batch in loader:
            # Before the step, so that a run resumed here still validates.
            self._validate_if_due(plan.phase)
            result = self._train_batch(plan, batch, gate, weights)
            self._plateau.update(result.totals.mean_loss)
            self._totals.add(result.totals)
            position.phase_step += 1
            position.epoch_step += 1
            position.step += 1
            position.samples += result.totals.samples
            self._busy_s += time.perf_counter() - self._mark
            if position.step % self.recipe.log_every_steps == 0:
                self._log_totals(plan, loader)
            if self._log:
                self._log.screen.step(plan.phase.name, position.step, position.phase_step)
            if result.stop_signal or self._save_due():
                self._loader_state = loader.state_dict()
                self._save()
            if result.stop_signal:
                raise Stopped(result.stop_signal)
            if self._phase_done(plan):
                return
            self._mark = time.perf_counter()
        position.epoch, position.epoch_step = position.epoch + 1, 0

    def _train_batch(
        self, plan: PhasePlan, batch: Batch, gate: GateSchedule | None, weights: torch.Tensor
    ) -> StepResult:
        phase, step = plan.phase, self.position.phase_step
        set_learning_rate(self._optimizer, phase, learning_rate(phase, step, plan.steps))
        setting = StepSetting(
            class_weights=weights,
            gate=phase.gate,
            threshold=gate.threshold(step) if gate else 0.0,
            label_smoothing=phase.label_smoothing,
            denominator=phase.denominator,
        )
        result = self._step(batch, setting, step=self.position.step, stop_signal=self._signals.received)
        if not result.finite:
            raise NonFiniteLossError(
                f"step {self.position.step}, phase {phase.name}: the loss is NaN or infinite; "
                f"lower phases.{phase.name}.lr or lengthen its warmup_steps",
                ordinals=[int(ordinal) for ordinal in result.ordinals if ordinal >= 0],
            )
        return result

    def _phase_done(self, plan: PhasePlan) -> bool:
        if plan.phase.until == "plateau" and self._plateau.reached:
            return True
        return self.position.phase_step >= plan.steps

    def _save_due(self) -> bool:
        every = self.recipe.checkpoint_every_steps
        if every and self.position.step % every == 0:
            return True
        return time.monotonic() - self._last_save > 60 * self.recipe.checkpoint_every_minutes

    def _save(self) -> None:
        """Rank 0 writes last.pt and the ledger; no rank waits for it before its next step."""
        self._last_save = time.monotonic()
        if self.world.is_main:
            self._checkpoint().save(self._run.last)
            self.ledger.save(self._run.ledger, self.data.manifest_digest, step=self.position.step)
        if self._log:
            self._log.screen.saved(self.position.step)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            manifest_digest=self.data.manifest_digest,
            classes=self.data.classes,
            recipe=to_table(self.recipe),
            position=asdict(self.position),
            model=self.model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            scaler=self._step.scaler.state_dict(),
            loader=self._loader_state,
            ledger=self.ledger.state(),
            totals=asdict(self._totals),
            plateau=self._plateau.state_dict(),
            metrics_bytes=self._log.sync() if self._log else 0,
            best_top1=self._best_top1,
            torch_threads=torch.get_num_threads(),
            world_size=self.world.size,
        )

    def _validate_if_due(self, phase: Phase) -> None:
        position, recipe = self.position, self.recipe
        by_steps = recipe.validate_every_steps and position.phase_step % recipe.validate_every_steps == 0
        new_epoch = position.epoch_step == 0
        by_epochs = recipe.validate_every_epochs and new_epoch and position.epoch % recipe.validate_every_epochs == 0
        if position.phase_step > 0 and (by_steps or by_epochs):
            self._validate(phase)
            self._mark = time.perf_counter()

    def _validate(self, phase: Phase) -> None:
        """Evaluate on every rank; rank 0 keeps the best weights by top-1."""
        if self.data.open_validation is None:
            return
        with closing(self.data.open_validation()) as loader:
            overall = evaluate(self.model, loader, self.world).overall()
        self._write({"kind": "val", **self._where(phase), **overall})
        if self._best_top1 is None or overall["top1"] > self._best_top1:
            self._best_top1 = overall["top1"]
            if self.world.is_main:  # for evaluation: the loader's position in it may be older
                self._checkpoint().save(self._run.best)

    def _log_totals(self, plan: PhasePlan, loader: Loader) -> None:
        """Write the row of the steps since the last one, and begin anew."""
        totals, phase = self._totals, plan.phase
        if not totals.steps:
            return
        step = self.position.phase_step - 1
        rate = learning_rate(phase, step, plan.steps)
        waited = loader.stats.wait_seconds_total
        self._write(
            {
                "kind": "train",
                **self._where(phase),
                "loss": totals.mean_loss,
                "top1": totals.correct / max(1, totals.samples),
                "kept_fraction": totals.kept / max(1, totals.samples),
                "zero_steps": totals.zero_steps,
                "threshold": phase.gate.schedule(plan.steps).threshold(step) if phase.gate else 0.0,
                "lr_backbone": rate * phase.backbone_factor,
                "lr_head": rate * phase.head_factor,
                "images_per_s": totals.samples / self._busy_s if self._busy_s > 0 else 0.0,
                "wait_s": waited - self._waited,
                "samples": self.position.samples,
            }
        )
        if phase.gate and totals.kept < _SMALLEST_KEPT_FRACTION * totals.samples and self._log:
            self._log.screen.say(
                f"warning: step {self.position.step:,}: the gate keeps {totals.kept:,} of {totals.samples:,} samples; "
                f'lower phases.{phase.name}.gate.start, or gate a share of each batch (gate.unit = "share")'
            )
        self._totals, self._busy_s, self._waited = Totals(), 0.0, waited

    def _log_loading(self, phase: Phase, epoch: int, here: LoaderStats) -> None:
        """Say which stage was slow in the rest of an epoch that was just trained, over all ranks."""
        if not here.batches:  # resumed at the epoch's end
            return
        row = torch.tensor([here.as_row()], dtype=torch.float64, device=self.world.device)
        rows = self.world.all_gather(row).flatten(0, 1).tolist()  # (W, 1, F) → (W, F)
        whole = LoaderStats.from_rows(rows)
        self._write({"kind": "loader", **self._where(phase), "epoch": epoch, **whole.as_dict()})
        if self._log:
            line = f"phase {phase.name}, epoch {epoch}: {whole}"
            if self.world.size > 1:  # all wait for the slowest, whose loader alone may be slow
                ranks = [LoaderStats.from_rows([row]) for row in rows]
                worst = max(range(len(ranks)), key=lambda rank: ranks[rank].wait_fraction)
                line += f"; rank {worst} waited most: {ranks[worst].wait_fraction:.1%}, {ranks[worst].verdict}"
            self._log.screen.say(line)

    def _event(self, event: str) -> None:
        phase = self.plans[self.position.phase].phase
        self._write({"kind": "phase", "step": self.position.step, "phase": phase.name, "event": event})

    def _where(self, phase: Phase) -> dict[str, object]:
        return {"step": self.position.step, "phase": phase.name, "epoch": self.position.epoch}

    def _write(self, row: dict[str, object]) -> None:
        if self._log:
            self._log.row(row)
