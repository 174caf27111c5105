"""`wv-bench train --components`: what each part of wv-train's step costs, alone, on the objects and shapes of a step.

Nothing is wrapped: a part is called again and again between two looks at the clock, and the whole step besides. On a
GPU the host's parts (ledger, guard, counting) run while the device goes backward; they are timed as if they did not.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wv_bench.loader_report import about as about_lines
from wv_bench.train_report import verdict, verdict_line
from wv_bench.train_step import LEARNING_RATE, OPEN_GATE, full_step, setting_of, synthetic_batch
from wv_bench.train_turns import Clock, Subject, finish
from wv_loader import Batch
from wv_train.distributed import World
from wv_train.ema import WeightAverage
from wv_train.gathered import Gathered
from wv_train.judge import Slots, StepSetting, cross_entropy, decide, judged_rows
from wv_train.passes import PassChoice
from wv_train.plateau import PlateauDetector
from wv_train.progress import RunLog, Screen
from wv_train.recipe import Phase, PlateauConfig, Recipe
from wv_train.run_directory import RunDirectory
from wv_train.step import Place, TrainStep
from wv_train.totals import Totals, train_row

GATE, LEDGER = "gate", "ledger"
MOST_OF_A_STEP = 0.01
"""Largest share of a step of the gate, and of the ledger."""
STEP, BOTH, OURS, ASKED = "step", "a bare loop too", "wv-train", "wv-train, if asked for"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Something that is timed."""

    name: str
    whose: str
    """STEP, BOTH, OURS or ASKED."""
    seconds: Callable[[int], float]
    """Of so many calls, on average."""


def components(
    subject: Subject, world: World, batches: Iterator[Batch] | None, clock: Clock, *, repeats: int
) -> dict[str, Any]:
    """Microseconds of each part, minimum and median over rounds, and its share of the median step.

    Args:
        subject: what is trained; its batch is the global one.
        world: alone, or ranks that torchrun started.
        batches: of the loader, endless; None: no data wait.
        clock: `steps` is how many calls are timed together.
        repeats: rounds.

    Raises:
        ModelError: no such model.
    """
    with tempfile.TemporaryDirectory(prefix="wv-bench-") as work:
        run = RunDirectory(Path(work) / "run")
        run.path.mkdir()
        log = RunLog(run, _Silent(), step=0)
        try:
            parts = _parts(subject, world, batches, log)
            for part in parts:
                part.seconds(1)
            found: dict[str, list[float]] = {part.name: [] for part in parts}
            for _ in range(repeats):
                for part in parts:
                    found[part.name].append(1e6 * part.seconds(clock.steps))
        finally:
            log.close()
    step_us = statistics.median(found[STEP])
    rows: list[dict[str, Any]] = [
        {
            "kind": "part",
            "name": part.name,
            "whose": part.whose,
            "us_median": statistics.median(found[part.name]),
            "us_min": min(found[part.name]),
            "share": statistics.median(found[part.name]) / step_us,
        }
        for part in parts
    ]
    shares = {row["name"]: row["share"] for row in rows}
    bars = {GATE: "gate (rows, decision)", LEDGER: "ledger (history, update)"}
    verdicts = [verdict(f"{bar}, share of a step", shares[name], most=MOST_OF_A_STEP) for name, bar in bars.items()]
    return {"rows": rows, "verdicts": verdicts, "ranks": world.size, "notes": []}


def _parts(subject: Subject, world: World, batches: Iterator[Batch] | None, log: RunLog) -> list[Part]:
    device, classes = world.device, subject.classes
    slots_of_rank = subject.batch_size // world.size
    batch = synthetic_batch(slots_of_rank, subject.size_px, classes, device)
    batch = replace(batch, ordinals=batch.ordinals + world.rank * slots_of_rank, host=None)
    step = full_step(subject.model, classes=classes, samples=subject.samples, amp=subject.amp, world=world)
    setting = setting_of(OPEN_GATE, classes, device)
    timed = _Timed(device)
    model = _ModelParts(step, batch, setting, timed)
    rest = _HostParts(step, batch, setting, world, subject, log)
    average = WeightAverage(step.learner.model, 0.999)
    parameters = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]

    def part(name: str, whose: str, call: Callable[[], object]) -> Part:
        return Part(name=name, whose=whose, seconds=lambda calls: timed(call, calls))

    waiting: list[Part] = []
    if batches is not None:
        waiting = [Part(name="data wait", whose=BOTH, seconds=lambda n: _waited(batches, step, setting, n))]
    return [
        part(STEP, STEP, lambda: step(batch, setting, Place())),
        *waiting,
        part("normalise images", BOTH, lambda: step.learner.images(batch)),
        Part(name="forward, loss", whose=BOTH, seconds=lambda n: model(n)[0]),
        Part(name="backward", whose=BOTH, seconds=lambda n: model(n)[1]),
        Part(
            name="all-reduce of gradients", whose=BOTH, seconds=lambda n: model.all_reduce(n) if world.size > 1 else 0
        ),
        part("optimiser", BOTH, step.optimizer.step),
        part("all-gather of rows", OURS, rest.gather)
        if world.size > 1
        else Part(name="all-gather of rows", whose=OURS, seconds=lambda _: 0.0),
        part(GATE, OURS, rest.gate),
        part("guard", OURS, rest.guard),
        part(LEDGER, OURS, rest.ledger),
        part("counting, logging", OURS, rest.count),
        part("clip", ASKED, lambda: torch.nn.utils.clip_grad_norm_(parameters, 1e9)),
        part("EMA", ASKED, lambda: average.update(step.learner.model)),
    ]


