"""Memory of batches and of files, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault for every 4 KiB, a good part of what decoding into it costs. A tensor or a view made
from an array holds a reference to the array for as long as it lives, so the references tell when the array is free.
"""

import sys
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_LARGER = 1.25
"""An arena may be this many times larger than what it is used for."""


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
    """Arrays of any size, for files that are read. Safe to share between threads."""

    def __init__(self, keep_bytes: int) -> None:
        """Hold nothing yet.

        Args:
            keep_bytes: memory to keep that nobody uses.
        """
        self._keep_bytes = keep_bytes
        self._pool: list[Pixels] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Pixels:
        """(m,) an array that nobody else refers to, of `size` bytes or somewhat more; whatever it held is gone."""
        with self._lock:
            fitting = [i for i in self._free() if size <= len(self._pool[i]) <= size * _LARGER]
            if fitting:
                return self._pool[min(fitting, key=lambda i: len(self._pool[i]))]
            self._trim()
            self._pool.append(np.empty(size, dtype=np.uint8))
            return self._pool[-1]

    def trim(self) -> None:
        """Give back what is not used, but for what is to be kept."""
        with self._lock:
            self._trim()

    def _trim(self) -> None:
        free = self._free()
        unused = sum(len(self._pool[i]) for i in free)
        for i in reversed(free):
            if unused <= self._keep_bytes:
                break
            unused -= len(self._pool.pop(i))

    def _free(self) -> list[int]:
        return [i for i in range(len(self._pool)) if sys.getrefcount(self._pool[i]) == _UNUSED]


def _references_of_a_pool() -> int:
    pool = [np.empty(0, dtype=np.uint8)]
    return sys.getrefcount(pool[0])


_UNUSED = _references_of_a_pool()
