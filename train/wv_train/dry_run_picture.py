"""Learning rates and gate thresholds over a whole run as a picture: for a terminal, and as an SVG file.

A phase's width goes with its steps, but a short one gets a share that can be seen; the numbers under the picture are
steps. A phase that ends at a plateau is drawn as long as it may get, and marked.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from wv_train.optim import learning_rate
from wv_train.recipe import Phase

F64 = NDArray[np.float64]

_POINTS = 400
"""Of a phase."""
_LEAST_SHARE = 0.14
"""Of the picture's width, for a phase of a run with up to five."""
_DECADES = 6
"""Rates below the highest by more than this are not drawn."""
_BACKBONE, _HEAD, _GATE = "#3465c8", "#d9722b", "#24936a"


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseCurves:
    """One phase, sampled over its steps."""

    phase: Phase
    steps: int
    left: float
    """Where it begins in the picture's width, 0 … 1."""
    right: float
    at: F64
    """(P,) places in the picture's width."""
    backbone: F64
    """(P,) rates; 0 where frozen."""
    head: F64
    threshold: F64 | None
    """(P,); None: no gate."""


def curves_of(phases: Sequence[tuple[Phase, int]]) -> list[PhaseCurves]:
    """What the trainer will do in phases of so many steps."""
    steps = np.array([count for _, count in phases], dtype=np.float64)
    shares = np.maximum(steps / steps.sum(), min(_LEAST_SHARE, 0.7 / len(phases)))
    edges = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
    made = []
    for (phase, count), left, right in zip(phases, edges[:-1], edges[1:], strict=True):
        sampled = np.unique(np.linspace(0, count - 1, min(count, _POINTS)).round().astype(np.int64))
        rates = np.array([learning_rate(phase, int(step), count) for step in sampled])
        gate = phase.gate.over(count) if phase.gate else None
        made.append(
            PhaseCurves(
                phase=phase,
                steps=count,
                left=float(left),
                right=float(right),
                at=left + (right - left) * sampled / max(1, count - 1),
                backbone=rates * phase.backbone_factor,
                head=rates * phase.head_factor,
                threshold=None if gate is None else np.array([gate.threshold(int(step)) for step in sampled]),
            )
        )
    return made


def rate_range(curves: Sequence[PhaseCurves]) -> tuple[float, float]:
    """Whole powers of ten (as exponents) that hold all rates above 0, `_DECADES` at most."""
    rates = np.concatenate([rates for one in curves for rates in (one.backbone, one.head)])
    rates = rates[rates > 0]
    if not rates.size:
        return -1.0, 0.0
    high = math.ceil(math.log10(float(rates.max())) - 1e-9)
    low = math.floor(math.log10(float(rates.min())) + 1e-9)
    return float(max(min(low, high - 1), high - _DECADES)), float(high)


def gate_top(curves: Sequence[PhaseCurves]) -> float:
    """Upper end of the thresholds' axis, 0.1 … 1; 0 where no phase has a gate."""
    highest = max((float(one.threshold.max()) for one in curves if one.threshold is not None), default=0.0)
    return 0.0 if highest <= 0 else min(1.0, max(0.1, math.ceil(highest * 10 - 1e-9) / 10))


def phase_title(one: PhaseCurves) -> str:
    """Its name, marked where its length is an upper bound."""
    return f"{one.phase.name} (≤)" if one.phase.until else one.phase.name


# -- terminal ----------------------------------------------------------------------------------------------------------