class _Timed:
    """Mean seconds of a call, a GPU being waited for at both ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, call: Callable[[], object], calls: int) -> float:
        finish(self._device)
        started = time.perf_counter()
        for _ in range(calls):
            call()
        finish(self._device)
        return (time.perf_counter() - started) / calls


class _ModelParts:
    """Forward with loss, and backward, which needs a forward pass before it; under DDP with and without ranks."""

    def __init__(self, step: TrainStep, batch: Batch, setting: StepSetting, timed: _Timed) -> None:
        self._learner, self._setting, self._timed = step.learner, setting, timed
        self._images, self._labels = step.learner.images(batch), batch.labels

    def __call__(self, calls: int) -> tuple[float, float]:
        with self._learner.apart():
            return self._each(calls)

    def all_reduce(self, calls: int) -> float:
        """What summing up over ranks adds to a backward pass."""
        apart = self(calls)[1]
        return self._each(calls)[1] - apart

    def _each(self, calls: int) -> tuple[float, float]:
        forward_s = backward_s = 0.0
        losses: list[Tensor] = []
        for _ in range(calls):
            losses.clear()
            forward_s += self._timed(lambda: losses.append(self._loss()), 1)
            backward_s += self._timed(lambda: self._learner.backward(losses[0]), 1)
        return forward_s / calls, backward_s / calls

    def _loss(self) -> Tensor:
        return cross_entropy(self._learner.forward(self._images), self._labels, self._setting).mean()


class _HostParts:
    """What a step does beside the model, on the rows of a global batch."""

    def __init__(
        self, step: TrainStep, batch: Batch, setting: StepSetting, world: World, subject: Subject, log: RunLog
    ) -> None:
        self._step, self._setting, self._world, self._log = step, setting, world, log
        self._facts = batch.on_host()
        label_sum, seen = step.ledger.history(self._facts.ordinals)
        self._slots = Slots(
            labels=batch.labels,
            ordinals=batch.ordinals,
            weights=setting.class_weights[batch.labels],
            label_sum=label_sum.to(world.device),
            seen=seen.to(world.device),
        )
        self._logits = step.learner.look(step.learner.images(batch))
        self._losses = cross_entropy(self._logits, batch.labels, setting)
        self._header = torch.zeros((1, 3), dtype=torch.float64)
        self._rows = judged_rows(self._logits, self._losses, self._slots, setting)
        self._whole = world.all_gather(self._rows).flatten(0, 1)
        self._host = Gathered(self._whole, self._header, decide(self._whole, setting, None)).on_host()
        self._phase = Phase(name="bench", lr=LEARNING_RATE, steps=1, gate=OPEN_GATE)
        self._every = Recipe(model=subject.model, batch_size=1, size_px=1, phases=(self._phase,)).log_every_steps
        self._passes, self._plateau, self._totals = PassChoice(), PlateauDetector(PlateauConfig()), Totals()

    def gather(self) -> None:
        """The step's one collective."""
        self._world.all_gather(self._rows)

    def gate(self) -> None:
        """Confidences and a row for each sample, the decision on all rows, and their way to the host."""
        judged_rows(self._logits, self._losses, self._slots, self._setting)
        Gathered(self._whole, self._header, decide(self._whole, self._setting, None)).on_host()

    def guard(self) -> None:
        """Its limits, and taking in a batch."""
        self._step.guard.limits(OPEN_GATE.min_kept_fraction)
        self._step.guard.update(self._host.labels, self._host.column("held"), self._host.keep)

    def ledger(self) -> None:
        """A batch's history, and entering it."""
        host = self._host
        self._step.ledger.history(self._facts.ordinals)
        self._step.ledger.update(
            host.ordinals,
            label_conf=host.column("label_conf"),
            top1_conf=host.column("top1_conf"),
            prediction=host.column("prediction").astype(np.int64),
            kept=host.keep,
        )

    def count(self) -> None:
        """A step's counts, sums of the interval, plateau and passes; every so often a row of metrics."""
        totals = self._step._count(self._host, self._setting, finite=True, moves=True)  # its own, not a copy
        self._totals.add(totals)
        self._passes.update(totals)
        self._plateau.update(totals.mean_loss)
        if self._totals.steps == self._every:
            self._log.row({"kind": "train", "step": 1, "phase": "bench", **train_row(self._totals, [0])})
            self._totals = Totals()


class _Silent(Screen):
    """Rows go to files alone."""

    def row(self, row: dict[str, Any]) -> None:
        """Not shown."""


def _waited(batches: Iterator[Batch], step: TrainStep, setting: StepSetting, steps: int) -> float:
    """Mean seconds that a step waits for its batch while wv-train works through the loader's."""
    waited = 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch, setting, Place())
    return waited / steps


def print_components(console: Console, result: dict[str, Any]) -> None:
    """The parts; verdicts; machine, versions, command."""
    ranks = f", {result['ranks']} ranks" if result["ranks"] > 1 else ""
    table = Table(title=result["title"] + ranks, box=SIMPLE_HEAD, padding=0)
    for heading in ("part", "in", "median µs", "min µs", "of a step"):
        table.add_column(heading, justify="left" if heading in ("part", "in") else "right", no_wrap=True)
    for row in result["rows"]:
        figures = (f"{row['us_median']:,.1f}", f"{row['us_min']:,.1f}", f"{row['share']:.2%}")
        table.add_row(row["name"], row["whose"], *figures)
    console.print(table)
    for held in result["verdicts"]:
        console.print(verdict_line(held), highlight=False)
    for line in about_lines(result):
        console.print(line, highlight=False, markup=False)
