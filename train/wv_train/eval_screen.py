"""What `wv-eval` shows a person of its result; eval.json has all of it."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wv_shards import band_range

_PAIRS = 5


def show_result(result: dict[str, Any], console: Console) -> None:
    """Tables and lines on a console."""
    what = (
        f"checkpoint {escape(result['checkpoint'])}"
        if result["kind"] == "run"
        else f"ensemble, {result['weights_from']} weights"
    )
    table = _table(
        f"{result['samples']:,} samples of {escape(result['shards'])}, {what}", "what", "classes", "samples", "top-1"
    )
    table.add_row("mean per class", f"{len(result['per_class']):,}", "", f"[bold]{_percent(result['mean_class_top1'])}")
    table.add_row("mean per class, top-5 (WebVision's measure)", "", "", f"[bold]{_percent(result['mean_class_top5'])}")
    table.add_row("all", "", f"{result['samples']:,}", _percent(result["top1"]))
    table.add_row("all, top-5", "", "", _percent(result["top5"]))
    table.add_row("expected calibration error", "", "", _percent(result["expected_calibration_error"]))
    table.add_section()
    for band in result["per_band"]:
        name = "no band" if band["band"] is None else f"band {band['band']}: {_band_range(band['band'])} images a class"
        table.add_row(name, f"{band['classes']:,}", f"{band['samples']:,}", _percent(band["top1"]))
    table.add_section()
    for group in result["count_groups"]:
        name = f"{group['name']}: {group['rule']}"
        table.add_row(name, f"{group['classes']:,}", f"{group['samples']:,}", _percent(group["top1"]))
    console.print(table)
    if result["kind"] == "ensemble":
        console.print(_ensemble(result))
    if "crops" in result:
        console.print(_crops(result["crops"]))
    _lines(result, console)


def _lines(result: dict[str, Any], console: Console) -> None:
    ranked = sorted((row for row in result["per_class"] if row["samples"]), key=lambda row: row["top1"])
    some = min(5, len(ranked) // 2)
    for title, rows in (("weakest", ranked[:some]), ("strongest", ranked[::-1][:some])):
        console.print(f"{title}: " + ", ".join(f"{row['name']} {_percent(row['top1'])}" for row in rows), markup=False)
    for pair in result["most_confused"][:_PAIRS]:
        taken = f"{pair['label_name']} taken for {pair['prediction_name']}"
        console.print(f"{taken}: {pair['samples']:,} ({pair['label_fraction']:.0%})", markup=False)
    if invalid := result["invalid"]["samples"]:
        keys = ", ".join(result["invalid"]["keys"][:_PAIRS])
        more = ", …" if invalid > _PAIRS else ""
        console.print(f"not decodable, left out: {invalid:,} samples: {keys}{more}", markup=False)


def _ensemble(result: dict[str, Any]) -> Table:
    fit = result["fit"]
    title = f"weights fitted on {fit['samples']:,} other samples" if fit else "members and their weights"
    table = _table(title, "what", "weight", "top-1", "top-5", "mean per class", "calibration error")
    for member in result["members"]:
        table.add_row(escape(member["run"]), f"{member['weight']:.3f}", *_numbers(member))
    table.add_section()
    for mixture in result["mixtures"]:
        table.add_row(f"mean of softmaxes, {mixture['weights_from']} weights", "", *_numbers(mixture))
    return table


def _crops(crops: dict[str, Any]) -> Table:
    table = _table("crops", "position x, y", "top-1", "top-5", "mean per class", "calibration error")
    for row in crops["positions"]:
        values = (_percent(row[name]) for name in ("top1", "top5", "mean_class_top1"))
        table.add_row(f"{row['x']:.2f}, {row['y']:.2f}", *values, "")
    table.add_section()
    table.add_row(
        "mean ± standard deviation", f"{_percent(crops['top1_mean'])} ± {100 * crops['top1_std']:.2f}", "", "", ""
    )
    table.add_row("mean of the crops' softmaxes", *_numbers(crops["averaged"]))
    return table


def _numbers(values: dict[str, Any]) -> list[str]:
    names = ("top1", "top5", "mean_class_top1", "expected_calibration_error")
    return [_percent(values[name]) for name in names]


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _band_range(band: int) -> str:
    first, last = band_range(band)
    return f"{first:,}" if last <= first else f"{first:,} to {last:,}"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.2%}"