def terminal_picture(curves: Sequence[PhaseCurves], *, width: int = 100) -> list[Text]:
    """Lines of text in braille dots: rates on a logarithmic scale, thresholds below them, phases under both."""
    left = 9
    columns = max(20, width - left - 1)
    low, high = rate_range(curves)
    rates = _Dots(columns, 9)
    for one in curves:
        for values, colour in ((one.head, _HEAD), (one.backbone, _BACKBONE)):
            shown = values > 10.0**low * (1 - 1e-9)
            rates.line(one.at[shown], (np.log10(values[shown]) - low) / (high - low), colour)
    ticks = {round((high - k) / (high - low) * 8): f"1e{k:+03.0f}" for k in np.arange(low, high + 1)}
    lines = [Text.assemble("learning rate  ", ("backbone", _BACKBONE), "  ", ("head", _HEAD), "  (log scale)")]
    lines += rates.rows(ticks, left, curves)
    if top := gate_top(curves):
        gate = _Dots(columns, 5)
        for one in curves:
            if one.threshold is not None:
                gate.line(one.at, one.threshold / top, _GATE)
        lines.append(Text.assemble(("gate", _GATE), ": ", _gate_words(curves)))
        lines += gate.rows({0: f"{top:g}", 4: "0"}, left, curves)
    lines += _phase_rows(curves, columns, left)
    return lines


def _gate_words(curves: Sequence[PhaseCurves]) -> str:
    units = {one.phase.gate.unit for one in curves if one.phase.gate}
    words = {"confidence": "threshold of the confidence", "share": "share of the batch that is gated"}
    return " / ".join(words[unit] for unit in sorted(units))


