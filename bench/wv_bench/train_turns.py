"""Turns of `wv-bench train`: batches given out under a clock, to a bare loop or to the trainer of wv-train itself.

The trainer is the real one, with its loop, run folder and metrics. Whatever stands where its loader would be gives it
an epoch of batches for each of its turns, and lets the others have theirs between two epochs.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from wv_bench.nvml import Gpu
from wv_bench.train_report import Row
from wv_bench.train_step import LEARNING_RATE, OPEN_GATE, Step, bench_model
from wv_loader import Batch, Loader, LoaderStats
from wv_train.distributed import World
from wv_train.phase_plan import PhasePlan
from wv_train.progress import RunLog, Screen
from wv_train.recipe import Phase, Recipe
from wv_train.run_directory import RunDirectory
from wv_train.trainer import Pace, Trainer, TrainingData

_NEVER_MINUTES = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """How a turn is timed: `steps` steps after `warmup` ones; a GPU is waited for at both ends and nowhere between."""

    warmup: int
    steps: int
    device: torch.device
    gpu: Gpu | None = None

    def timed(self, batches: Iterator[Batch], row: Row) -> Iterator[Batch]:
        """The batches of a turn; whoever takes the last one and asks for more has its time entered in `row`."""
        for _ in range(self.warmup):
            yield next(batches)
        finish(self.device)
        with ExitStack() as stack:
            used = [] if self.gpu is None else stack.enter_context(self.gpu.watch(lambda: {os.getpid()}))
            images, waited_s = 0, 0.0
            cpu_s, started = time.process_time(), time.perf_counter()
            for _ in range(self.steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited_s += time.perf_counter() - asked
                images += len(batch.images)
                yield batch
            finish(self.device)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        row.add(images=images, seconds=seconds, waited_s=waited_s, cpu_s=cpu_s, used=used)


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A contestant: where its batches come from, and what is done with each; None: the trainer trains on it."""

    row: Row
    batches: Iterator[Batch]
    step: Step | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is trained."""

    model: str
    classes: int
    samples: int
    """N of the ledger."""
    batch_size: int
    size_px: int
    amp: str
    device: torch.device


def run_turns(order: Iterator[Turn], subject: Subject, clock: Clock, work: Path, stats: LoaderStats | None) -> None:
    """All turns, one after the other.

    Args:
        order: the turns; the trainer's among them are epochs of one run.
        subject: what is trained.
        clock: for all alike.
        work: folder of the trainer's run.
        stats: of the loader that batches come from, which the trainer reports; None: there is none.
    """
    place = _LoadersPlace(order, clock, stats or LoaderStats())
    trainer, log = _trainer(place, subject, work)
    try:
        with (work / "screen.txt").open("w") as screen, redirect_stdout(screen), redirect_stderr(screen):
            trainer.train()
    except _NoMoreTurns:
        pass
    finally:
        log.close()


def finish(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _NoMoreTurns(Exception):  # noqa: N818  # not an error: the way out of a phase without an end
    pass


class _LoadersPlace:
    """Stands where the trainer's loader would be."""

    def __init__(self, order: Iterator[Turn], clock: Clock, stats: LoaderStats) -> None:
        self.stats = stats
        self._order, self._clock = order, clock
        self._batches: Iterator[Batch] = iter(())

    def set_epoch(self, _epoch: int) -> None:
        """Turns of others until it is the trainer's. Raises _NoMoreTurns."""
        for turn in self._order:
            self._batches = self._clock.timed(turn.batches, turn.row)
            if turn.step is None:
                return
            for batch in self._batches:
                turn.step(batch)
        raise _NoMoreTurns

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    def close(self) -> None:
        """The loader is closed by who opened it."""


def _trainer(place: _LoadersPlace, subject: Subject, work: Path) -> tuple[Trainer, RunLog]:
    """One phase without end, with gate, guard, ledger and rows of metrics; nothing is saved or validated."""
    classes, steps = subject.classes, 1 << 40
    phase = Phase(name="bench", lr=LEARNING_RATE, steps=steps, gate=OPEN_GATE)
    recipe = Recipe(
        model=subject.model,
        batch_size=subject.batch_size,
        size_px=subject.size_px,
        phases=(phase,),
        amp=subject.amp,  # type: ignore[arg-type]  # one of AMP
        checkpoint_every_minutes=_NEVER_MINUTES,
    )
    plan = PhasePlan(
        phase=phase,
        steps=steps,
        exposure=np.ones(classes),
        streams=1,
        weights=np.ones(classes, dtype=np.float32),
        prior=None,
    )
    open_phase: Callable[[int], Any] = lambda _: place  # noqa: E731  # the trainer wants a function
    data = TrainingData(
        open_phase=cast("Callable[[int], Loader]", open_phase),
        open_validation=None,
        samples=subject.samples,
        classes=[str(class_id) for class_id in range(classes)],
        manifest_digest="",
        bands=[0] * classes,
    )
    run = RunDirectory(work / "run")
    run.path.mkdir(parents=True)
    log = RunLog(run, Screen(), step=0)
    world = World(rank=0, size=1, device=subject.device)
    model = bench_model(subject.model, classes, subject.device)
    trainer = Trainer(recipe=recipe, plans=[plan], model=model, data=data, world=world, run=run, log=log, pace=Pace())
    return trainer, log
