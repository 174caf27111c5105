"""When which samples are read: an epoch is cut into parts that are read as a whole, in file order.

```
a row (a stream):  |  window 0      |  window 1               |  window 2 …     shuffled each by itself
parts              |p|p |  p  |  p  |           p             |
                   start: doubling    then as much of a window as the budget of memory allows
```

A part is a piece of one window of one row: bytes that lie near one another in the shards and are shown near one
another in time. It is asked for when a batch needs its first sample. Pure arithmetic; reading is readahead.py's.
"""

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
        cls, budget_bytes: int, *, sample_bytes: float, rows: int, row_slots: int, window: int, lead: int
    ) -> "ReadAheadSize":
        """The longest parts whose bytes fit into a budget.

        A part stays in memory until it is shown. Rows turn one after the other: all of them hold a part, and some the
        next one already. So about (rows · part + lead · batch) · bytes of a sample are held.

        Args:
            budget_bytes: memory for samples that are read and not decoded yet.
            sample_bytes: mean size of an image file.
            rows: of this rank.
            row_slots: samples of a row in one batch.
            window: samples of a row that are shuffled together.
            lead: batches at least. Where a part is long for the batch it is two parts, so that reading one is no
                hurry.

        Returns:
            Parts of window / k samples for the smallest k that fits. Not less than a batch's share and not less
            lead, whatever the budget.
        """
        batch = rows * row_slots
        affordable = budget_bytes / (sample_bytes + _BETWEEN_BYTES)
        part = min((affordable - lead * batch) / rows, affordable / (rows + _PARTS_AHEAD))
        pieces = -(-window // max(int(part), row_slots, 1))
        longest = max(row_slots, -(-window // pieces))
        return cls(part=longest, lead=max(lead, -(-_PARTS_AHEAD * longest // batch)))


class Parts:
    """The parts of one epoch from one position on, in the order in which batches need them."""

    def __init__(
        self, following: Callable[[int, int], I64], row_slots: Sequence[int], *, first_batch: int, longest: int
    ) -> None:
        """Start at a batch.

        Args:
            following: of a row and a position in it, the ordinals from there to the end of its window.
            row_slots: slots of a batch that each row fills.
            first_batch: the first batch that will be asked for.
            longest: samples of a part at most.
        """
        self._following = following
        self._slots: I64 = np.asarray(row_slots, dtype=np.int64)
        self._borders: I64 = np.concatenate([[0], np.cumsum(self._slots)])
        self._start: I64 = first_batch * self._slots
        self._read = self._start.copy()  # (rows,) position up to which each row was asked for
        self._longest = longest
        # Rows double at different times, or all of them would want much to be read for the same batch.
        self._step: I64 = np.ceil(self._slots * 2.0 ** (np.arange(len(self._slots)) / len(self._slots))).astype(
            np.int64
        )

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
                # As long as what the row has shown so far: the first batch does not wait for whole windows.
                length = min(self._longest, int(self._read[row] - self._start[row] + self._step[row]))
                part = self._following(row, int(self._read[row]))[:length]
                parts.append((row, part))
                self._read[row] += len(part)
        return parts
