"""What loops over the loader work with and keep between them: threads or processes, memory of batches and of files."""

import os
import weakref
from collections.abc import Callable

import numpy as np
import torch

from wv_loader.batch import batch_memory
from wv_loader.buffers import Arenas, Buffers
from wv_loader.engine import Engine
from wv_loader.parts import ReadAheadSize
from wv_loader.processes import ProcessStage, Workers
from wv_loader.share import Share, local_ranks
from wv_loader.stage import ThreadStage
from wv_loader.stats import LoaderStats
from wv_shards import Dataset

_MOST_READ_AHEAD_BYTES = 2 << 30
_KEPT_OF_BUDGET = 8
"""A part of the memory for files that are read ahead is kept between loops."""


class Supply:
    """Begins loops; holds nothing of their order or position."""

    def __init__(
        self,
        dataset: Dataset,
        engine: Engine,
        stats: LoaderStats,
        share: Share,
        *,
        sample_bytes: float,
        size_px: int,
        threads: int | None,
        processes: int,
        prefetch: int,
        read_ahead_batches: int,
        read_ahead_bytes: int | None,
        window: int,
        streams: int,
    ) -> None:
        """Start nothing yet.

        Args:
            dataset, engine, stats: the loader's.
            share: this rank's.
            sample_bytes: mean size of an image file.
            size_px, threads, processes, prefetch, read_ahead_batches, read_ahead_bytes, window: as of `Loader`.
            streams: rows of all ranks, whose windows end one after the other.
        """
        self._dataset = dataset
        self._engine = engine
        self._stats = stats
        self._share = share
        self._threads = threads or _default_threads()
        self._processes = processes
        self._prefetch = prefetch
        budget_bytes = _default_read_ahead() if read_ahead_bytes is None else read_ahead_bytes
        self._arena_bytes = budget_bytes // _KEPT_OF_BUDGET
        self._arenas = Arenas(self._arena_bytes)
        self.read_ahead = ReadAheadSize.within(
            budget_bytes,
            sample_bytes=sample_bytes,
            rows=len(share.rows),
            row_slots=len(share.slots) // len(share.rows),
            window=window,
            lead=read_ahead_batches,
            streams=streams,
        )
        """How much is read ahead."""
        self._shape = shape = (len(share.slots), size_px, size_px, 3)
        self._buffers = Buffers(lambda: np.empty(shape, dtype=np.uint8), spare=prefetch)
        self.workers: Workers | None = None
        """Worker processes, once a loop has needed them."""
        self._end_workers: Callable[[], object] = lambda: None

    def begin(self) -> tuple[ThreadStage | ProcessStage, Callable[[], torch.Tensor]]:
        """What reads and decodes in one loop, and what gives the memory of its batches; no other loop runs."""
        if not self._processes:
            stage = ThreadStage(
                self._dataset,
                self._engine,
                self._stats,
                self._arenas,
                row_slots=self._share.row_slots,
                threads=self._threads,
            )
            return stage, batch_memory(self._shape, self._buffers.take)
        if self.workers is None or self.workers.error is not None:
            self._end_workers()
            self.workers = Workers(
                self._dataset.directory,
                self._engine,
                self._stats,
                processes=self._processes,
                threads=self._threads,
                row_slots=self._share.row_slots,
                size_px=self._shape[1],
                spare=self._prefetch,
                arena_bytes=self._arena_bytes,
            )
            self._end_workers = weakref.finalize(self, self.workers.close)
        return self.workers.begin(), batch_memory(self._shape, self.workers.memory)

    def close(self) -> None:
        """End the worker processes; the next loop starts new ones."""
        self._end_workers()
        self.workers = None


def _default_threads() -> int:
    return max(1, len(os.sched_getaffinity(0)) // local_ranks())


def _default_read_ahead() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory // 8, _MOST_READ_AHEAD_BYTES) // local_ranks()
