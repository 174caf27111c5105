"""Memory of batches, used again as soon as the consumer has let go of a batch.

Fresh memory costs a page fault for every 4 KiB of a batch, a good part of what decoding it costs. A tensor made from an
array holds a reference to the array for as long as any view of it lives, so the references tell when it is free.
"""

import sys
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


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


def _references_of_a_pool() -> int:
    pool = [np.empty(0, dtype=np.uint8)]
    return sys.getrefcount(pool[0])


_UNUSED = _references_of_a_pool()
