"""When which samples are read: an epoch is cut into parts that are read as a whole, in file order.

```
a row (a stream):  |  window 0      |  window 1               |  window 2 …     shuffled each by itself
parts              |p|p |  p  |  p  |           p             |
                   start: growing     then as much of a window as the budget of memory allows
```

A part is a piece of one window of one row: bytes that lie near one another in the shards and are shown near one
another in time. It is asked for when a batch needs its first sample. Pure arithmetic; reading is readahead.py's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

Part = tuple[int, I64]
"""A row, and the (n,) ordinals that follow in it."""

_BETWEEN_BYTES = 4_096
"""Of headers and texts in a shard, per sample: read along with images that are neighbours."""
_PARTS_AHEAD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadAheadSize:
    """How much is read ahead."""

    part: int
    """Samples of a part at most."""
    lead: int
    """Batches between the reading of a sample and its decoding."""

    @classmethod
    def within(
        cls,
        budget_bytes: int,
        *,
        sample_bytes: float,
        rows: int,
        row_slots: int,
        window: int,
        lead: int,
        streams: int,
    ) -> "ReadAheadSize":
        """The longest parts whose bytes fit into a budget.

        A part stays in memory until all of it is shown. Every row holds one, and those that are about to turn to
        their next one hold two. All streams turn evenly in time, but the rows of a rank only within their share of it.

        Args:
            budget_bytes: memory for samples that are read and not decoded yet.
            sample_bytes: mean size of an image file.
            rows: of this rank.
            row_slots: samples of a row in one batch.
            window: samples of a row that are shuffled together.
            lead: batches at least. Where a part is long for the batch it is two parts, so that reading one is no
                hurry.
            streams: rows of all ranks, whose windows end one after the other.

        Returns:
            Parts of window / k samples for the smallest k that fits. Not less than a batch's share and not less
            lead, whatever the budget.
        """
        affordable = budget_bytes / (sample_bytes + _BETWEEN_BYTES)
        pieces = 1
        while True:
            part = max(row_slots, -(-window // pieces))
            ahead = max(lead, -(-_PARTS_AHEAD * part // (rows * row_slots)))
            read = (ahead + 1) * row_slots  # of a row, and not shown
            held = rows * part + min(streams * read, rows * (part + read))
            # Pieces that share no factor with the streams keep those from turning all at once.
            if part == row_slots or (held <= affordable and math.gcd(pieces, streams) == 1):
                return cls(part=part, lead=ahead)
            pieces += 1


class Parts:
    """The parts of one epoch from one position on, in the order in which batches need them."""

    def __init__(
        self, window_of: Callable[[int, int], tuple[I64, int]], row_slots: Sequence[int], *, first_batch: int, part: int
    ) -> None:
        """Start at a batch.

        Args:
            window_of: of a row and a position in it, the ordinals of its window and the position of their first.
            row_slots: slots of a batch that each row fills.
            first_batch: the first batch that will be asked for.
            part: samples of a part at most.
        """
        self._window_of = window_of
        self._slots: I64 = np.asarray(row_slots, dtype=np.int64)
        self._borders: I64 = np.concatenate([[0], np.cumsum(self._slots)])
        self._start: I64 = first_batch * self._slots
        self._read = self._start.copy()  # (rows,) position up to which each row was asked for
        self._part = part
        # Rows grow unevenly, or all of them would want much to be read for the same batch.
        self._growth = 0.5 + np.arange(len(self._slots)) / len(self._slots)

    def of(self, number: int, ordinals: I64) -> list[Part]:
        """What has to be read for a batch and was not asked for yet. Batches are asked for one after the other.

        Args:
            number: of the batch.
            ordinals: (n,) of its slots, row after row; −1 where a row has ended.
        """
        shown = np.add.reduceat(ordinals >= 0, self._borders[:-1], dtype=np.int64)
        needed = number * self._slots + shown
        parts: list[Part] = []
        for row in np.flatnonzero(self._read < needed).tolist():
            while self._read[row] < needed[row]:
                part = self._next(row, int(self._read[row]))
                parts.append((row, part))
                self._read[row] += len(part)
        return parts

    def _next(self, row: int, position: int) -> I64:
        # About as long as what the row has shown so far: the first batch does not wait for whole windows.
        length = int(self._slots[row] + (position - self._start[row]) * self._growth[row])
        window, first = self._window_of(row, position)
        # Windows are cut into parts from their beginnings, and a row's first, which is shortened, from its end: so
        # that rows turn to their next parts one after the other, as they do with windows.
        anchor = first or len(window)
        border = position + self._part - (position - anchor) % self._part
        return window[position - first : min(position + length, border) - first]
