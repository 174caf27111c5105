"""How every benchmark measures: contestants in turn, run after run, minimum and median, ratios within one run.

These machines are shared and noisy, so a figure stands beside its rival's from the same minute or not at all.
"""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One contestant's repeated runs over the same number of items."""

    name: str
    items: int
    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    """User and system time of this process and its ended children."""

    @property
    def best_rate(self) -> float:
        """Items a second in the fastest run."""
        return self.items / min(self.wall_s)

    @property
    def median_rate(self) -> float:
        """Items a second in the median run."""
        return self.items / statistics.median(self.wall_s)

    @property
    def cpu_ms_per_item(self) -> float:
        """Median processor milliseconds per item."""
        return 1000 * statistics.median(self.cpu_s) / self.items

    def ratio_to(self, other: "Timing") -> tuple[float, float]:
        """This one's speed over another's, run by run (they alternate): minimum and median."""
        mine = [self.items / wall for wall in self.wall_s]
        theirs = [other.items / wall for wall in other.wall_s]
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        return min(ratios), statistics.median(ratios)


def interleave(contestants: Mapping[str, Callable[[], int]], repeats: int) -> list[Timing]:
    """Run all contestants in turn, `repeats` times after one warm-up each; each returns the items it handled."""
    items: dict[str, int] = {name: run() for name, run in contestants.items()}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            cpu_before, before = _cpu_seconds(), time.perf_counter()
            run()
            wall[name].append(time.perf_counter() - before)
            cpu[name].append(_cpu_seconds() - cpu_before)
    return [
        Timing(name=name, items=items[name], wall_s=tuple(wall[name]), cpu_s=tuple(cpu[name])) for name in contestants
    ]


def machine(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a figure depends on: processor, cores, Python, versions, the command."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("wv-toolkit", *packages)},
        "command": " ".join(["wv-bench", *sys.argv[1:]]),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def report(
    title: str, unit: str, timings: list[Timing], reference: str, about: dict[str, Any], *, as_json: bool
) -> None:
    """Print a table, or JSON, of rates and of ratios to the contestant named `reference`."""
    base = next(timing for timing in timings if timing.name == reference)
    if as_json:
        rows = [
            {
                "name": t.name,
                "items": t.items,
                "median_rate": t.median_rate,
                "best_rate": t.best_rate,
                "cpu_ms_per_item": t.cpu_ms_per_item,
                "ratio_min": t.ratio_to(base)[0],
                "ratio_median": t.ratio_to(base)[1],
            }
            for t in timings
        ]
        print(json.dumps({"title": title, "unit": unit, "reference": reference, "machine": about, "rows": rows}))
        return
    table = Table(title=title)
    for heading in (
        "",
        f"{unit}/s median",
        "best",
        f"CPU ms/{unit.rstrip('s')}",
        f"ratio to {reference}: median",
        "min",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for t in timings:
        low, median = t.ratio_to(base)
        cells = [
            f"{t.median_rate:,.0f}",
            f"{t.best_rate:,.0f}",
            f"{t.cpu_ms_per_item:.3f}",
            f"{median:.2f}",
            f"{low:.2f}",
        ]
        table.add_row(t.name, *cells)
    console = Console()
    console.print(table)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    console.print(
        f"{about['processor']}, {about['cores']} cores, Python {about['python']}, {versions}", highlight=False
    )
    console.print(about["command"], highlight=False)


def _cpu_seconds() -> float:
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime
