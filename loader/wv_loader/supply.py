"""What loops over the loader work with and keep between them: threads or processes, memory of batches and of files."""

import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from wv_loader.batch import batch_memory
from wv_loader.buffers import Arenas, Buffers
from wv_loader.dali_flight import DaliSupply
from wv_loader.dali_stage import DaliStage
from wv_loader.engine import Engine, is_dali
from wv_loader.parts import Part, ReadAheadSize
from wv_loader.pipeline import Decoded, Stage
from wv_loader.processes import ProcessStage, Workers
from wv_loader.share import Share, local_ranks
from wv_loader.stage import Failures, Job, ThreadStage
from wv_loader.stats import LoaderStats
from wv_shards import Dataset

if TYPE_CHECKING:
    from wv_loader.decode_dali import DaliEngine

_MOST_READ_AHEAD_BYTES = 2 << 30
_SOME = 10_000
_KEPT_OF_BUDGET = 8
"""A part of the memory for files that are read ahead is kept between loops."""


class Supply:
    """Begins loops; holds nothing of their order or position."""

    def __init__(
        self,
        dataset: Dataset,
        engine: "Engine | DaliEngine",
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
        budget_bytes = default_read_ahead_bytes() if read_ahead_bytes is None else read_ahead_bytes
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
        self._dali: DaliSupply | None = None
        self.workers: Workers | None = None
        """Worker processes, once a loop has needed them."""
        self._end_workers: Callable[[], object] = lambda: None

    def begin(self) -> Stage:
        """What reads and decodes in one loop; no other loop runs."""
        if is_dali(self._engine):
            self._dali = self._dali or self._dali_of(self._engine)
            return DaliStage(
                self._dataset,
                self._dali,
                self._stats,
                self._arenas,
                row_slots=self._share.row_slots,
                size_px=self._shape[1],
                threads=self._threads,
            )
        if not self._processes:
            stage = ThreadStage(
                self._dataset,
                self._engine,
                self._stats,
                self._arenas,
                row_slots=self._share.row_slots,
                threads=self._threads,
            )
            return _IntoMemory(stage, batch_memory(self._shape, self._buffers.take))
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
        return _IntoMemory(self.workers.begin(), batch_memory(self._shape, self.workers.memory))

    def close(self) -> None:
        """End the worker processes and DALI's pipeline; the next loop starts new ones."""
        self._end_workers()
        self.workers = None
        if self._dali is not None:
            self._dali.close()

    def _dali_of(self, engine: "DaliEngine") -> DaliSupply:
        from wv_loader.decode_dali import open_pipeline  # DALI may be missing

        slots, size_px, *_ = self._shape
        hint_px = _usual_size(self._dataset)
        return DaliSupply(
            engine,
            partial(open_pipeline, engine, slots=slots, size_px=size_px, threads=self._threads, hint_px=hint_px),
        )


@dataclass(frozen=True, slots=True)
class _IntoMemory:
    """Threads or processes that write pixels into memory of ours."""

    stage: ThreadStage | ProcessStage
    memory: Callable[[], torch.Tensor]
    """Gives (n, S, S, 3) uint8."""

    def read(self, parts: Sequence[Part]) -> None:
        self.stage.read(parts)

    def decode(self, job: Job) -> "Future[Decoded]":
        images = self.memory()
        result: Future[Decoded] = Future()
        self.stage.decode(job, images.numpy()).add_done_callback(partial(_hand_on, images, result))
        return result

    def close(self) -> None:
        self.stage.close()


def _hand_on(images: torch.Tensor, result: "Future[Decoded]", decoded: "Future[Failures]") -> None:
    error = decoded.exception()
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(Decoded(images.permute(0, 3, 1, 2), decoded.result()))


def _usual_size(dataset: Dataset) -> tuple[int, int]:
    """Width and height that hardly an image exceeds: the largest of some, spread over the data set."""
    some = dataset.index[:: max(1, len(dataset.index) // _SOME)]
    return int(some["width"].max(initial=1)), int(some["height"].max(initial=1))


def _default_threads() -> int:
    return max(1, len(os.sched_getaffinity(0)) // local_ranks())


def default_read_ahead_bytes() -> int:
    """Memory for files that are read ahead, of each rank, where nothing is said of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory // 8, _MOST_READ_AHEAD_BYTES) // local_ranks()
