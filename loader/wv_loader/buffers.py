"""Memory of batches and of files, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault for every 4 KiB, a good part of what decoding into it costs. A tensor or a view made
from an array holds a reference to the array for as long as it lives, so the references tell when the array is free.
"""

import itertools
import sys
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

ARENA_BYTES = 4_000_000
"""What a reading thread fills at a time."""


class Buffers:
    """Arrays of one shape. Safe to share between threads."""

    def __init__(self, allocate: Callable[[], Pixels], *, spare: int) -> None:
        """Hold nothing yet.

        Args:
            allocate: makes an array.
            spare: arrays to keep that nobody uses, besides the one that is taken.
        """
        self._allocate = allocate
        self._spare = spare
        self._pool: list[Pixels] = []
        self._lock = threading.Lock()

    def take(self) -> Pixels:
        """An array that nobody else refers to; whatever it held is gone."""
        with self._lock:
            free = [i for i in range(len(self._pool)) if sys.getrefcount(self._pool[i]) == _UNUSED]
            if not free:
                self._pool.append(self._allocate())
                return self._pool[-1]
            pixels = self._pool[free[0]]
            for i in reversed(free[1 + self._spare :]):
                del self._pool[i]
            return pixels


class Arenas:
    """Arrays of ARENA_BYTES, for files that are read. Safe to share between threads."""

    def __init__(self, keep_bytes: int) -> None:
        """Hold nothing yet.

        Args:
            keep_bytes: memory that `trim` leaves, though nobody uses it.
        """
        self._keep = keep_bytes // ARENA_BYTES
        self._pool: list[Pixels] = []
        self._next = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> Pixels:
        """(m,) an array of `size` bytes or more that nobody else refers to; whatever it held is gone."""
        if size > ARENA_BYTES:
            own: Pixels = np.empty(size, dtype=np.uint8)
            return own
        with self._lock:
            # They are let go about in the order in which they were taken: the next one is mostly free.
            for i in itertools.chain(range(self._next, len(self._pool)), range(self._next)):
                if sys.getrefcount(self._pool[i]) == _UNUSED:
                    self._next = i + 1
                    return self._pool[i]
            arena: Pixels = np.empty(ARENA_BYTES, dtype=np.uint8)
            self._pool.append(arena)
            self._next = len(self._pool)
            return arena

    def trim(self) -> None:
        """Give back what is not used, but for what is to be kept."""
        with self._lock:
            free = [i for i in range(len(self._pool)) if sys.getrefcount(self._pool[i]) == _UNUSED]
            for i in reversed(free[self._keep :]):
                del self._pool[i]
            self._next = 0


def _references_of_a_pool() -> int:
    pool = [np.empty(0, dtype=np.uint8)]
    return sys.getrefcount(pool[0])


_UNUSED = _references_of_a_pool()