class _Dots:
    """A canvas of braille characters, 2 × 4 dots each, with a colour per character."""

    _BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

    def __init__(self, columns: int, rows: int) -> None:
        self._cells = np.zeros((rows, columns), dtype=np.int64)
        self._colours: dict[tuple[int, int], str] = {}

    def line(self, x: F64, y: F64, colour: str) -> None:
        """Connected points; x and y in 0 … 1, y upwards."""
        rows, columns = self._cells.shape
        right = np.clip(np.rint(x * (2 * columns - 1)), 0, 2 * columns - 1).astype(int)
        down = np.clip(np.rint((1 - y) * (4 * rows - 1)), 0, 4 * rows - 1).astype(int)
        for i in range(len(right)):
            start = max(0, i - 1)
            count = max(abs(right[i] - right[start]), abs(down[i] - down[start]), 1)
            for k in range(count + 1):
                self._dot(
                    right[start] + round((right[i] - right[start]) * k / count),
                    down[start] + round((down[i] - down[start]) * k / count),
                    colour,
                )

    def _dot(self, right: int, down: int, colour: str) -> None:
        cell = (down // 4, right // 2)
        self._cells[cell] |= self._BITS[down % 4][right % 2]
        self._colours[cell] = colour

    def rows(self, ticks: dict[int, str], left: int, curves: Sequence[PhaseCurves]) -> list[Text]:
        """The canvas with labels of some rows at its left; phases are parted by thin lines."""
        rows, columns = self._cells.shape
        borders = {min(columns - 1, round(one.left * columns)) for one in curves[1:]}
        made = []
        for row in range(rows):
            text = Text(f"{ticks.get(row, ''):>{left - 2}} ┤" if row in ticks else f"{'':>{left - 2}} │")
            for column in range(columns):
                bits = int(self._cells[row, column])
                if bits:
                    text.append(chr(0x2800 + bits), self._colours[row, column])
                else:
                    text.append("┊" if column in borders else " ", "dim")
            made.append(text)
        return made


def _phase_rows(curves: Sequence[PhaseCurves], columns: int, left: int) -> list[Text]:
    """Under the canvas: where phases begin, their names, and the step at each one's end."""
    axis, names, ends = (list(mark * columns) for mark in ("─", " ", " "))
    done = 0
    for one in curves:
        first, last = round(one.left * columns), round(one.right * columns)
        done += one.steps
        room = max(1, last - first - 1)
        _put(names, first, phase_title(one)[:room])
        label = f"{done:,}"
        _put(ends, max(first, last - len(label)), label[:room])
        if first:
            axis[first] = "┴"
    pad = " " * (left - 1)
    return [Text(f"{pad}└{''.join(axis)}"), Text(f"{pad} {''.join(names)}"), Text(f"{pad} {''.join(ends)}")]


def _put(row: list[str], start: int, text: str) -> None:
    for offset, letter in enumerate(text):
        if start + offset < len(row):
            row[start + offset] = letter


# -- SVG ---------------------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT = 900.0, 64.0, 20.0
_RATES, _GATES = (64.0, 264.0), (306.0, 406.0)
"""Top and bottom of the two panels."""


def svg_picture(curves: Sequence[PhaseCurves], *, title: str) -> str:
    """The same as an SVG document, on a light background."""
    low, high = rate_range(curves)
    top = gate_top(curves)
    bottom = _GATES[1] if top else _RATES[1]
    height = bottom + 62
    parts = [_text(_LEFT, 24, title, size=15, weight=600)]
    for index, one in enumerate(curves):
        x, width = _x(one.left), _x(one.right) - _x(one.left)
        if index % 2:
            parts.append(
                f'<rect x="{x:.1f}" y="{_RATES[0]}" width="{width:.1f}" height="{bottom - _RATES[0]}" fill="#f1f4f9"/>'
            )
    parts += _legend(top > 0, curves)
    for exponent in range(round(low), round(high) + 1):
        y = _y(_RATES, (exponent - low) / (high - low))
        parts += [_rule(y), _text(_LEFT - 8, y + 4, f"{10.0**exponent:g}", anchor="end")]
    if top:
        for value in (0.0, top / 2, top):
            y = _y(_GATES, value / top)
            parts += [_rule(y), _text(_LEFT - 8, y + 4, f"{value:g}", anchor="end")]
    done = 0
    for index, one in enumerate(curves):
        for values, colour, dash in ((one.head, _HEAD, ""), (one.backbone, _BACKBONE, "5 3")):
            shown = values > 10.0**low * (1 - 1e-9)
            parts.append(_line(one.at[shown], (np.log10(values[shown]) - low) / (high - low), _RATES, colour, dash))
        if one.threshold is not None and top:
            parts.append(_line(one.at, one.threshold / top, _GATES, _GATE, ""))
        if index:
            x = _x(one.left)
            parts.append(f'<path d="M{x:.1f} {_RATES[0]}V{bottom}" stroke="#98a3b5" stroke-dasharray="2 3"/>')
        done += one.steps
        middle = (_x(one.left) + _x(one.right)) / 2
        parts.append(_text(middle, bottom + 18, one.phase.name, anchor="middle", weight=600))
        length = f"at most {one.steps:,} steps" if one.phase.until else f"{one.steps:,} steps"
        parts.append(_text(middle, bottom + 34, length, anchor="middle"))
        parts.append(_text(_x(one.right), bottom + 52, f"{done:,}", anchor="end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" width="{_WIDTH:g}" '
        f'height="{height:g}" font-family="system-ui, sans-serif" font-size="12" fill="#1c2430">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(part for part in parts if part)
        + "\n</svg>\n"
    )


def _legend(gated: bool, curves: Sequence[PhaseCurves]) -> list[str]:
    y = _RATES[0] - 14
    keys = [("learning rate of the head", _HEAD, ""), ("of the backbone", _BACKBONE, "5 3")]
    parts, x = [], _LEFT
    for words, colour, dash in keys:
        parts.append(_swatch(x, y - 4, colour, dash))
        parts.append(_text(x + 30, y, words))
        x += 210
    if gated:
        parts.append(_swatch(_LEFT, _GATES[0] - 18, _GATE, ""))
        parts.append(_text(_LEFT + 30, _GATES[0] - 14, f"gate: {_gate_words(curves)}"))
    return parts


def _swatch(x: float, y: float, colour: str, dash: str) -> str:
    return f'<path d="M{x:.1f} {y:.1f}h22" stroke="{colour}" stroke-width="2.4"{_dash(dash)}/>'


def _line(x: F64, y: F64, panel: tuple[float, float], colour: str, dash: str) -> str:
    if not x.size:
        return ""
    points = " ".join(f"{_x(float(a)):.1f},{_y(panel, float(b)):.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{_dash(dash)}/>'


def _dash(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _rule(y: float) -> str:
    return f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e3e7ee"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">'
        f"{html.escape(words)}</text>"
    )


def _x(place: float) -> float:
    return _LEFT + place * (_WIDTH - _LEFT - _RIGHT)


def _y(panel: tuple[float, float], value: float) -> float:
    top, bottom = panel
    return bottom - min(1.0, max(0.0, value)) * (bottom - top)
