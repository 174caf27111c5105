"""A report's line charts: values over optimiser steps, with a strip of phases per run and marks of the gate.

Draws; it knows no runs. The page's script reads `data-chart` to show values under the pointer; charts stand without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wv_train.report_svg import (
    LEFT,
    PALETTE_SIZE,
    RIGHT,
    WIDTH,
    Frame,
    Key,
    figure,
    grid,
    polyline,
    rect,
    rounded,
    text,
    value_range,
    widened,
    with_tip,
)

MAX_POINTS = 400
"""Points of a line; longer ones are averaged in equal pieces."""
_STRIP_HEIGHT = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart."""

    label: str
    colour: int | str
    """Number in the palette, modulo its size, or a CSS class of the ramp."""
    x: NDArray[np.float64]
    """(P,) rising."""
    y: NDArray[np.float64]
    """(P,); what is not finite is left out."""
    pattern: Literal["solid", "dashed", "dotted"] = "solid"

    @property
    def css(self) -> str:
        """Its classes."""
        colour = self.colour if isinstance(self.colour, str) else f"c{self.colour % PALETTE_SIZE}"
        return colour if self.pattern == "solid" else f"{colour} {self.pattern}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """Named spans of x, drawn as a strip above the plot: phases of a run, or of several that have the same."""

    colour: int | None
    """Number in the palette; None: of all runs."""
    spans: tuple[tuple[str, float, float], ...]
    """(name, from, to), in order."""
    marks: tuple[tuple[str, float, str], ...] = ()
    """(name, x, tip): lines down the plot."""

    @property
    def css(self) -> str:
        """Its class."""
        return "neutral" if self.colour is None else f"c{self.colour % PALETTE_SIZE}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    strips: Sequence[Strip] = (),
    keys: Sequence[Key] | None = None,
    x_name: str = "step",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log_y: bool = False,
    percent: bool = False,
    diagonal: bool = False,
) -> str:
    """Lines over steps, or over what `x_name` says; "" if no line has a point.

    keys: the legend, where it is not a line each. diagonal: draw y = x.
    """
    lines = [_thinned(line) for line in lines]
    lines = [line for line in lines if line.x.size and not (log_y and not (line.y > 0).any())]
    if not lines:
        return ""
    edges = [edge for strip in strips for _, start, end in strip.spans for edge in (start, end)]
    xs = np.concatenate([line.x for line in lines] + [np.array(edges)])
    ys = np.concatenate([line.y[line.y > 0] if log_y else line.y for line in lines])
    frame = Frame(
        top=10.0 + _STRIP_HEIGHT * len(strips),
        x_range=x_range or widened(float(xs.min()), float(xs.max())),
        y_range=y_range or value_range(float(ys.min()), float(ys.max()), log_y),
        log_y=log_y,
    )
    parts = [grid(frame, percent=percent, x_ticks=True, x_label="" if x_name == "step" else x_name)]
    parts += [_strip(frame, strip, row, alone=len(strips) == 1) for row, strip in enumerate(strips)]
    if diagonal:
        corners = [(frame.x(value), frame.y(value)) for value in (0.0, 1.0)]
        parts.append(polyline("neutral dotted", corners))
    for line in lines:
        corners = [(frame.x(x), frame.y(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(polyline(line.css, corners))
    data = {
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "range": frame.x_range,
        "x": x_name,
        "percent": percent,
        "lines": [{"label": line.label, "css": line.css, "x": rounded(line.x), "y": rounded(line.y)} for line in lines],
    }
    return figure(title, frame, parts, keys or [(line.label, line.css) for line in lines], data=data)


def _strip(frame: Frame, strip: Strip, row: int, *, alone: bool) -> str:
    """One run's phases: named boxes, a light line down the plot where the next begins, and the gate's marks.

    A strip that is alone shades the plot too.
    """
    top, parts = 4.0 + row * _STRIP_HEIGHT, []
    for place, (name, start, end) in enumerate(strip.spans):
        left, right = frame.x(start), frame.x(end)
        shade = "odd" if place % 2 else "even"
        width = max(0.0, right - left)
        box = rect(f"phase {shade} {strip.css}", left, top, width, _STRIP_HEIGHT - 2)
        if alone:
            box += rect(f"backdrop {shade} {strip.css}", left, frame.top, width, frame.bottom - frame.top)
        fitting = name if 6.2 * len(name) < right - left else ""
        label = text((left + right) / 2, top + 10, fitting, css="phase-name")
        parts.append(with_tip(f"{name}: steps {start:,.0f} to {end:,.0f}", box + label))
        if place:
            parts.append(f'<path class="phase-start {strip.css}" d="M{left:.1f} {top}V{frame.bottom}"/>')
    for name, at, tip in strip.marks:
        x = frame.x(at)
        drawing = f'<path class="mark {strip.css}" d="M{x:.1f} {top + 13}V{frame.bottom}"/>'
        drawing += f'<path class="mark-head {strip.css}" d="M{x - 4:.1f} {top + 13}h8l-4 6z"/>'
        if alone:
            near_the_end = x > WIDTH - RIGHT - 60
            anchor, shift = ("end", -6) if near_the_end else ("start", 6)
            drawing += text(x + shift, frame.top + 11, name, anchor=anchor, css="mark-name")
        parts.append(with_tip(tip, drawing))
    return "".join(parts)


def _thinned(line: Line) -> Line:
    """Finite points only, at most MAX_POINTS."""
    finite = np.isfinite(line.y)
    x, y = line.x[finite], line.y[finite]
    if x.size > MAX_POINTS:
        pieces = np.array_split(np.arange(x.size), MAX_POINTS)
        x, y = np.array([x[p].mean() for p in pieces]), np.array([y[p].mean() for p in pieces])
    return replace(line, x=x, y=y)
