"""`wv-bench train SHARDS --gate-loader`: what a gate saves whose loader does not even read a part of what is gated.

The gate shuts out the same share of all samples in every row; what differs is who never gets to it. Steps in one pass,
in two passes and by the ledger's past on all samples stand against steps on what is left when a part is skipped, each
with the loader and, for machines whose device outruns it, by the loader alone. Counted are the images that teach.

CPU seconds are those of the whole process, decoding threads included: on a machine that is shared they say what the
seconds of the clock do not.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.loader_report import about as about_lines
from wv_bench.train_step import full_step, setting_of
from wv_bench.train_turns import Clock, Subject, finish
from wv_loader import Batch, Loader
from wv_shards import combine
from wv_train.distributed import World
from wv_train.gate import GateConfig
from wv_train.step import Place, TrainStep

GATED = 0.4
"""Of all samples, as for CIFAR-10N `worse`."""
SKIPPED = (0.15, 0.3)
"""Of all samples, after the revisits."""


@dataclass(kw_only=True, slots=True)
class _Way:
    """One contestant and its rounds."""

    name: str
    skipped: float = 0.0
    kind: Any = "label"
    two_passes: bool = False
    trains: bool = True
    shown_rates: list[float] = field(default_factory=list)
    """Images a second that go in."""
    kept_rates: list[float] = field(default_factory=list)
    """Images a second that teach."""
    kept_cpu_rates: list[float] = field(default_factory=list)
    """The same a CPU second."""

    @property
    def gated(self) -> float:
        """Share of what is shown, so that GATED of all are skipped or gated."""
        return (GATED - self.skipped) / (1.0 - self.skipped)


def gate_loader(subject: Subject, loader: Loader, clock: Clock, *, repeats: int) -> dict[str, Any]:
    """Rates of each way, and ratios to one pass over all samples (or the loader's over all) round by round.

    Raises:
        ModelError: no such model.
    """
    world = World(rank=0, size=1, device=subject.device)
    step = full_step(subject.model, classes=subject.classes, samples=subject.samples, amp=subject.amp, world=world)
    step.ledger.rows["seen"] = 1  # by the past: all have been seen, none is believed as much as another
    step.ledger.rows["label_conf_mean"] = np.linspace(0.1, 0.9, subject.samples)
    ways = [
        _Way(name="all, one pass"),
        _Way(name="all, two passes", two_passes=True),
        _Way(name="all, by the past", kind="label_past"),
        *(_Way(name=f"skipped {part:.0%}", skipped=part) for part in SKIPPED),
        _Way(name="loader alone, all", trains=False),
        *(_Way(name=f"loader alone, skipped {part:.0%}", skipped=part, trains=False) for part in SKIPPED),
    ]
    for number in range(repeats):
        for at in range(len(ways)):
            way = ways[(at + number) % len(ways)]
            with closing(_endless(loader, way.skipped)) as batches:
                _time(way, batches, _step_of(way, step, subject) if way.trains else _shown_kept(way), clock)
    rows = [_row(way, ways[0] if way.trains else next(w for w in ways if not w.trains)) for way in ways]
    notes = [
        f"the gate shuts out {GATED:.0%} of all samples in every row; by the past a tenth of them is looked at again",
        "teach: images a second that pass the gate; a CPU second: of the whole process, decoding threads included",
    ]
    return {"rows": rows, "notes": notes}


def _endless(loader: Loader, skipped: float) -> Generator[Batch]:
    """Epoch after epoch without this part of the samples, the same in all."""
    mask: NDArray[np.bool_] = combine(1, np.arange(loader.num_samples)) < np.uint64(skipped * 2**64)
    for epoch in count():
        loader.set_epoch(epoch, skip=mask)
        yield from loader


def _step_of(way: _Way, step: TrainStep, subject: Subject) -> Callable[[Batch], int]:
    """A step of training; it says how many images taught."""
    gate = GateConfig(start=way.gated, end=way.gated, unit="share", kind=way.kind, min_kept_fraction=0.0)
    setting = setting_of(gate, subject.classes, subject.device, two_passes=way.two_passes)
    return lambda batch: step(batch, setting, Place()).totals.kept


def _shown_kept(way: _Way) -> Callable[[Batch], int]:
    """How many would teach, were there a step."""
    return lambda batch: round((1.0 - way.gated) * int(batch.valid.sum()))


def _time(way: _Way, batches: Iterator[Batch], learn: Callable[[Batch], int], clock: Clock) -> None:
    for _ in range(clock.warmup):
        learn(next(batches))
    finish(clock.device)
    shown = kept = 0
    cpu_s, started = time.process_time(), time.perf_counter()
    for _ in range(clock.steps):
        batch = next(batches)
        shown += int(batch.valid.sum())
        kept += learn(batch)
    finish(clock.device)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    way.shown_rates.append(shown / seconds)
    way.kept_rates.append(kept / seconds)
    way.kept_cpu_rates.append(kept / cpu_s)


def _row(way: _Way, base: _Way) -> dict[str, Any]:
    def ratio(name: str) -> dict[str, float]:
        pairs = zip(getattr(way, name), getattr(base, name), strict=True)
        ratios = [mine / other for mine, other in pairs]
        return {"median": statistics.median(ratios), "min": min(ratios)}

    return {
        "kind": "way",
        "way": way.name,
        "skipped_fraction": way.skipped,
        "kept_fraction": 1.0 - way.gated,
        "shown_per_s": statistics.median(way.shown_rates),
        "kept_per_s": statistics.median(way.kept_rates),
        "kept_per_cpu_s": statistics.median(way.kept_cpu_rates),
        "kept_over_all": ratio("kept_rates"),
        "kept_per_cpu_over_all": ratio("kept_cpu_rates"),
    }


def print_gate_loader(console: Console, result: dict[str, Any]) -> None:
    """The ways against one another; machine, versions, command."""
    table = Table(title=result["title"], box=SIMPLE_HEAD, padding=0)
    for heading in ("way", "kept", "shown\nimg/s", "teach\nimg/s", "× all", "min", "teach a\nCPU s", "× all", "min"):
        table.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
    for row in result["rows"]:
        cells = [f"{row['kept_fraction']:.0%}", f"{row['shown_per_s']:,.0f}"]
        for rate, name in (("kept_per_s", "kept_over_all"), ("kept_per_cpu_s", "kept_per_cpu_over_all")):
            cells += [f"{row[rate]:,.0f}", f"{row[name]['median']:.2f}", f"{row[name]['min']:.2f}"]
        table.add_row(row["way"], *cells)
    console.print(table)
    for line in about_lines(result):
        console.print(line, highlight=False, markup=False)
