"""The final numbers of a run, for tiles, for the table that compares runs, and for `report.json`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wv_train.live_view import duration, waited_fraction
from wv_train.report_data import Judgement, RunData
from wv_train.report_words import count, decimal, dot, escape, percent, table


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number of a run; all runs have the same measures in the same order."""

    name: str
    value: float | None
    text: str
    better: int = 0
    """1: higher is better; −1: lower; 0: neither."""


def measures(run: RunData, judgement: Judgement | None) -> list[Measure]:
    """What came out, then what the gate did, then how fast it went."""
    evaluation = run.evaluation or {}
    first_100 = judgement.suspects_precision.get("100") if judgement else None
    rates = [row["images_per_s"] for row in run.train if row.get("images_per_s")]
    waits = [waited for row in run.train if (waited := waited_fraction(row)) is not None]
    seconds = _training_seconds(run.train)
    return [
        _measure("top-1, wv-eval", evaluation.get("top1"), percent, 1),
        _measure("top-5, wv-eval", evaluation.get("top5"), percent, 1),
        _measure("mean class top-1, wv-eval", evaluation.get("mean_class_top1"), percent, 1),
        *(_of_group(evaluation, group) for group in ("many", "medium", "few")),
        _measure("calibration error, wv-eval", evaluation.get("expected_calibration_error"), decimal, -1),
        _measure("validation top-1, last", _last(run.val, "top1"), percent, 1),
        _measure("validation top-1, best", _best(run.val, "top1"), percent, 1),
        _measure("validation top-1 of EMA, last", _last(run.val, "ema_top1"), percent, 1),
        _measure("validation top-1 of EMA, best", _best(run.val, "ema_top1"), percent, 1),
        _measure("validation loss, last", _last(run.val, "loss"), decimal, -1),
        _measure("training top-1, last", _last(run.train, "top1"), percent),
        _measure("training loss, last", _last(run.train, "loss"), decimal),
        _measure("kept by the gate, last", _last(run.train, "kept_fraction"), percent),
        _measure("kept by the gate, least", _least(run.train, "kept_fraction"), percent),
        _measure("right labels among kept, last", _last(run.train, "kept_precision"), percent),
        _measure("right labels among shown, last", _last(run.train, "shown_precision"), percent),
        _measure("wrong labels memorised", judgement.memorised_fraction if judgement else None, percent, -1),
        _measure("wrong among first 100 suspects", first_100, percent, 1),
        _measure("AUROC of suspects", judgement.auroc if judgement else None, decimal, 1),
        _measure("steps", _last(run.train, "step"), count),
        _measure("steps in two passes", _total(run.train, "two_pass_steps"), count),
        _measure("steps guarded against collapse", _total(run.train, "guarded_steps"), count),
        _measure("steps without an update", _total(run.train, "zero_steps"), count),
        _measure("steps with a loss that is not finite", _total(run.train, "nonfinite_steps"), count),
        _measure("warnings", float(sum(event.count for event in run.events)) if run.events else None, count),
        _measure("images/s, median", float(np.median(rates)) if rates else None, count, 1),
        _measure("time waited for data, median", float(np.median(waits)) if waits else None, percent, -1),
        _measure("time training", seconds, lambda value: "–" if value is None else duration(value), -1),
        _measure("parameters", run.info.get("parameters"), count),
    ]


def tiles(run: RunData, judgement: Judgement | None) -> str:
    """The numbers of a single run."""
    shown = [measure for measure in measures(run, judgement) if measure.value is not None]
    cells = "".join(
        f'<div class="card tile"><b>{escape(measure.text)}</b><span>{escape(measure.name)}</span></div>'
        for measure in shown
    )
    return f'<div class="tiles">{cells}</div>'


def comparison(runs: Sequence[RunData], judgements: Sequence[Judgement | None]) -> str:
    """A column per run, a row per measure; the best of a row in bold."""
    columns = [measures(run, judgement) for run, judgement in zip(runs, judgements, strict=True)]
    rows = []
    for cells in zip(*columns, strict=True):
        values = [cell.value for cell in cells]
        if all(value is None for value in values):
            continue
        best = _best_of(values, cells[0].better)
        texts = "".join(
            f"<td{' class=best' if best is not None and cell.value == best else ''}>{escape(cell.text)}</td>"
            for cell in cells
        )
        rows.append(f"<tr><td>{escape(cells[0].name)}</td>{texts}</tr>")
    heads = [f"{dot(n)}{escape(run.name)}" for n, run in enumerate(runs)]
    return f"<h2>Side by side</h2>{table(['', *heads], rows, css='whole')}"


def _best_of(values: Sequence[float | None], better: int) -> float | None:
    """The best value where all runs have one and they are not all alike."""
    numbers = [value for value in values if value is not None]
    if not better or len(numbers) < len(values) or len(set(numbers)) < 2:
        return None
    return max(numbers) if better > 0 else min(numbers)


def _measure(name: str, value: float | None, show: Callable[[float | None], str], better: int = 0) -> Measure:
    return Measure(name=name, value=value, text=show(value), better=better)


def _of_group(evaluation: dict[str, Any], group: str) -> Measure:
    rows = [row for row in evaluation.get("count_groups") or () if row.get("name") == group]
    value = rows[0].get("mean_class_top1", rows[0].get("top1")) if rows else None
    return _measure(f"mean class top-1, {group}, wv-eval", value, percent, 1)


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _last(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    values = _values(rows, key)
    return values[-1] if values else None


def _best(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    return max(_values(rows, key), default=None)


def _least(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    return min(_values(rows, key), default=None)


def _total(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Sum over the rows; None where none of them counts it, or all count 0: nothing to tell."""
    return sum(_values(rows, key)) or None


def _training_seconds(rows: Sequence[dict[str, Any]]) -> float | None:
    """Samples between rows over the images per second: without validation, saving and restarts."""
    seconds, before = 0.0, 0
    for row in rows:
        samples, rate = row.get("samples"), row.get("images_per_s")
        if samples is not None and rate:
            seconds += max(0, samples - before) / rate
            before = samples
    return seconds or None
