"""The figures of `wv-bench loader` as one JSON-able document, and as a table of the same."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.loader_run import Row
from wv_bench.nvml import GpuUse

_HEADINGS = (
    "median\nimg/s",
    "min\nimg/s",
    "ours\nis ×",
    "min\n×",
    "of\nceil.",
    "CPU s\n/1,000",
    "PSS\nMB",
    "first\nbatch",
)


_GPU_HEADINGS = {
    "busy_fraction": "busy",
    "jpeg_fraction": "JPEG engine",
    "decoder_fraction": "video decoder",
    "memory_mb": "memory, MB",
}


def document(title: str, rows: list[Row], about: dict[str, Any], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that was measured, divided last.

    Ratios are taken round by round. `ours_over_this`: how many times faster our fastest engine is. `share_of_ceiling`:
    of decoding alone, by its own engine for ours, by the fastest for the others.
    """
    good = [row for row in rows if not row.problem]
    best = max((row for row in good if row.contestant.kind == "ours"), key=_rate, default=None)
    ceilings = {row.contestant.engine: row for row in good if row.contestant.kind == "ceiling"}
    highest = max(ceilings.values(), key=_rate, default=None)
    shown = []
    for row in rows:
        who = row.contestant
        values: dict[str, Any] = {
            "name": who.name,
            "label": who.label,
            "kind": who.kind,
            "dtype": who.dtype,
            "status": "ok" if not row.problem else "skipped" if row.skipped else "failed",
            "reason": row.problem,
            "versions": row.versions,
            "format_mb": row.format_mb,
        }
        if not row.problem:
            ceiling = ceilings.get(who.engine) if who.engine else highest
            values |= {
                "rates": row.rates,
                "rate_median": row.median_rate,
                "rate_min": min(row.rates),
                "cpu_s_per_1000": statistics.median(row.cpu_s_per_1000),
                "cpu_step_s_per_1000": row.cpu_step_s_per_1000,
                "ours_over_this": _ratio(best, row),
                "share_of_ceiling": _ratio(row, ceiling),
                "gpu": gpu_means(row.gpu),
            }
            if who.kind in ("ours", "peer"):
                values |= {
                    "peak_pss_mb": max(row.pss_mb),
                    "pss_mb_by_epoch": row.pss_mb,
                    "first_batch_s": row.first_batch_s,
                }
        shown.append(values)
    return {
        "title": title,
        "machine": about,
        "best": None if best is None else best.contestant.label,
        "rows": shown,
        "notes": list(notes),
    }


def cpu_text(row: dict[str, Any]) -> str:
    """A row's processor seconds per 1,000 images; less than the clock shows is no zero."""
    seconds, step = row["cpu_s_per_1000"], row["cpu_step_s_per_1000"]
    if seconds < step:
        return f"<{step:.1g}"
    return f"{seconds:.{2 if seconds >= 1 else 3}f}"


def print_table(console: Console, result: dict[str, Any]) -> None:
    """The rows that ran as a table, the others as lines with their reasons; then machine, versions, command."""
    table = Table(title=result["title"], box=SIMPLE_HEAD, padding=0)
    table.add_column("", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        if row["status"] == "ok":
            table.add_row(*_cells(row))
    console.print(table)
    console.print(
        f"×: {result['best']}, over this one, round by round. ceil.: of the rate of decoding alone. PSS: peak, all "
        "processes of each. first batch: seconds, imports apart.",
        highlight=False,
    )
    _print_gpu(console, result)
    for row in result["rows"]:
        if row["status"] != "ok":
            console.print(f"{row['status']}: {row['label']}: {row['reason']}", highlight=False, markup=False)
    formats = [f"{row['name']} {row['format_mb']:,.0f}" for row in result["rows"] if row["format_mb"] is not None]
    if formats:
        console.print(f"MB in a format of its own: {', '.join(formats)}", highlight=False)
    for row in result["rows"]:
        if len(growth := row.get("pss_mb_by_epoch", [])) > 1:
            console.print(
                f"PSS by epoch, {row['label']}: {', '.join(f'{mb:,.0f}' for mb in growth)} MB", highlight=False
            )
    for line in about(result):
        console.print(line, highlight=False, markup=False)


def about(result: dict[str, Any]) -> list[str]:
    """Machine, versions and command, a line each."""
    versions: dict[str, str] = {}
    for row in result["rows"]:
        if row["kind"] == "peer":
            versions |= {name: number for name, number in row["versions"].items() if name != "numpy"}
    machine = result["machine"]
    ours = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [*result["notes"], f"{machine['processor']}, {machine['cores']} cores, load before {machine['load']}"]
    if "gpu" in machine:
        lines.append(", ".join(f"{name} {value}" for name, value in machine["gpu"].items()).removeprefix("name "))
    lines.append(f"Python {machine['python']}, {ours}")
    if versions:
        lines.append(
            f"peers, on {machine['peers_pillow']}: "
            + ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
        )
    return [*lines, machine["command"]]


def gpu_means(uses: Sequence[GpuUse]) -> dict[str, float] | None:
    """Mean over epochs of what NVML told; memory at its peak; nothing where it was not asked."""
    if not uses:
        return None
    values = {name: [value for use in uses if (value := getattr(use, name)) is not None] for name in _GPU_HEADINGS}
    return {
        name: max(found) if name == "memory_mb" else statistics.fmean(found) for name, found in values.items() if found
    }


def gpu_texts(row: dict[str, Any]) -> dict[str, str]:
    """What NVML told of a row's epochs, by heading; nothing where it was not asked."""
    told = row.get("gpu") or {}
    return {
        heading: f"{told[name]:,.0f}" if name == "memory_mb" else f"{told[name]:.0%}"
        for name, heading in _GPU_HEADINGS.items()
        if told.get(name) is not None
    }


def _print_gpu(console: Console, result: dict[str, Any]) -> None:
    shown = {row["label"]: gpu_texts(row) for row in result["rows"]}
    if not any(shown.values()):
        return
    table = Table(title="the GPU meanwhile", box=SIMPLE_HEAD, padding=0)
    table.add_column("", no_wrap=True)
    for heading in _GPU_HEADINGS.values():
        table.add_column(heading, justify="right")
    for label, texts in shown.items():
        if texts:
            table.add_row(label, *(texts.get(heading, "–") for heading in _GPU_HEADINGS.values()))
    console.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    ours, ceiling = row["ours_over_this"], row["share_of_ceiling"]
    measured = row["kind"] in ("ours", "peer")
    return [
        row["label"],
        f"{row['rate_median']:,.0f}",
        f"{row['rate_min']:,.0f}",
        f"{ours['median']:.2f}" if ours and measured else "",
        f"{ours['min']:.2f}" if ours and measured else "",
        f"{ceiling['median']:.2f}" if ceiling and measured else "",
        cpu_text(row),
        f"{row['peak_pss_mb']:,.0f}" if measured else "",
        f"{row['first_batch_s']:.2f}" if measured else "",
    ]


def _rate(row: Row) -> float:
    return row.median_rate


def _ratio(one: Row | None, other: Row | None) -> dict[str, float] | None:
    if one is None or other is None:
        return None
    low, median = one.ratio_to(other)
    return {"median": median, "min": low}
