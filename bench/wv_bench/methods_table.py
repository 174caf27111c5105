"""The tables of `wv-bench methods` on the screen: one per set and regime, a row per contestant and kind of weights."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.methods_data import is_skewed
from wv_bench.methods_results import Estimate, Row, tables_of


def print_tables(console: Console, rows: Sequence[Row], *, held_out: bool = False) -> None:
    """All of them. `held_out`: the accuracies are those on held-out samples by their noisy labels."""
    for data, regime, some in tables_of(rows):
        console.print(_table(f"{data}, {regime}", some, skewed=is_skewed(data), held_out=held_out))
    where = "held-out samples, by their noisy labels" if held_out else "clean test images"
    console.print(
        f"Per cent, mean ± standard error over seeds; last checkpoint, {where}.\n"
        "− ce: difference to cross-entropy, seed by seed. memorised: wrong training labels given back by the network.\n"
        "kept, right: share that the gate let pass, and how many of those are labelled right.\n"
        "× wall, × CPU: seconds over those of cross-entropy.",
        highlight=False,
    )


def best_values(rows: Sequence[Row]) -> list[str]:
    """For each set, regime, method and kind of weights the values with the highest mean accuracy, a line each."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.data, row.regime, row.method, row.weights), []).append(row)
    lines = []
    for (data, regime, method, weights), some in groups.items():
        best = max(some, key=lambda row: one.mean if (one := row.measures["top1"]) else 0.0)
        values = best.label.removeprefix(method).strip() or "as they are"
        lines.append(
            f"{data} {regime} {method}, {weights}: best of {len(some)}: {values}, {points(best.measures['top1'])}"
        )
    return lines


def _table(title: str, rows: Sequence[Row], *, skewed: bool, held_out: bool) -> Table:
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("top-1", lambda row: points(row.measures["top1"])),
        ("− ce", lambda row: points(row.over_ce, signed=True)),
    ]
    if skewed and not held_out:
        columns += [
            ("mean class", lambda row: points(row.measures["mean_class_top1"])),
            ("− ce", lambda row: points(row.mean_class_over_ce, signed=True)),
            ("rare third", lambda row: points(row.measures["few_top1"])),
            ("kept, rare", lambda row: points(row.rare_kept_fraction)),
        ]
    if not held_out:
        columns.append(("memorised", lambda row: points(row.measures["memorised_fraction"])))
        columns.append(("right", lambda row: points(row.kept_precision)))
    columns += [
        ("kept", lambda row: points(row.kept_fraction)),
        ("× wall", lambda row: ratio(row.wall_ratio)),
        ("× CPU", lambda row: ratio(row.cpu_ratio)),
        ("steps", lambda row: f"{row.steps:,.0f}"),
        ("n", lambda row: str(top1.seeds if (top1 := row.measures["top1"]) else 0)),
    ]
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "weights"):
        table.add_column(heading)
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.label, row.weights, *(cell(row) for _, cell in columns))
    return table


def points(value: Estimate | None, *, signed: bool = False) -> str:
    """A fraction in per cent, with its standard error."""
    if value is None:
        return "–"
    mean = f"{100 * value.mean:{'+' if signed else ''}.1f}"
    return mean if value.error is None else f"{mean} ± {100 * value.error:.1f}"


def ratio(value: Estimate | None) -> str:
    """A ratio's mean."""
    return "–" if value is None else f"{value.mean:.2f}"
