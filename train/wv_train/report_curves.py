"""A report's curves: what the rows of `metrics.jsonl` say over the steps, the runs over each other.

One run: a colour per quantity. Several: a colour per run, a pattern per quantity. Rows of older runs lack fields; a
chart without a point is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wv_train.live_view import waited_fraction
from wv_train.report_charts import Line, Strip, line_chart
from wv_train.report_data import RunData
from wv_train.report_svg import PALETTE_SIZE, Key, ramp
from wv_train.report_words import band_name

_PATTERNS: tuple[Literal["solid", "dashed", "dotted"], ...] = ("solid", "dashed", "dotted")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """A quantity of a chart."""

    name: str
    value: Callable[[dict[str, Any]], float | None]
    """From a row; None where the row does not tell."""
    kind: Literal["train", "val"] = "train"


def curves_section(runs: Sequence[RunData]) -> str:
    """All charts over steps."""
    strips = _strips(runs)

    def chart(title: str, *sources: _Source, **options: Any) -> str:
        lines = _lines(runs, sources)
        return line_chart(title, lines, strips=strips, keys=_keys(runs, sources, lines), **options)

    charts = [
        chart("Loss", _train("loss", "training"), _val("loss", "validation"), _val("ema_loss", "EMA")),
        chart("Top-1", _train("top1", "training"), _val("top1", "validation"), _val("ema_top1", "EMA"), percent=True),
        chart(
            "Gate: fraction kept, and threshold",
            _train("kept_fraction", "kept"),
            _train("threshold", "threshold"),
            y_range=(0.0, 1.0),
        ),
        chart(
            "Right labels among kept and among shown samples",
            _train("kept_precision", "kept"),
            _train("shown_precision", "shown"),
            percent=True,
        ),
        *_band_charts(runs),
        chart("Learning rate", _train("lr_backbone", "backbone"), _train("lr_head", "head"), log_y=True),
        chart("Gradient norm", _train("grad_norm", "mean"), log_y=True),
        chart(
            "Images per second",
            _train("images_per_s", "training"),
            _train("images_per_s_without_wait", "without waiting for data"),
        ),
        chart("Share of time waited for data", _Source(name="waited", value=waited_fraction), percent=True),
        chart(
            "Steps: in two passes, guarded, without an update",
            *(_steps(key, name) for key, name in _STEP_KINDS if any(row.get(key) for run in runs for row in run.train)),
            percent=True,
        ),
    ]
    if not any(charts):
        return '<h2>Curves</h2><p class="quiet">No steps have been recorded yet.</p>'
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>'


_STEP_KINDS = (("two_pass_steps", "two passes"), ("guarded_steps", "guarded"), ("zero_steps", "no update"))


def _train(key: str, name: str) -> _Source:
    return _Source(name=name, value=lambda row: row.get(key))


def _val(key: str, name: str) -> _Source:
    return _Source(name=name, value=lambda row: row.get(key), kind="val")


def _steps(key: str, name: str) -> _Source:
    """Steps of a kind as a share of the steps since the row before, which `interval` holds."""
    return _Source(
        name=name,
        value=lambda row: row[key] / row["interval"] if row.get(key) is not None and row["interval"] > 0 else None,
    )


def _lines(runs: Sequence[RunData], sources: Sequence[_Source]) -> list[Line]:
    lines = []
    for number, run in enumerate(runs):
        train = [
            {**row, "interval": row["step"] - before["step"]}
            for before, row in zip([{"step": 0}, *run.train], run.train, strict=False)
        ]
        for place, source in enumerate(sources):
            rows = train if source.kind == "train" else run.val
            found = [(row["step"], value) for row in rows if (value := source.value(row)) is not None]
            lines.append(
                Line(
                    label=source.name if len(runs) == 1 else f"{run.name}, {source.name}",
                    colour=place if len(runs) == 1 else number,
                    pattern=_PATTERNS[place % len(_PATTERNS)] if len(runs) > 1 or place else "solid",
                    x=np.array([step for step, _ in found], dtype=np.float64),
                    y=np.array([value for _, value in found], dtype=np.float64),
                )
            )
    return lines


def _keys(runs: Sequence[RunData], sources: Sequence[_Source], lines: Sequence[Line]) -> list[Key] | None:
    """Of several runs: an entry per run, and one per quantity where there are two and more."""
    if len(runs) == 1:
        return None
    drawn = [lines[n * len(sources) : (n + 1) * len(sources)] for n in range(len(runs))]
    keys = [(run.name, f"c{n % PALETTE_SIZE}") for n, run in enumerate(runs) if any(line.x.size for line in drawn[n])]
    present = [place for place in range(len(sources)) if any(of_run[place].x.size for of_run in drawn)]
    if len(present) > 1:
        keys += [(sources[place].name, f"neutral {_PATTERNS[place % len(_PATTERNS)]}") for place in present]
    return keys


def _band_charts(runs: Sequence[RunData]) -> list[str]:
    """A chart per run whose gate was counted by band: a line per band, from rare to common."""
    charts = []
    for number, run in enumerate(runs):
        shares: dict[int | None, list[tuple[float, float]]] = {}
        for row in run.train:
            for band, samples, kept in row.get("kept_by_band") or ():
                if samples:
                    shares.setdefault(band, []).append((row["step"], kept / samples))
        bands = sorted(shares, key=lambda band: (band is not None, band or 0))
        lines = [
            Line(
                label=f"band {band_name(band)}",
                colour=ramp(place, len(bands)),
                x=np.array([step for step, _ in shares[band]], dtype=np.float64),
                y=np.array([share for _, share in shares[band]], dtype=np.float64),
            )
            for place, band in enumerate(bands)
        ]
        title = "Kept by band" if len(runs) == 1 else f"Kept by band, {run.name}"
        colour = 0 if len(runs) == 1 else number
        charts.append(line_chart(title, lines, strips=_strips([run], colour), y_range=(0.0, 1.0), percent=True))
    return charts


def _strips(runs: Sequence[RunData], colour: int = 0) -> list[Strip]:
    """Phases and gates; runs that went alike share a strip."""
    strips: dict[tuple[object, ...], Strip] = {}
    for number, run in enumerate(runs):
        if not run.phases:
            continue
        marks = []
        for gate in run.gates:
            marks.append(("gate on", gate.start, f"gate on at step {gate.start:,.0f}, threshold {gate.thresholds}"))
            if gate.end is not None:
                marks.append(("gate off", gate.end, f"gate off at step {gate.end:,.0f}"))
        key = (run.phases, tuple(marks))
        mine = number if len(runs) > 1 else colour
        strips[key] = Strip(colour=None if key in strips else mine, spans=run.phases, marks=tuple(marks))
    return list(strips.values())
