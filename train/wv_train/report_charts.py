"""Charts of a report as inline SVG: lines over steps, classes by size, a histogram. No files, no runs, no libraries.

Colours are CSS classes (`c0`, `c1`, … of the page's palette), so a chart follows the page's light or dark theme. Every
text is escaped here. The page's script reads `data-chart` to show values under the pointer; charts stand without it.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PALETTE_SIZE = 6
MAX_POINTS = 400
"""Points of a line; longer ones are averaged in equal pieces."""
_MAX_BARS = 64

_WIDTH, _HEIGHT = 560.0, 250.0
_LEFT, _RIGHT, _BOTTOM, _STRIP = 50.0, 12.0, 34.0, 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart."""

    label: str
    colour: int
    """Number in the palette, modulo its size."""
    x: NDArray[np.float64]
    """(P,) rising."""
    y: NDArray[np.float64]
    """(P,); what is not finite is left out."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """Named spans of x, drawn as a strip above the plot: a run's phases."""

    colour: int
    spans: tuple[tuple[str, float, float], ...]
    """(name, from, to), in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Pixels of the plot and the data's ranges in it."""

    top: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    """Of log10(y) where `log_y`."""
    log_y: bool

    @property
    def bottom(self) -> float:
        return _HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log_y:
            value = math.log10(value) if value > 0 else low
        return self.bottom - min(1.0, max(0.0, (value - low) / (high - low))) * (self.bottom - self.top)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    strips: Sequence[Strip] = (),
    y_range: tuple[float, float] | None = None,
    log_y: bool = False,
    percent: bool = False,
) -> str:
    """Lines over optimiser steps, with a strip of phases per run above them; "" if no line has a point."""
    lines = [_thinned(line) for line in lines]
    lines = [line for line in lines if line.x.size and not (log_y and not (line.y > 0).any())]
    if not lines:
        return ""
    edges = [edge for strip in strips for _, start, end in strip.spans for edge in (start, end)]
    xs = np.concatenate([line.x for line in lines] + [np.array(edges)])
    ys = np.concatenate([line.y[line.y > 0] if log_y else line.y for line in lines])
    frame = _Frame(
        top=10.0 + _STRIP * len(strips),
        x_range=_widened(float(xs.min()), float(xs.max())),
        y_range=y_range or _value_range(float(ys.min()), float(ys.max()), log_y),
        log_y=log_y,
    )
    parts = [_grid(frame, percent=percent, x_ticks=True)]
    parts += [_strip(frame, strip, row) for row, strip in enumerate(strips)]
    keys = []
    for line in lines:
        css = f"c{line.colour % PALETTE_SIZE}{' dashed' if line.dashed else ''}"
        corners = [(frame.x(x), frame.y(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(_polyline(css, corners))
        keys.append((line.label, css))
    data = {
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "range": frame.x_range,
        "percent": percent,
        "lines": [
            {"label": line.label, "css": css, "x": _rounded(line.x), "y": _rounded(line.y)}
            for line, (_, css) in zip(lines, keys, strict=True)
        ],
    }
    return _figure(title, parts, keys, data=data)


def class_chart(
    title: str,
    names: Sequence[str],
    counts: NDArray[np.float64],
    shown: Sequence[tuple[str, NDArray[np.float64]]],
) -> str:
    """Classes from largest to smallest on a log scale: bars of `counts` (K,), a line of each `shown` (label, (K,))."""
    if not len(counts):
        return ""
    order = np.argsort(-counts, kind="stable")
    everything = np.concatenate([counts, *(values for _, values in shown)])
    positive = everything[everything > 0] if (everything > 0).any() else np.ones(1)
    frame = _Frame(
        top=10.0,
        x_range=(0.0, float(len(counts))),
        y_range=_value_range(min(float(positive.min()), 1.0), float(positive.max()), log=True),
        log_y=True,
    )
    parts = [_grid(frame, percent=False, x_ticks=False)]
    if len(counts) <= _MAX_BARS:
        for place, c in enumerate(order):
            parts.append(_class_bar(frame, place, names[c], counts[c], [(label, values[c]) for label, values in shown]))
    else:
        outline = [(_LEFT, frame.bottom), *_steps(frame, counts[order]), (_WIDTH - _RIGHT, frame.bottom)]
        parts.append(f'<polygon class="area" points="{_points(outline)}"/>')
    keys = [("images packed", "area")]
    for number, (label, values) in enumerate(shown):
        css = f"c{number % PALETTE_SIZE}"
        parts.append(_polyline(css, _steps(frame, values[order])))
        keys.append((label, css))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "classes, largest first"))
    return _figure(title, parts, keys)


def histogram(title: str, x_label: str, stacks: Sequence[tuple[str, NDArray[np.int64]]]) -> str:
    """Counts over equal bins of 0 … 1, stacked in the order given: (label, (bins,)) each, at least one."""
    total = np.sum([counts for _, counts in stacks], axis=0)
    bins = len(total)
    frame = _Frame(top=10.0, x_range=(0.0, 1.0), y_range=(0.0, 1.05 * max(1, int(total.max()))), log_y=False)
    parts = [_grid(frame, percent=False, x_ticks=True)]
    below = np.zeros(bins)
    for number, (label, counts) in enumerate(stacks):
        for place in np.flatnonzero(counts):
            left, right = frame.x(place / bins) + 0.5, frame.x((place + 1) / bins) - 0.5
            top, bottom = frame.y(below[place] + counts[place]), frame.y(below[place])
            tip = f"{place / bins:.2f} to {(place + 1) / bins:.2f}: {counts[place]:,} {label}"
            parts.append(_with_tip(tip, _rect(f"bar c{number}", left, top, right - left, bottom - top)))
        below = below + counts
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_label))
    return _figure(title, parts, [(label, f"bar c{number}") for number, (label, _) in enumerate(stacks)])


