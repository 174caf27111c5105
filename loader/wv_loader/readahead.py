"""Reads parts on threads ahead of their use, and hands their samples out in the order in which they are shown.

It holds the only copy of what was read: a sample is let go when it is taken, and memory is used again when the last
sample that was read into it together with others is decoded. What is read and when is decided elsewhere (parts.py).
"""

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from wv_loader.buffers import Arenas
from wv_loader.parts import Part
from wv_loader.read import Extents, Sample
from wv_loader.stats import LoaderStats
from wv_shards import Dataset

READ_THREADS = 16
"""Reads that may be outstanding: more than the cores, as they wait for disks and networks."""
_TASK_BYTES = 1_000_000
"""A thread reads this much at a time, or one extent."""


class ReadAheadClosedError(Exception):
    """Somebody waited for samples of a loop that was left."""


class ReadAhead:
    """Rows of samples that are being read. `request` and `take` are each for one thread."""

    def __init__(self, dataset: Dataset, stats: LoaderStats, rows: int, arenas: Arenas) -> None:
        self._dataset = dataset
        self._stats = stats
        self._arenas = arenas
        self._rows: list[deque[_Stretch]] = [deque() for _ in range(rows)]
        self._requests: deque[_Request] = deque()
        self._closed = False
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="wv-read")

    def request(self, parts: Sequence[Part]) -> None:
        """Have parts read, behind those of earlier requests."""
        if not parts:
            return
        ordinals = np.concatenate([ordinals for _, ordinals in parts])
        extents = Extents(self._dataset, ordinals, memory=self._arenas.take, on_io_error=self._stats.add_io_error)
        request = _Request(ordinals, extents)
        start = 0
        for row, ordinals in parts:
            self._rows[row].append(_Stretch(request, start, start + len(ordinals)))
            start += len(ordinals)
        with self._lock:
            if self._closed:
                request.done.set()
                return
            self._requests.append(request)
            for first, last in request.tasks:
                self._threads.submit(self._read, request, first, last)

    def take(self, row_slots: Sequence[int], ordinals: NDArray[np.int64]) -> list[Sample]:
        """Wait for the samples of the next batch.

        Args:
            row_slots: slots that each row fills.
            ordinals: (n,) of the slots, row after row; −1 where a row has ended.

        Returns:
            n samples; None where the ordinal is −1.

        Raises:
            ReadAheadClosedError: `close` was called.
            Exception: whatever broke a reading thread.
        """
        samples: list[Sample] = []
        taken: list[NDArray[np.int64]] = []
        start = 0
        for row, slots in enumerate(row_slots):
            left = int(np.count_nonzero(ordinals[start : start + slots] >= 0))
            while left:
                stretch = self._rows[row][0]
                stretch.request.wait()
                if self._closed:
                    raise ReadAheadClosedError
                stop = min(stretch.stop, stretch.start + left)
                samples += stretch.request.hand_out(stretch.start, stop)
                taken.append(stretch.request.ordinals[stretch.start : stop])
                left -= stop - stretch.start
                stretch.start = stop
                if stop == stretch.stop:
                    self._rows[row].popleft()
            start += slots
            samples += [None] * (start - len(samples))
        # A mistake of ours here would show images under other images' labels.
        assert not taken or np.array_equal(np.concatenate(taken), ordinals[ordinals >= 0]), "samples out of order"
        with self._lock:
            while self._requests and self._requests[0].done.is_set():
                self._requests.popleft()
        return samples

    def close(self) -> None:
        """Wake whoever waits in `take`, drop what is not read yet, and end the threads."""
        with self._lock:
            self._closed = True
            for request in self._requests:
                request.done.set()
        self._threads.shutdown(cancel_futures=True)
        self._rows.clear()
        self._requests.clear()

    def _read(self, request: "_Request", first: int, last: int) -> None:
        started = self._stats.clock()
        try:
            size = request.extents.read(first, last, request.samples)
        except BaseException as error:
            request.fail(error)
            return
        self._stats.add_read(self._stats.clock() - started, size)
        request.finish_one()


class _Request:
    """Parts that are read together."""

    def __init__(self, ordinals: NDArray[np.int64], extents: Extents) -> None:
        self.ordinals = ordinals
        self.extents = extents
        self.samples: list[Sample] = [None] * len(ordinals)
        self.done = threading.Event()
        self.tasks = self._cut()
        self._left = len(self.tasks)
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def wait(self) -> None:
        self.done.wait()
        if self._error is not None:
            raise self._error

    def hand_out(self, start: int, stop: int) -> list[Sample]:
        samples = self.samples[start:stop]
        self.samples[start:stop] = [None] * (stop - start)
        return samples

    def finish_one(self) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.done.set()

    def _cut(self) -> list[tuple[int, int]]:
        """Ranges of extents for one thread each; one range at least."""
        behind = np.cumsum(self.extents.sizes)
        task = (behind - self.extents.sizes) // _TASK_BYTES
        borders = [0, *(np.flatnonzero(np.diff(task)) + 1).tolist(), len(task)]
        return list(itertools.pairwise(borders))


class _Stretch:
    """A part's samples within its request, from the next one that is shown."""

    __slots__ = ("request", "start", "stop")

    def __init__(self, request: _Request, start: int, stop: int) -> None:
        self.request = request
        self.start = start
        self.stop = stop
