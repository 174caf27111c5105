"""How many suspects are meant: so many of the worst, or all from a probability on; as options of the commands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which of the samples that have a probability; both rules hold where both are given."""

    top: float | int | None = None
    """A share of them below 1 (float), or a number (int); None: all."""
    min_probability: float = 0.0
    """That the label is wrong."""

    def ordinals(self, wrong: NDArray[np.floating]) -> NDArray[np.int64]:
        """Of `wrong` (N,), below 0 or NaN where unknown: the chosen ordinals, most probable first, then by ordinal."""
        known = np.flatnonzero(wrong >= 0)
        order = known[np.argsort(-wrong[known], kind="stable")]
        if self.top is not None:
            order = order[: self.top if isinstance(self.top, int) else round(self.top * len(order))]
        return order[wrong[order] >= self.min_probability]


class Top(click.ParamType[Any]):
    """`0.1` and `10%` are a share, `500` is a number of samples."""

    name = "share or number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | int:
        if isinstance(value, (int, float)):
            return value
        text = str(value).strip()
        try:
            if text.isdecimal() and int(text) > 0:
                return int(text)
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0.0 < share <= 1.0:
            self.fail(f"{text}: expected a share (0.1, 10%) or a whole number of samples", param, ctx)
        return share


def top_option(what: str) -> Callable[..., Any]:
    """`--top`, a float (share) or an int (number)."""
    return click.option("--top", type=Top(), metavar="SHARE|NUMBER", help=what)


def probability_option(what: str) -> Callable[..., Any]:
    """`--min-probability`, a float."""
    return click.option("--min-probability", type=click.FloatRange(0.0, 1.0), help=what)
