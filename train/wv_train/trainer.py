"""The training loop: a recipe's phases in order, from any position to the end.

It counts, saves, validates and stops; the numbers of a step are made in `step`, files are named in `run_directory`.
Everything that decides a weight is a function of the position, so a resumed run is the run.
"""

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wv_loader import Batch, Loader
from wv_train.checkpoint import Checkpoint, Position
from wv_train.distributed import World
from wv_train.ema import WeightAverage
from wv_train.errors import NonFiniteBatch, NonFiniteLossError
from wv_train.evaluate import evaluate
from wv_train.guard import ClassGuard
from wv_train.judge import StepSetting
from wv_train.keeper import CheckpointKeeper
from wv_train.learner import Learner
from wv_train.ledger import Ledger
from wv_train.meter import Meter
from wv_train.models import freeze_backbone
from wv_train.new_head import draw_head
from wv_train.optim import learning_rate, make_optimizer, set_learning_rate
from wv_train.passes import PassChoice
from wv_train.phase_overlays import PhaseOverlays
from wv_train.phase_plan import PhasePlan
from wv_train.plateau import PlateauDetector
from wv_train.progress import RunLog
from wv_train.recipe import Phase, Recipe
from wv_train.run_directory import RunDirectory
from wv_train.signals import Stopped, StopSignals
from wv_train.skipping import Skipping
from wv_train.step import Place, StepResult, TrainStep
from wv_train.table import to_table
from wv_train.target_memory import TargetMemory
from wv_train.totals import Totals
from wv_train.training_rows import TrainingRows


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What the trainer knows of the data: how to open loaders, and who the samples are."""

    open_phase: Callable[[int], Loader]
    open_validation: Callable[[], Loader] | None
    samples: int
    classes: list[str]
    manifest_digest: str
    bands: list[int | None]
    """Of each class."""
    open_overlays: Callable[[int], PhaseOverlays] | None = None
    """What they give a phase; None: nothing to any."""
    overlays: dict[str, str] = field(default_factory=dict)
    """Name of each → its checksum, for the checkpoint."""
    right: NDArray[np.int8] | None = None
    """(N,) 1: the label is right, 0: wrong, −1: not known. None without a truth, and on other ranks than 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How a rank works through a step; nothing here changes what is learned but by the order of sums."""

    micro_batch: int | None = None
    """Samples that go through the model at once; None: this rank's whole part of the batch."""
    compile_model: bool = False


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
        pace: Pace,
    ) -> None:
        self.recipe, self.plans, self.model, self.data, self.world = recipe, plans, model, data, world
        self.position = Position()
        self.ledger = Ledger(data.samples)
        self._run, self._log = run, log
        self._keeper = CheckpointKeeper(run, keep_best=max(1, recipe.keep_best)) if world.is_main else None
        self._optimizer = make_optimizer(model, recipe.optimizer)
        self._average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
        self._guard, self._passes = ClassGuard(plans[0].outputs), PassChoice()
        self._learner = Learner(
            model, world=world, amp=recipe.amp, micro_batch=pace.micro_batch, compile_model=pace.compile_model
        )
        skips = any(phase.gate is not None and phase.gate.skip_visits for phase in recipe.phases)
        self._skipping = Skipping(data.samples, recipe.seed) if skips else None
        self._bands = sorted(set(data.bands), key=lambda band: (band is not None, band))
        self._rows = TrainingRows(log, world, self._bands)
        self._step = self._make_step(plans[0])
        self._plateau = PlateauDetector(recipe.phases[0].plateau)
        self._meter = Meter()
        self._best_top1: float | None = None
        self._nonfinite: list[NonFiniteBatch] = []
        self._loader_state: dict[str, object] | None = None
        self._signals = StopSignals()
        self._last_save = time.monotonic()

    def train(self) -> None:
        """Raises Stopped after a signal, NonFiniteLossError, CheckpointError (nowhere to save)."""
        with self._signals, closing(self._keeper) if self._keeper else nullcontext():
            while self.position.phase < len(self.plans):
                self._train_phase(self.plans[self.position.phase])

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where the checkpoint was taken; it must belong to this data and recipe.

        The model must have the head of the phase that comes next, or of the last one.
        """
        self.position = Position(**checkpoint.position)
        plan = self.plans[min(self.position.phase, len(self.plans) - 1)]
        self._guard = ClassGuard(plan.outputs)
        self._step = self._make_step(plan)
        self.model.load_state_dict(checkpoint.model)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        if checkpoint.scaler:
            self._learner.scaler.load_state_dict(checkpoint.scaler)
        self.ledger.load_state(checkpoint.ledger)
        self._loader_state = checkpoint.loader
        self._meter.totals = Totals.from_state(checkpoint.totals)
        self._restore_own(checkpoint)
        if self.position.phase < len(self.plans):
            self._plateau = PlateauDetector(self.plans[self.position.phase].phase.plateau)
            self._plateau.load_state_dict(checkpoint.plateau)
        self._best_top1 = checkpoint.best_top1
        if self._keeper:
            self._keeper.restore(checkpoint)
            self.ledger.save(self._run.ledger, self.data.manifest_digest, step=self.position.step)

    def _restore_own(self, checkpoint: Checkpoint) -> None:
        """What `_own_state` gave, and the averaged weights."""
        own = checkpoint.trainer
        if "guard" not in own:  # of format 1, when there was none of these
            return
        self._guard.load_state(own["guard"])
        self._passes.load_state(own["passes"])
        self._nonfinite = [NonFiniteBatch(step=step, ordinals=ordinals) for step, ordinals in own["nonfinite"]]
        self._step.grad_norm_sum.fill_(own["grad_norm_sum"])
        if self._skipping is not None:
            self._skipping.load_state(own["skipping"])
        if (targets := own.get("targets")) is not None:  # none before a phase with elr, and in older checkpoints
            self._begin_targets(classes=targets["classes"]).load_state(targets)
        if self._average is not None and checkpoint.ema is not None:
            self._average.load_state(checkpoint.ema, own["ema_updates"])

    def _own_state(self) -> dict[str, Any]:
        return {
            "guard": self._guard.state(),
            "passes": self._passes.state(),
            "nonfinite": [(batch.step, batch.ordinals) for batch in self._nonfinite],
            "grad_norm_sum": float(self._step.grad_norm_sum),
            "ema_updates": self._average.updates if self._average else 0,
            **({"skipping": self._skipping.state()} if self._skipping else {}),
            "targets": self._step.targets.state() if self._step.targets else None,
            "overlay_checksums": self.data.overlays,
        }

    def _begin_targets(self, *, classes: int) -> TargetMemory:
        """The memory of elr, empty where the phases before had none or other classes."""
        targets, elr = self._step.targets, self.recipe.elr
        if targets is None or targets.classes != classes:
            assert elr is not None  # asked for by its phases
            targets = TargetMemory(self.data.samples, classes=classes, top_k=elr.elr_top_k)
            self._step.targets = targets
        return targets

    def _make_step(self, plan: PhasePlan, targets: TargetMemory | None = None) -> TrainStep:
        """For the model, optimiser and average of now. Bands and truth are the classes', not those of other labels."""
        classes = plan.phase.labels is None
        return TrainStep(
            learner=self._learner,
            optimizer=self._optimizer,
            ledger=self.ledger,
            guard=self._guard,
            seed=self.recipe.seed,
            clip_norm=self.recipe.clip_norm,
            average=self._average,
            bands=np.array([self._bands.index(band) for band in self.data.bands]) if classes else None,
            right=self.data.right if classes else None,
            skipping=self._skipping,
            targets=targets,
        )

    def _begin_phase(self, plan: PhasePlan) -> None:
        """Before the checkpoint at a phase's border, so that a checkpoint has the head of the phase that follows."""
        self._plateau = PlateauDetector(plan.phase.plateau)
        if not plan.new_head:
            return
        targets = self._step.targets
        if plan.phase.labels != self.plans[self.position.phase - 1].phase.labels:
            self.ledger.clear()  # its confidences were in other labels
            self._guard, targets = ClassGuard(plan.outputs), None
        freeze_backbone(self.model, False)
        name, seed = self.recipe.model, self.recipe.seed
        draw_head(self.model, name, plan.outputs, seed=seed, phase_index=self.position.phase)
        self._learner.model_changed()
        self._optimizer = make_optimizer(self.model, self.recipe.optimizer)
        self._average = WeightAverage(self.model, self.recipe.ema_decay) if self.recipe.ema_decay else None
        self._step = self._make_step(plan, targets)

    def _train_phase(self, plan: PhasePlan) -> None:
        self._rows.at(self.position, plan.phase)
        if plan.phase.loss.kind == "elr":
            self._begin_targets(classes=plan.outputs)
        self._learner.begin_phase(frozen=plan.phase.backbone_factor == 0)
        weights = torch.from_numpy(plan.weights).to(self.world.device)
        prior = None if plan.prior is None else torch.from_numpy(plan.prior).to(self.world.device)
        overlays = self.data.open_overlays(self.position.phase) if self.data.open_overlays else None
        setting = StepSetting(
            class_weights=weights,
            gate=plan.phase.gate,
            threshold=0.0,
            label_smoothing=plan.phase.label_smoothing,
            denominator=plan.phase.denominator,
            prior=prior,
            mixup_alpha=plan.phase.mixup_alpha,
            streams=plan.streams,
            loss=plan.phase.loss,
            overlays=overlays,
        )
        with closing(self.data.open_phase(self.position.phase)) as loader:
            if self._loader_state is None:
                self._rows.event("start")
            else:
                loader.load_state_dict(self._loader_state, skip=self._skipping.mask if self._skipping else None)
            self._meter.opened(loader.stats.wait_seconds_total)
            while not self._phase_done(plan):
                self._begin_epoch(plan, loader)
                epoch, before = self.position.epoch, loader.stats.snapshot()
                self._train_epoch(plan, loader, setting)
                self._rows.loading(epoch, loader.stats.since(before))
            self._log_steps(plan, loader)
        self._validate(plan.phase)
        settled = plan.phase.until == "plateau" and self._plateau.reached
        self._rows.event("end", reason="plateau" if settled else "steps")
        self.position.phase += 1
        self.position.phase_step = self.position.epoch = self.position.epoch_step = 0
        self._loader_state = None
        self._passes = PassChoice()
        if self._skipping is not None:
            self._skipping.begin_phase()
            self._guard.shown_share[:] = 1.0
        if self.position.phase < len(self.plans):
            self._begin_phase(self.plans[self.position.phase])
        self._save()

    def _begin_epoch(self, plan: PhasePlan, loader: Loader) -> None:
        """Go to the position's epoch, without what the gate has long held far under it; in the middle of one, on."""
        gate, position, skipping = plan.phase.gate, self.position, self._skipping
        if skipping is None or gate is None or not gate.skip_visits:
            loader.set_epoch(position.epoch)
            return
        labels, counts = loader.labels, loader.class_counts
        begins = position.epoch_step == 0
        if begins:
            now = gate.over(plan.steps).threshold(position.phase_step)
            skipping.choose(
                self.ledger,
                gate,
                threshold=now,
                labels=labels,
                class_counts=counts,
                phase=position.phase,
                epoch=position.epoch,
            )
        loader.set_epoch(position.epoch, skip=skipping.mask)
        left_out = loader.left_out()
        row = skipping.opened(left_out, loader.epoch_samples, self.data.right)
        self._guard.shown_share = skipping.shown_share(labels, counts)
        if begins:
            self.ledger.skip(left_out)
            self._rows.row("skip", **row)
        if self._log:
            info = {"phase": plan.phase.name, "epoch": position.epoch, "step": position.step}
            skipping.save(self._run.skipped, self.data.manifest_digest, info)

    def _train_epoch(self, plan: PhasePlan, loader: Loader, setting: StepSetting) -> None:
        """The rest of an epoch, or of the phase if that is shorter."""
        position = self.position
        self._meter.go()
        for batch in loader:
            # Before the step, so that a run resumed here still validates.
            self._validate_if_due(plan.phase)
            result = self._train_batch(plan, batch, setting)
            position.phase_step += 1
            position.epoch_step += 1
            position.step += 1
            position.samples += result.totals.samples
            self._meter.add(result.totals)
            if self._keeper:
                self._keeper.check()
            self._judge_loss(plan.phase, result)
            if position.step % self.recipe.log_every_steps == 0:
                self._log_steps(plan, loader)
            if self._log:
                self._log.screen.step(plan.phase.name, position.step, position.phase_step)
            if result.stop_signal or self._save_due():
                self._loader_state = loader.state_dict()
                self._save()
            if result.stop_signal:
                raise Stopped(result.stop_signal)
            if self._phase_done(plan):
                return
            self._meter.go()
        position.epoch, position.epoch_step = position.epoch + 1, 0

    def _train_batch(self, plan: PhasePlan, batch: Batch, setting: StepSetting) -> StepResult:
        phase, step = plan.phase, self.position.phase_step
        set_learning_rate(self._optimizer, phase, learning_rate(phase, step, plan.steps))
        threshold = phase.gate.over(plan.steps).threshold(step) if phase.gate else 0.0
        if phase.gate and self._skipping:
            threshold = self._skipping.threshold(phase.gate, threshold)
        now = replace(
            setting,
            threshold=threshold,
            two_passes=self._passes.two(phase.gate),
        )
        place = Place(phase=self.position.phase, step=self.position.step)
        result = self._step(batch, now, place, stop_signal=self._signals.received)
        self._passes.update(result.totals)
        return result

    def _judge_loss(self, phase: Phase, result: StepResult) -> None:
        """Note a loss that is no number. Raises NonFiniteLossError after too many in a row."""
        if result.finite:
            self._nonfinite.clear()
            self._plateau.update(result.totals.mean_loss)
            return
        step = self.position.step - 1
        self._nonfinite.append(NonFiniteBatch(step=step, ordinals=[int(o) for o in result.ordinals if o >= 0]))
        found = len(self._nonfinite)
        if found < self.recipe.max_nonfinite_steps:
            self._rows.warn(f"the loss of step {step:,} is NaN or infinite; nothing was learned from it")
            return
        times = f" {found} times in a row" if found > 1 else ""
        raise NonFiniteLossError(
            f"step {step:,}, phase {phase.name}: the loss is NaN or infinite{times}; "
            f"lower phases.{phase.name}.lr or lengthen its warmup_steps",
            batches=self._nonfinite,
        )

    def _phase_done(self, plan: PhasePlan) -> bool:
        if plan.phase.until == "plateau" and self._plateau.reached:
            return True
        return self.position.phase_step >= plan.steps

    def _save_due(self) -> bool:
        if self._nonfinite:  # the weights may be on their way out
            return False
        every = self.recipe.checkpoint_every_steps
        if every and self.position.step % every == 0:
            return True
        return time.monotonic() - self._last_save > 60 * self.recipe.checkpoint_every_minutes

    def _save(self) -> None:
        """Rank 0 writes last.pt and the ledger in the background; no rank waits for it before its next step."""
        self._last_save = time.monotonic()
        if self._keeper:
            self._keeper.save_last(self._checkpoint(), self.ledger, self.data.manifest_digest, self.position.step)
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
            scaler=self._learner.scaler.state_dict(),
            ema=self._average.state() if self._average else None,
            trainer=self._own_state(),
            loader=self._loader_state,
            ledger=self.ledger.state(),
            totals=self._meter.totals.state(),
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
            self._meter.go()

    def _validate(self, phase: Phase) -> None:
        """Evaluate on every rank; rank 0 keeps the best weights by top-1. Other labels are not evaluated."""
        if self.data.open_validation is None or phase.labels is not None:
            return
        with closing(self.data.open_validation()) as loader:
            overall = evaluate(self.model, loader, self.world).overall()
            if self._average is not None:
                averaged = evaluate(self._average.model, loader, self.world).overall()
                overall |= {f"ema_{name}": value for name, value in averaged.items() if name != "samples"}
        self._learner.begin_phase(frozen=phase.backbone_factor == 0)  # evaluation has changed the mode of its layers
        self._rows.row("val", **overall)
        score = overall.get("ema_top1", overall["top1"])
        self._best_top1 = score if self._best_top1 is None else max(score, self._best_top1)
        if self._keeper and self.recipe.keep_best and self._keeper.wants(score):
            self._keeper.save_best(self._checkpoint(), score, self.position.step)

    def _log_steps(self, plan: PhasePlan, loader: Loader) -> None:
        """Write the row of the steps since the last one, and begin anew."""
        if not self._meter.totals.steps:
            return
        waited_s, norms = loader.stats.wait_seconds_total, self._step.grad_norm_sum
        self._rows.steps(plan, self._meter, waited_s, float(norms) if self.recipe.clip_norm else None)
        norms.zero_()
        self._meter.begin(waited_s)
