"""The page of `wv-bench methods`: per set the regimes side by side, a dot with its error for every contestant.

One file that loads nothing, for light and dark screens.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

from wv_bench.methods_data import is_skewed
from wv_bench.methods_results import Estimate, Row

_LABEL, _PLOT, _SHARE, _GAP, _LINE, _TOP = 170, 300, 90, 24, 22, 40
_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --rule: #ddd; --model: #0a6ebd; --ema: #c2571a; --bar: #a9b4c2; }
@media (prefers-color-scheme: dark) {
:root { --ink: #ddd; --paper: #181818; --rule: #3a3a3a; --model: #59b0f5; --ema: #f09a5f; --bar: #5a6675; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1280px;
margin: 2em auto; padding: 0 1em; } svg { max-width: 100%; } text { fill: var(--ink); font-size: 12px; }
.head { font-weight: 600; } .rule { stroke: var(--rule); } .model { fill: var(--model); stroke: var(--model); }
.ema { fill: none; stroke: var(--ema); stroke-width: 1.6; } .bar { fill: var(--bar); } .verdict { border-collapse: collapse; }
.verdict td { padding: .15em .8em .15em 0; vertical-align: top; border-top: 1px solid var(--rule); }
.PASS { color: #2a8a4a; } .MISSED { color: #c83232; } .missing { opacity: .6; }
"""  # noqa: E501 - CSS


def page(rows: Sequence[Row], verdicts: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The whole page. `verdicts`: word, bar, data, expected, found of each."""
    charts = "".join(
        f"<h2>{html.escape(data)}</h2>{_chart([row for row in rows if row.data == data], data)}"
        for data in dict.fromkeys(row.data for row in rows)
    )
    lines = "".join(
        f'<tr><td class="{one["word"]}">{one["word"]}</td>'
        + "".join(f"<td>{html.escape(one[key])}</td>" for key in ("bar", "data", "expected", "found"))
        + "</tr>"
        for one in verdicts
    )
    table = f'<h2>Bars</h2><table class="verdict">{lines}</table>' if verdicts else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>wv-bench methods</title><style>{_STYLE}</style>'
        "<h1>Learning from noisy labels, side by side</h1>"
        "<p>Top-1 on clean test images after the last step, per cent: mean and standard error over seeds; where "
        "classes differ in size, the mean of the classes. Filled: the model's weights, ring: their moving average. "
        "Bars: share of the wrong training labels that the network gives back.</p>"
        f"{charts}{table}<p>{html.escape(about['processor'])}, {about['cores']} cores, Python {about['python']}</p>"
        f"<p><code>{html.escape(about['command'])}</code></p></html>\n"
    )


def _chart(rows: Sequence[Row], data: str) -> str:
    """A panel per regime, all with the same contestants and the same scale."""
    regimes = list(dict.fromkeys(row.regime for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    measure = "mean_class_top1" if is_skewed(data) else "top1"
    known = [one for row in rows if (one := row.measures[measure])]
    if not known:
        return "<p>Nothing yet.</p>"
    low = math.floor(20 * min(one.mean - (one.error or 0) for one in known)) / 20
    high = math.ceil(20 * max(one.mean + (one.error or 0) for one in known)) / 20
    width = _LABEL + len(regimes) * (_PLOT + _SHARE + 2 * _GAP)
    height = _TOP + _LINE * len(labels) + 30
    parts = [
        f'<text x="{_LABEL - 8}" y="{_TOP + _LINE * at + 15}" text-anchor="end">{html.escape(label)}</text>'
        for at, label in enumerate(labels)
    ]
    for number, regime in enumerate(regimes):
        left = _LABEL + number * (_PLOT + _SHARE + 2 * _GAP)
        some = [row for row in rows if row.regime == regime]
        parts += _panel(some, labels, left, regime, measure, (low, max(high, low + 0.05)))
    title = f"{data}: accuracy of every method, and what it memorised"
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'  # noqa: E501 - markup


def _panel(
    rows: Sequence[Row], labels: Sequence[str], left: float, regime: str, measure: str, limits: tuple[float, float]
) -> list[str]:
    low, high = limits

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * _PLOT

    floor, share_left = _TOP + _LINE * len(labels), left + _PLOT + _GAP
    step = 0.05 if high - low <= 0.3 else 0.1
    marks = [low + step * number for number in range(round((high - low) / step) + 1) if low + step * number <= high]
    parts = [
        f'<text class="head" x="{left}" y="16">{html.escape(regime)}</text>',
        f'<text x="{share_left}" y="16">memorised</text>',
    ]
    for mark in marks:
        parts.append(f'<path class="rule" d="M{across(mark):.1f} {_TOP - 8}V{floor}"/>')
        parts.append(f'<text x="{across(mark):.1f}" y="{floor + 16}" text-anchor="middle">{100 * mark:.0f}</text>')
    for row in rows:
        y = _TOP + _LINE * labels.index(row.label) + (8 if row.weights == "model" else 15)
        parts.append(_dot(row.measures[measure], across, y, row))
        memorised = row.measures["memorised_fraction"]
        if row.weights == "model" and memorised is not None:
            wide = _SHARE * memorised.mean
            parts.append(f'<rect class="bar" x="{share_left}" y="{y - 4}" width="{wide:.1f}" height="11"/>')
            parts.append(f'<text x="{share_left + wide + 4:.1f}" y="{y + 6}">{100 * memorised.mean:.0f}</text>')
    return parts


def _dot(value: Estimate | None, across: Any, y: float, row: Row) -> str:
    if value is None:
        return ""
    error = value.error or 0.0
    told = f"{row.label}, {row.weights}: {100 * value.mean:.1f} ± {100 * error:.1f}, n = {value.seeds}"
    return (
        f'<g class="{row.weights}"><title>{html.escape(told)}</title>'
        f'<path d="M{across(value.mean - error):.1f} {y}H{across(value.mean + error):.1f}"/>'
        f'<circle cx="{across(value.mean):.1f}" cy="{y}" r="3.2"/></g>'
    )
