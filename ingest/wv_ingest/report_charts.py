"""Charts of a report of shards as inline SVG: classes by size on a log scale, and histograms. No data set, no files.

Colours are CSS classes of `report_style`. What a chart shows under the pointer are `<title>`s: no script is needed.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wv_ingest.report_data import Histogram
from wv_ingest.report_parts import count, plain

_CURVE_WIDE, _BARS_WIDE, _HIGH = 640, 430, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 10, 30
_FLOOR = _HIGH - _BOTTOM
_ZERO_ROOM = 20
"""Between the line of zero and the line of one: a logarithm has no zero, classes have."""
_MOST_COLUMNS = 160
"""Columns that answer the pointer; more classes share one."""
_MOST_STAIRS = 6_000
"""Of a line; of more classes several share one, which has their mean."""
_TICKS = 5


def class_curve(title: str, names: Sequence[str], series: Sequence[tuple[str, str, NDArray[np.int64]]]) -> str:
    """Classes from the largest to the smallest on a log scale.

    Args:
        title: of the chart.
        names: (K,) of the classes.
        series: (label, css, (K,) counts), at most three: `mass` is drawn as an area, `one` and `two` as lines. The
            first decides the order.
    """
    order = np.argsort(-series[0][2], kind="stable")
    top = math.log10(max(10, *(int(counts.max()) for _, _, counts in series))) * 1.03

    def y(value: float) -> float:
        if value <= 0:
            return _FLOOR
        return _FLOOR - _ZERO_ROOM - max(0.0, math.log10(value)) / top * (_FLOOR - _ZERO_ROOM - _TOP)

    parts = [_level(_CURVE_WIDE, y(10.0**power), count(10.0**power)) for power in range(int(top) + 1)]
    parts.append(_level(_CURVE_WIDE, _FLOOR, "0", css="axis"))
    for _, css, counts in series:
        stairs = _stairs([y(float(counts[own].mean())) for own in np.array_split(order, min(len(order), _MOST_STAIRS))])
        if css == "mass":
            parts.append(f'<path class="mass" d="M{_LEFT} {_FLOOR}{stairs}V{_FLOOR}Z"/>')
        else:
            parts.append(f'<path class="{css}" d="M{_LEFT} {stairs[1:].split("H")[0]}{stairs}"/>')
    first = 1
    columns = np.array_split(order, min(len(order), _MOST_COLUMNS))
    edges = np.linspace(_LEFT, _CURVE_WIDE - _RIGHT, len(columns) + 1)
    for column, left, right in zip(columns, edges[:-1], edges[1:], strict=True):
        parts.append(_column(left, right, _class_tip(first, column, names, series)))
        first += len(column)
    parts.append(
        _text((_LEFT + _CURVE_WIDE - _RIGHT) / 2, _HIGH - 6, f"{count(len(order))} classes, the largest first")
    )
    return _figure(title, "curve", _CURVE_WIDE, parts, [(label, css) for label, css, _ in series])


def bars(title: str, histogram: Histogram, name: Callable[[float], str], *, unit: str) -> str:
    """A histogram as bars of equal width; `name` writes an edge."""
    counts, edges = histogram.counts, histogram.edges
    most = max(1, int(counts.max()))
    step = _round_step(most / 4)
    parts = [_level(_BARS_WIDE, _height(level, most), count(level)) for level in np.arange(0, most + 1, step).tolist()]
    sides = np.linspace(_LEFT, _BARS_WIDE - _RIGHT, len(counts) + 1)
    for place, value in enumerate(counts.tolist()):
        left, right = sides[place], sides[place + 1]
        tip = f"{name(edges[place])} to {name(edges[place + 1])}: {count(value)} images"
        gap = min(1.5, 0.1 * (right - left))
        high = _height(value, most)
        drawn = f"M{left + gap:.1f} {_FLOOR}V{high:.1f}H{right - gap:.1f}V{_FLOOR}Z"
        parts.append(_column(left, right, tip, f'<path class="bars" d="{drawn}"/>' if value else ""))
    ticks = range(0, len(edges), max(1, -(-len(edges) // _TICKS)))
    parts += [_text(sides[place], _FLOOR + 17, name(edges[place]), anchor="middle") for place in ticks]
    parts.append(f'<path class="axis" d="M{_LEFT} {_FLOOR}H{_BARS_WIDE - _RIGHT}"/>')
    return _figure(f"{title}, {unit}", "bins", _BARS_WIDE, parts, [])


def _stairs(heights: Sequence[float]) -> str:
    """Path of a staircase from left to right, a stair of equal width for every height; level stairs are one."""
    width = (_CURVE_WIDE - _RIGHT - _LEFT) / len(heights)
    texts = [f"{height:.1f}" for height in heights]
    ends = [place for place in range(1, len(texts) + 1) if place == len(texts) or texts[place] != texts[place - 1]]
    return "".join(f"V{texts[end - 1]}H{_LEFT + end * width:.2f}" for end in ends)


def _class_tip(
    first: int, column: NDArray[np.int64], names: Sequence[str], series: Sequence[tuple[str, str, NDArray[np.int64]]]
) -> str:
    if len(column) == 1:
        return f"{names[column[0]]}: " + ", ".join(f"{label} {count(counts[column[0]])}" for label, _, counts in series)
    sums = (f"{label} {count(counts[column].min())} to {count(counts[column].max())}" for label, _, counts in series)
    return f"classes {count(first)} to {count(first + len(column) - 1)} by size ({names[column[0]]}, …): " + ", ".join(
        sums
    )


def _height(value: float, most: int) -> float:
    return _FLOOR - value / most * (_FLOOR - _TOP)


def _round_step(least: float) -> int:
    """1, 2 or 5 times a power of ten, `least` or more."""
    unit = 10 ** max(0, math.floor(math.log10(max(1.0, least))))
    return int(next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= least))


def _level(wide: int, y: float, label: str, *, css: str = "rule") -> str:
    return f'<path class="{css}" d="M{_LEFT} {y:.1f}H{wide - _RIGHT}"/>' + _text(_LEFT - 7, y + 4, label, anchor="end")


def _column(left: float, right: float, tip: str, drawn: str = "") -> str:
    hit = f'<path class="hit" d="M{left:.1f} {_TOP}H{right:.1f}V{_FLOOR}H{left:.1f}Z"/>'
    return f"<g><title>{plain(tip)}</title>{hit}{drawn}</g>"


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{plain(text)}</text>'


def _figure(title: str, css: str, wide: int, parts: Sequence[str], legend: Sequence[tuple[str, str]]) -> str:
    keys = "".join(
        f'<span><svg viewBox="0 0 20 10" aria-hidden="true">{_sample(key)}</svg>{plain(label)}</span>'
        for label, key in legend
    )
    below = f'<div class="key">{keys}</div>' if keys else ""
    return (
        f'<figure class="box"><figcaption>{plain(title)}</figcaption><svg class="{css}" viewBox="0 0 {wide} {_HIGH}" '
        f'role="img" aria-label="{plain(title)}">{"".join(parts)}</svg>{below}</figure>'
    )


def _sample(css: str) -> str:
    return '<path class="mass" d="M0 0H20V10H0Z"/>' if css == "mass" else f'<path class="{css}" d="M0 5H20"/>'
