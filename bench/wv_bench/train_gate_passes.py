"""`wv-bench train --gate-passes`: what a gate saves where it picks its samples before anything is learned.

At each kept fraction a step in one pass, in two passes and by the ledger's past take turns on the same model and batch.
The gate takes a share of the batch and has no guard, so the kept fraction is what it is said to be.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.loader_report import about as about_lines
from wv_bench.train_step import full_step, setting_of, synthetic_batch
from wv_bench.train_turns import Clock, Subject, finish
from wv_loader import Batch
from wv_train.distributed import World
from wv_train.gate import GateConfig
from wv_train.judge import StepSetting, cross_entropy
from wv_train.step import Place, TrainStep

KEPT = (1.0, 0.75, 0.67, 0.5, 0.25, 0.1)
WAYS = ("one pass", "two passes", "by the past")


def gate_passes(subject: Subject, models: Sequence[str], clock: Clock, *, repeats: int) -> dict[str, Any]:
    """Rates of each model, kept fraction and way; ratios to one pass round by round; and the time of the parts.

    `clock.steps` steps are a turn; its warm-up is one step.

    Raises:
        ModelError: no such model.
    """
    world = World(rank=0, size=1, device=subject.device)
    batch = synthetic_batch(subject.batch_size, subject.size_px, subject.classes, subject.device)
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for model in models:
        step = full_step(model, classes=subject.classes, samples=subject.samples, amp=subject.amp, world=world)
        step.ledger.rows["seen"] = 1  # by the past: all have been seen, none is believed as much as another
        step.ledger.rows["label_conf_mean"] = torch.linspace(0.1, 0.9, subject.samples).numpy()
        for kept in KEPT:
            rows += [{"model": model, **row} for row in _at(kept, step, batch, subject, clock, repeats)]
        parts += [{"model": model, **row} for row in _parts(step, batch, subject, clock, repeats)]
    notes = ["by the past: a tenth of the gated samples is looked at again", "kept places are padded to eighths"]
    return {"rows": rows, "parts": parts, "notes": notes}


def _at(
    kept: float, step: TrainStep, batch: Batch, subject: Subject, clock: Clock, repeats: int
) -> list[dict[str, Any]]:
    settings = _settings(kept, subject)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, float] = {}
    for number in range(repeats):
        for at in range(len(WAYS)):
            way = WAYS[(at + number) % len(WAYS)]
            found[way] = step(batch, settings[way], Place()).totals.kept_fraction
            finish(subject.device)
            started = time.perf_counter()
            for _ in range(clock.steps):
                step(batch, settings[way], Place())
            finish(subject.device)
            rates[way].append(clock.steps * subject.batch_size / (time.perf_counter() - started))
    shown = []
    for way, values in rates.items():
        ratios = [mine / one for mine, one in zip(values, rates[WAYS[0]], strict=True)]
        shown.append(
            {
                "kind": "way",
                "asked": kept,
                "kept_fraction": found[way],
                "way": way,
                "rate_median": statistics.median(values),
                "rate_min": min(values),
                "over_one_pass": {"median": statistics.median(ratios), "min": min(ratios)},
            }
        )
    return shown


def _settings(kept: float, subject: Subject) -> dict[str, StepSetting]:
    gate = GateConfig(start=1.0 - kept, end=1.0 - kept, unit="share", kind="label", min_kept_fraction=0.0)
    past = replace(gate, kind="label_past")
    return {
        way: setting_of(of, subject.classes, subject.device, two_passes=way == WAYS[1])
        for way, of in zip(WAYS, (gate, gate, past), strict=True)
    }


def _parts(step: TrainStep, batch: Batch, subject: Subject, clock: Clock, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a look at all, of forward and backward of some, and of the optimiser's step."""
    learner, device, size = step.learner, subject.device, subject.batch_size
    setting = _settings(1.0, subject)[WAYS[0]]
    images = learner.images(batch)

    def once(samples: int) -> tuple[float, ...]:
        times = [_now(device)]
        learner.look(images)
        times.append(_now(device))
        losses = cross_entropy(learner.forward(images[:samples]), batch.labels[:samples], setting)
        times.append(_now(device))
        learner.backward(losses.mean())
        times.append(_now(device))
        step.optimizer.step()
        times.append(_now(device))
        step.optimizer.zero_grad(set_to_none=True)
        return tuple(after - before for before, after in itertools.pairwise(times))

    eighth = -(-size // 8)
    sizes = sorted({min(size, max(1, -(-round(kept * size) // eighth)) * eighth) for kept in KEPT}, reverse=True)
    measured: dict[int, list[tuple[float, ...]]] = {samples: [] for samples in sizes}
    for number in range(1 + repeats * clock.steps):
        for samples in sizes:
            times = once(samples)
            if number:
                measured[samples].append(times)
    names = ("look_ms", "forward_ms", "backward_ms", "optimiser_ms")
    return [
        {"samples": samples}
        | {
            name: {"median": 1e3 * statistics.median(values), "min": 1e3 * min(values)}
            for name, values in zip(names, zip(*measured[samples], strict=True), strict=True)
        }
        for samples in sizes
    ]


def _now(device: torch.device) -> float:
    finish(device)
    return time.perf_counter()


def print_passes(console: Console, result: dict[str, Any]) -> None:
    """Ways against one another, then the parts; machine, versions, command."""
    table = Table(title=result["title"], box=SIMPLE_HEAD, padding=0)
    headings = ("model", "kept", "way", "median\nimg/s", "min\nimg/s", "of one\npass", "min\n×")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("model", "way") else "right", no_wrap=True)
    for row in result["rows"]:
        ratio = row["over_one_pass"]
        figures = (f"{row['rate_median']:,.0f}", f"{row['rate_min']:,.0f}")
        ratios = (f"{ratio['median']:.2f}", f"{ratio['min']:.2f}")
        table.add_row(row["model"], f"{row['kept_fraction']:.0%}", row["way"], *figures, *ratios)
    console.print(table)
    table = Table(title="parts, milliseconds: median (min)", box=SIMPLE_HEAD, padding=0)
    for heading in ("model", "samples", "look at all", "forward", "backward", "optimiser"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for row in result["parts"]:
        names = ("look_ms", "forward_ms", "backward_ms", "optimiser_ms")
        cells = (f"{row[name]['median']:.1f} ({row[name]['min']:.1f})" for name in names)
        table.add_row(row["model"], str(row["samples"]), *cells)
    console.print(table)
    for line in about_lines(result):
        console.print(line, highlight=False, markup=False)
