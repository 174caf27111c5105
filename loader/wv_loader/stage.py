"""Reading and decoding on threads of one process: jobs in, pixels out. Knows no plan and no consumer."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_loader.augment import Crops, Effects
from wv_loader.buffers import Arenas
from wv_loader.effects import apply_effects
from wv_loader.engine import Engine
from wv_loader.parts import Part
from wv_loader.read import Failure, Sample
from wv_loader.readahead import ReadAhead
from wv_loader.stats import LoaderStats
from wv_shards import Dataset

MAX_CHUNK_SLOTS = 32
"""Slots that a thread decodes in one call; fewer where a batch would not keep all threads busy."""
_CHUNKS_PER_THREAD = 4

Failures = dict[int, Failure]
"""By slot of a batch why its sample is masked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One batch as far as it is known before anything was read: n slots, row after row."""

    number: int
    ordinals: NDArray[np.int64]
    """(n,); −1 where padded."""
    widths: NDArray[np.int64]
    """(n,) of the stored images."""
    heights: NDArray[np.int64]
    crops: Crops
    effects: Effects | None

    def slots(self, wanted: slice) -> "Job":
        """The same for some of the slots."""
        return Job(
            number=self.number,
            ordinals=self.ordinals[wanted],
            widths=self.widths[wanted],
            heights=self.heights[wanted],
            crops=Crops(boxes=self.crops.boxes[wanted], flips=self.crops.flips[wanted]),
            effects=None if self.effects is None else self.effects.slots(wanted),
        )


class ThreadStage:
    """Threads that read ahead, and threads that decode. `read` and `decode` are each for one thread."""

    def __init__(
        self,
        dataset: Dataset,
        engine: Engine,
        stats: LoaderStats,
        arenas: Arenas,
        *,
        row_slots: Sequence[int],
        threads: int,
    ) -> None:
        self._arenas = arenas
        self._engine = engine
        self._stats = stats
        self._row_slots = row_slots
        self._chunk = min(MAX_CHUNK_SLOTS, max(1, sum(row_slots) // (_CHUNKS_PER_THREAD * threads)))
        self._read_ahead = ReadAhead(dataset, stats, len(row_slots), arenas)
        stats.threads["decode"] = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="wv-decode")

    def read(self, parts: Sequence[Part]) -> None:
        """Have samples read that later jobs will show; each row's in the order of their showing."""
        self._read_ahead.request(parts)

    def decode(self, job: Job, pixels: NDArray[np.uint8]) -> "Future[Failures]":
        """Decode the next batch, as soon as its samples are read: waits for them.

        Args:
            job: its samples were asked for by `read`.
            pixels: (n, S, S, 3) uint8, to be written; zeros where there is no image.
        """
        started = self._stats.clock()
        samples = self._read_ahead.take(self._row_slots, job.ordinals)
        self._stats.add_late(self._stats.clock() - started)
        return _Assembly(self._threads, self._engine, self._stats, job, pixels).start(samples, self._chunk)

    def close(self) -> None:
        """Wake whoever waits in `decode`, drop what is not begun, and end the threads."""
        self._read_ahead.close()
        self._threads.shutdown(cancel_futures=True)
        self._arenas.trim()


class _Assembly:
    """One batch on its way through the decode threads."""

    def __init__(
        self,
        threads: ThreadPoolExecutor,
        engine: Engine,
        stats: LoaderStats,
        job: Job,
        pixels: NDArray[np.uint8],
    ) -> None:
        self._threads = threads
        self._engine = engine
        self._stats = stats
        self._job = job
        self._pixels = pixels
        self._failures: Failures = {}
        self._future: Future[Failures] = Future()
        self._lock = threading.Lock()
        self._left = 0

    def start(self, samples: list[Sample], chunk: int) -> "Future[Failures]":
        starts = range(0, len(samples), chunk)
        self._left = len(starts)
        for start in starts:
            slots = slice(start, min(start + chunk, len(samples)))
            self._threads.submit(self._decode, slots, samples[slots])
        return self._future

    def _decode(self, slots: slice, samples: list[Sample]) -> None:
        started = self._stats.clock()
        try:
            job = self._job.slots(slots)
            found = self._engine.decode(samples, job.widths, job.heights, job.crops, self._pixels[slots])
            if job.effects is not None:
                shown = [sample is not None and why is None for sample, why in zip(samples, found, strict=True)]
                apply_effects(job.effects, self._pixels[slots], shown)
        except BaseException as error:
            with self._lock:
                if not self._future.done():
                    self._future.set_exception(error)
            return
        self._stats.add_decode(self._stats.clock() - started)
        with self._lock:
            self._failures.update({slots.start + i: failure for i, failure in enumerate(found) if failure is not None})
            self._left -= 1
            if not self._left and not self._future.done():
                self._future.set_result(self._failures)
