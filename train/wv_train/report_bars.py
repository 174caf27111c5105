"""A report's other drawings: classes by size, a histogram, and the small line of a sample's visits."""

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wv_train.ledger import HISTORY_VISITS
from wv_train.report_svg import (
    LEFT,
    PALETTE_SIZE,
    RIGHT,
    WIDTH,
    Corner,
    Frame,
    figure,
    grid,
    points,
    polyline,
    rect,
    text,
    value_range,
    with_tip,
)

_MAX_BARS = 64


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
    frame = Frame(
        x_range=(0.0, float(len(counts))),
        y_range=value_range(min(float(positive.min()), 1.0), float(positive.max()), log=True),
        log_y=True,
    )
    parts = [grid(frame, percent=False, x_ticks=False)]
    if len(counts) <= _MAX_BARS:
        for place, c in enumerate(order):
            parts.append(_class_bar(frame, place, names[c], counts[c], [(label, values[c]) for label, values in shown]))
    else:
        outline = [(LEFT, frame.bottom), *_stairs(frame, counts[order]), (WIDTH - RIGHT, frame.bottom)]
        parts.append(f'<polygon class="area" points="{points(outline)}"/>')
    keys = [("images packed", "area")]
    for place, (label, values) in enumerate(shown):
        css = f"c{place % PALETTE_SIZE}"
        parts.append(polyline(css, _stairs(frame, values[order])))
        keys.append((label, css))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, frame.height - 8, "classes, largest first"))
    return figure(title, frame, parts, keys)


def histogram(title: str, x_label: str, stacks: Sequence[tuple[str, NDArray[np.int64]]]) -> str:
    """Counts over equal bins of 0 … 1, stacked in the order given: (label, (bins,)) each, at least one."""
    total = np.sum([counts for _, counts in stacks], axis=0)
    bins = len(total)
    frame = Frame(x_range=(0.0, 1.0), y_range=(0.0, 1.05 * max(1, int(total.max()))))
    parts = [grid(frame, percent=False, x_ticks=True, x_label=x_label)]
    below = np.zeros(bins)
    for stack, (label, counts) in enumerate(stacks):
        for place in np.flatnonzero(counts):
            left, right = frame.x(place / bins) + 0.5, frame.x((place + 1) / bins) - 0.5
            top, bottom = frame.y(below[place] + counts[place]), frame.y(below[place])
            tip = f"{place / bins:.2f} to {(place + 1) / bins:.2f}: {counts[place]:,} {label}"
            parts.append(with_tip(tip, rect(f"bar c{stack}", left, top, right - left, bottom - top)))
        below = below + counts
    return figure(title, frame, parts, [(label, f"bar c{stack}") for stack, (label, _) in enumerate(stacks)])


def sparkline(values: Sequence[float]) -> str:
    """Values in [0, 1], oldest first, as a small line with a dot on the last; "" without a value.

    It has room for as many as the ledger remembers, so the fewer there are the shorter it is.
    """
    if not values:
        return ""
    width, height, margin = 100.0, 26.0, 4.0
    step = (width - 2 * margin) / max(1, HISTORY_VISITS - 1, len(values) - 1)
    corners = [
        (margin + place * step, margin + (1 - value) * (height - 2 * margin)) for place, value in enumerate(values)
    ]
    x, y = corners[-1]
    said = ", ".join(f"{value:.2f}" for value in values)
    return (
        f'<svg class="spark" viewBox="0 0 {width:.0f} {height:.0f}" preserveAspectRatio="xMinYMid" role="img" '
        f'aria-label="{html.escape(f"confidence of the label by visit: {said}")}"><title>{html.escape(said)}</title>'
        f'<path class="grid" d="M0 {height - margin}H{width:.0f}"/>{polyline("c0", corners)}'
        f'<circle class="dot-last c0" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/></svg>'
    )


def _class_bar(frame: Frame, place: int, name: str, count: float, shown: Sequence[tuple[str, float]]) -> str:
    left, right, top = frame.x(place), frame.x(place + 1), frame.y(count)
    gap = min(2.0, 0.1 * (right - left))
    tip = f"{name}: {count:,.0f} images" + "".join(f"; {label} {value:,.1f}" for label, value in shown)
    # The transparent bar behind makes the whole column answer the pointer.
    column = rect("column", left, frame.top, right - left, frame.bottom - frame.top)
    return with_tip(tip, column + rect("area", left + gap, top, right - left - 2 * gap, frame.bottom - top))


def _stairs(frame: Frame, values: NDArray[np.float64]) -> list[Corner]:
    """Corners of a staircase, a stair per value."""
    return [(frame.x(place + side), frame.y(float(value))) for place, value in enumerate(values) for side in (0, 1)]
