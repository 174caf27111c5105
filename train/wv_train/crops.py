"""Where the crops of a multi-crop evaluation lie, and how far a result depends on them.

Sun et al. ("Learning From Web data: learning all or learning good?", 2018) report a single crop because results of
several crops fluctuate; here the fluctuation is a number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wv_train.evaluate import ClassSums
from wv_train.tally import Tally

CENTRE = (0.5, 0.5)
MAX_CROPS = 33


def crop_positions(count: int) -> tuple[tuple[float, float], ...]:
    """The centre, then count − 1 positions spread evenly along the edge of the room, clockwise from the upper left.

    5 are the centre and the corners, 9 the corners' midpoints as well. Position (x, y) is as `Loader` takes it.
    """
    around = count - 1
    return (CENTRE, *(_on_edge(4 * i / around) for i in range(around)))


def _on_edge(way: float) -> tuple[float, float]:
    """The point at `way`, 0 … 4, along the border of the unit square."""
    side, rest = divmod(way, 1.0)
    return ((rest, 0.0), (1.0, rest), (1.0 - rest, 1.0), (0.0, 1.0 - rest))[int(side)]


def crops_result(
    positions: Sequence[tuple[float, float]], sums: Sequence[ClassSums], averaged: Tally
) -> dict[str, Any]:
    """What eval.json says of several crops.

    Args:
        positions, sums: of each crop, added over ranks.
        averaged: of the mean of the crops' softmaxes.
    """
    rows = [
        {"x": x, "y": y, **{name: one.overall()[name] for name in ("top1", "top5", "mean_class_top1")}}
        for (x, y), one in zip(positions, sums, strict=True)
    ]
    top1 = [row["top1"] for row in rows]
    return {
        "positions": rows,
        "top1_mean": float(np.mean(top1)),
        "top1_std": float(np.std(top1, ddof=1)),
        "averaged": averaged.numbers(),
    }
