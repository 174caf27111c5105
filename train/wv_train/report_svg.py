"""Parts that a report's charts are drawn of: frame, grid, text, boxes, and the figure around them, as inline SVG.

Colours are CSS classes (`c0`, `c1`, … of the page's palette, `r0` … `r9` of its ramp), so a chart follows the page's
light or dark theme. Every text is escaped here.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PALETTE_SIZE = 8
RAMP_SIZE = 10

WIDTH = 560.0
LEFT, RIGHT, BOTTOM = 50.0, 12.0, 34.0
PLOT_HEIGHT = 206.0
"""From the top of the plot to its axis, pixels of the drawing."""

Corner = tuple[float, float]
Key = tuple[str, str]
"""(label, CSS classes) of an entry of the legend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Pixels of the plot and the data's ranges in it."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    """Of log10(y) where `log_y`."""
    log_y: bool = False
    top: float = 10.0

    @property
    def bottom(self) -> float:
        return self.top + PLOT_HEIGHT

    @property
    def height(self) -> float:
        """Of the whole drawing."""
        return self.bottom + BOTTOM

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log_y:
            value = math.log10(value) if value > 0 else low
        return self.bottom - min(1.0, max(0.0, (value - low) / (high - low))) * (self.bottom - self.top)


def figure(
    title: str, frame: Frame, parts: Sequence[str], keys: Sequence[Key], data: dict[str, object] | None = None
) -> str:
    """The whole figure: heading, drawing, legend. `data` is what the page's script shows under the pointer."""
    legend = "".join(
        '<span class="key"><svg viewBox="0 0 18 10">'
        f'<path class="swatch {css}" d="M1 5H17"/></svg>{html.escape(label)}</span>'
        for label, css in keys
    )
    name = html.escape(title)
    chart = f' data-chart="{html.escape(json.dumps(data))}"' if data else ""
    box = f"0 0 {WIDTH:.0f} {frame.height:.0f}"
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="{box}" role="img" aria-label="{name}"{chart}>{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def grid(frame: Frame, *, percent: bool, x_ticks: bool, x_label: str = "") -> str:
    """Axis, lines of the grid, and their numbers."""
    parts = [f'<path class="axis" d="M{LEFT} {frame.bottom}H{WIDTH - RIGHT}"/>']
    for value in _y_ticks(frame):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 6, y + 3.5, number(value, percent), anchor="end"))
    if x_ticks:
        ticks = _ticks(*frame.x_range, count=6)
        parts += [text(frame.x(value), frame.bottom + 17, number(value, percent=False)) for value in ticks]
    if x_label:
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, frame.height - 4, x_label))
    return "".join(parts)


def polyline(css: str, corners: Sequence[Corner]) -> str:
    return f'<polyline class="line {css}" points="{points(corners)}"/>'


def points(corners: Sequence[Corner]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def rect(css: str, left: float, top: float, width: float, height: float) -> str:
    return f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def text(x: float, y: float, words: str, *, anchor: str = "middle", css: str = "tick") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def with_tip(tip: str, drawing: str) -> str:
    return f"<g><title>{html.escape(tip)}</title>{drawing}</g>"


def ramp(place: int, count: int) -> str:
    """CSS class of the `place`-th of `count` colours that run from one end of the ramp to the other."""
    return f"r{round(place * (RAMP_SIZE - 1) / max(1, count - 1))}"


def rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def value_range(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)
    margin = 0.06 * (high - low) or max(0.05 * abs(high), 0.05)
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g}%"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.4g}"


def _y_ticks(frame: Frame) -> list[float]:
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
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]
