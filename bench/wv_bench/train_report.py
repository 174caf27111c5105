"""The figures of `wv-bench train` as one JSON-able document, and as a table of the same."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.loader_report import about as about_lines
from wv_bench.loader_report import gpu_means, gpu_texts
from wv_bench.nvml import GpuUse

SYNTHETIC = "synthetic batch"
TRAINED = "with the loader"
ALONE = "loader alone"
OURS_SYNTHETIC = "wv-train, synthetic batch"
OURS_TRAINED = "wv-train, with the loader"
BARE_OF = {OURS_SYNTHETIC: SYNTHETIC, OURS_TRAINED: TRAINED}
"""The bare loop on the same batches."""
TRAINER_OVER_BARE = 0.97
"""Least rate of wv-train over that of the bare loop, on a CPU."""


@dataclass(kw_only=True, slots=True)
class Row:
    """A contestant's turns."""

    name: str
    rates: list[float] = field(default_factory=list)
    """Images a second."""
    wait_s_per_1000: list[float] = field(default_factory=list)
    """Seconds that the loop waited for batches, per 1,000 images. A loop that is ahead of its GPU waits at no cost."""
    cpu_s_per_1000: list[float] = field(default_factory=list)
    gpu: list[GpuUse] = field(default_factory=list)

    def add(self, *, images: int, seconds: float, waited_s: float, cpu_s: float, used: Sequence[GpuUse]) -> None:
        """Enter a turn."""
        self.rates.append(images / seconds)
        self.wait_s_per_1000.append(1000 * waited_s / images)
        self.cpu_s_per_1000.append(1000 * cpu_s / images)
        self.gpu += used


def document(title: str, rows: Sequence[Row], about: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Everything that was measured, divided last; ratios to the synthetic batch are taken round by round."""
    named = {row.name: row for row in rows}
    synthetic = named[SYNTHETIC]
    shown = []
    for row in rows:
        ratios = [mine / theirs for mine, theirs in zip(row.rates, synthetic.rates, strict=True)]
        shown.append(
            {
                "name": row.name,
                "label": row.name,
                "kind": "train",
                "rates": row.rates,
                "rate_median": statistics.median(row.rates),
                "rate_min": min(row.rates),
                "over_synthetic": {"median": statistics.median(ratios), "min": min(ratios)},
                "over_bare": _over_bare(row, named.get(BARE_OF.get(row.name, ""))),
                "wait_s_per_1000": statistics.median(row.wait_s_per_1000),
                "cpu_s_per_1000": statistics.median(row.cpu_s_per_1000),
                "gpu": gpu_means(row.gpu),
            }
        )
    verdicts = [_verdict(row) for row in shown if row["over_bare"]]
    return {"title": title, "machine": about, "rows": shown, "verdicts": verdicts, "notes": list(notes)}


def verdict(bar: str, found: float, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """A bar and what was found: at `least`, or at `most`."""
    passed = found >= least if least is not None else most is not None and found <= most
    return {"bar": bar, "least": least, "most": most, "found": found, "verdict": "PASS" if passed else "MISSED"}


def verdict_line(held: dict[str, Any]) -> str:
    """The same for a person."""
    expected = f"at least {held['least']}" if held["least"] is not None else f"at most {held['most']}"
    return f"{held['verdict']}  {held['bar']}: {held['found']:.4f}, expected {expected}"


def _over_bare(row: Row, bare: Row | None) -> dict[str, float] | None:
    """Ratios round by round, by time and by processor time; None for a bare loop."""
    if bare is None:
        return None
    ratios = [mine / theirs for mine, theirs in zip(row.rates, bare.rates, strict=True)]
    cpu = [theirs / mine for mine, theirs in zip(row.cpu_s_per_1000, bare.cpu_s_per_1000, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "cpu_median": statistics.median(cpu)}


def _verdict(shown: dict[str, Any]) -> dict[str, Any]:
    bar = f"images/s, {shown['name']} over the bare loop"
    return verdict(bar, shown["over_bare"]["median"], least=TRAINER_OVER_BARE)


def print_table(console: Console, result: dict[str, Any]) -> None:
    """The contestants; then machine, versions, command."""
    table = Table(title=result["title"], box=SIMPLE_HEAD, padding=0)
    table.add_column("")
    ratios = ("of\nsynth.", "min\n×", "of\nbare", "min\n×", "by\nCPU s")
    headings = ("median\nimg/s", "min\nimg/s", *ratios, "waited s\n/1,000", "CPU s\n/1,000")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            row["name"],
            f"{row['rate_median']:,.0f}",
            f"{row['rate_min']:,.0f}",
            f"{row['over_synthetic']['median']:.3f}",
            f"{row['over_synthetic']['min']:.3f}",
            *(f"{row['over_bare'][key]:.3f}" if row["over_bare"] else "" for key in ("median", "min", "cpu_median")),
            f"{row['wait_s_per_1000']:.3f}",
            f"{row['cpu_s_per_1000']:.2f}",
        )
    console.print(table)
    for row in result["rows"]:
        if told := gpu_texts(row):
            facts = ", ".join(f"{heading} {text}" for heading, text in told.items())
            console.print(f"GPU, {row['name']}: {facts}", highlight=False)
    for held in result["verdicts"]:
        console.print(verdict_line(held), highlight=False)
    for line in about_lines(result):
        console.print(line, highlight=False, markup=False)