# Parts of a chart


def _figure(
    title: str, parts: Sequence[str], keys: Sequence[tuple[str, str]], data: dict[str, object] | None = None
) -> str:
    """The whole figure: heading, drawing, legend of (label, CSS classes)."""
    legend = "".join(
        '<span class="key"><svg viewBox="0 0 18 10">'
        f'<path class="swatch {css}" d="M1 5H17"/></svg>{html.escape(label)}</span>'
        for label, css in keys
    )
    name = html.escape(title)
    chart = f' data-chart="{html.escape(json.dumps(data))}"' if data else ""
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{name}"{chart}>{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def _grid(frame: _Frame, *, percent: bool, x_ticks: bool) -> str:
    parts = [f'<path class="axis" d="M{_LEFT} {frame.bottom}H{_WIDTH - _RIGHT}"/>']
    for value in _y_ticks(frame):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y + 3.5, _number(value, percent), anchor="end"))
    if x_ticks:
        ticks = _ticks(*frame.x_range, count=6)
        parts += [_text(frame.x(value), frame.bottom + 15, _number(value, percent=False)) for value in ticks]
    return "".join(parts)


def _strip(frame: _Frame, strip: Strip, row: int) -> str:
    """One run's phases: named boxes, and a light line down the plot where the next begins."""
    top, colour = 4.0 + row * _STRIP, f"c{strip.colour % PALETTE_SIZE}"
    parts = []
    for number, (name, start, end) in enumerate(strip.spans):
        left, right = frame.x(start), frame.x(end)
        shade = "odd" if number % 2 else "even"
        box = _rect(f"phase {shade} {colour}", left, top, max(0.0, right - left), _STRIP - 2)
        fitting = name if 6.2 * len(name) < right - left else ""
        text = _text((left + right) / 2, top + 10, fitting, css="phase-name")
        parts.append(_with_tip(f"{name}: steps {start:,.0f} to {end:,.0f}", box + text))
        if number:
            parts.append(f'<path class="phase-start {colour}" d="M{left:.1f} {top}V{frame.bottom}"/>')
    return "".join(parts)


def _class_bar(frame: _Frame, place: int, name: str, count: float, shown: Sequence[tuple[str, float]]) -> str:
    left, right, top = frame.x(place), frame.x(place + 1), frame.y(count)
    gap = min(2.0, 0.1 * (right - left))
    tip = f"{name}: {count:,.0f} images" + "".join(f"; {label} {value:,.1f}" for label, value in shown)
    # The transparent bar behind makes the whole column answer the pointer.
    column = _rect("column", left, frame.top, right - left, frame.bottom - frame.top)
    return _with_tip(tip, column + _rect("area", left + gap, top, right - left - 2 * gap, frame.bottom - top))


def _steps(frame: _Frame, values: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Corners of a staircase, a stair per value."""
    return [(frame.x(place + side), frame.y(float(value))) for place, value in enumerate(values) for side in (0, 1)]


def _polyline(css: str, corners: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="line {css}" points="{_points(corners)}"/>'


def _points(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _rect(css: str, left: float, top: float, width: float, height: float) -> str:
    return f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", css: str = "tick") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _with_tip(tip: str, drawing: str) -> str:
    return f"<g><title>{html.escape(tip)}</title>{drawing}</g>"


# Numbers


def _thinned(line: Line) -> Line:
    """Finite points only, at most MAX_POINTS."""
    finite = np.isfinite(line.y)
    x, y = line.x[finite], line.y[finite]
    if x.size > MAX_POINTS:
        pieces = np.array_split(np.arange(x.size), MAX_POINTS)
        x, y = np.array([x[p].mean() for p in pieces]), np.array([y[p].mean() for p in pieces])
    return Line(label=line.label, colour=line.colour, x=x, y=y, dashed=line.dashed)


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _value_range(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)
    margin = 0.06 * (high - low) or max(0.05 * abs(high), 0.05)
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _y_ticks(frame: _Frame) -> list[float]:
    low, high = frame.y_range
    if frame.log_y:
        return [10.0**power for power in range(math.floor(low), math.ceil(high) + 1)]
    return _ticks(low, high, count=5)


def _ticks(low: float, high: float, *, count: int) -> list[float]:
    """Round values within low … high, about `count`."""
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g}%"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.4g}"
