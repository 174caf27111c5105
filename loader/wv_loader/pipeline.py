"""The threads between the plan and the consumer.

```
feed thread      read threads            decode threads          consumer
plan a batch ──► pread, checksum  ─────► decode, crop, resize ─► take batches in order
      ▲                                                                │
      └──────────── at most `prefetch` batches under way ◄─────────────┘
```

A batch travels in chunks of slots, so that its first chunk is decoded while its last is read. Whatever fails in a
thread reaches the consumer at the batch where it failed. The pipeline decides no order and keeps no state.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from wv_loader.augment import Crops
from wv_loader.batch import Batch
from wv_loader.engine import Engine
from wv_loader.read import Failure, read_samples
from wv_loader.stats import LoaderStats
from wv_shards import Dataset

_READ_THREADS = 4
_CHUNK_SLOTS = 16

Result = tuple[Batch, dict[int, Failure]]
"""A batch, and by slot why its samples failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One batch as far as it is known before anything was read: this rank's n slots."""

    number: int
    ordinals: NDArray[np.int64]
    """(n,); −1 where padded."""
    labels: NDArray[np.int64]
    """(n,)"""
    widths: NDArray[np.int64]
    """(n,) of the stored images."""
    heights: NDArray[np.int64]
    crops: Crops
    images: torch.Tensor
    """(n, S, S, 3) uint8, to be filled."""


class Pipeline:
    """Batches under way. A context: leaving it ends all threads."""

    def __init__(
        self,
        make_job: Callable[[int], Job],
        numbers: range,
        *,
        dataset: Dataset,
        engine: Engine,
        stats: LoaderStats,
        threads: int,
        prefetch: int,
    ) -> None:
        self.dataset = dataset
        self.engine = engine
        self.stats = stats
        self.readers = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="wv-read")
        self.decoders = ThreadPoolExecutor(threads, thread_name_prefix="wv-decode")
        self._make_job = make_job
        self._numbers = numbers
        self._room = threading.Semaphore(prefetch)
        self._stopping = threading.Event()
        self._under_way: dict[int, Future[Result]] = {}
        self._announced = threading.Condition()
        self._feeder = threading.Thread(target=self._feed, name="wv-feed", daemon=True)

    def __enter__(self) -> Self:
        self._feeder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._room.release()
        self._feeder.join()
        self.readers.shutdown(cancel_futures=True)
        self.decoders.shutdown(cancel_futures=True)

    def take(self, number: int) -> Result:
        """Wait for a batch. Each can be taken once, in the order of their numbers."""
        with self._announced:
            self._announced.wait_for(lambda: number in self._under_way)
            future = self._under_way.pop(number)
            self.stats.ready_batches = sum(other.done() for other in self._under_way.values())
        result = future.result()
        self._room.release()
        return result

    def _feed(self) -> None:
        for number in self._numbers:
            self._room.acquire()
            if self._stopping.is_set():
                return
            future: Future[Result] = Future()
            with self._announced:
                self._under_way[number] = future
                self._announced.notify()
            try:
                _Assembly(self, self._make_job(number), future).start()
            except Exception as error:
                future.set_exception(error)
                return


class _Assembly:
    """One batch on its way through the read and decode threads."""

    def __init__(self, pipeline: Pipeline, job: Job, future: Future[Result]) -> None:
        self._pipeline = pipeline
        self._job = job
        self._future = future
        self._pixels: NDArray[np.uint8] = job.images.numpy()  # shares memory
        self._failures: dict[int, Failure] = {}
        self._lock = threading.Lock()
        starts = range(0, len(job.ordinals), _CHUNK_SLOTS)
        self._chunks = [slice(start, min(start + _CHUNK_SLOTS, len(job.ordinals))) for start in starts]
        self._left = len(self._chunks)

    def start(self) -> None:
        for chunk in self._chunks:
            self._pipeline.readers.submit(self._guarded, partial(self._read, chunk))

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Exception as error:
            error.add_note(f"in batch {self._job.number} of the loader")
            with self._lock:
                if not self._future.done():
                    self._future.set_exception(error)

    def _read(self, chunk: slice) -> None:
        started = time.perf_counter()
        data = read_samples(self._pipeline.dataset, self._job.ordinals[chunk])
        size = sum(len(item) for item in data if isinstance(item, bytes))
        self._pipeline.stats.add_read(time.perf_counter() - started, size)
        self._pipeline.decoders.submit(self._guarded, partial(self._decode, chunk, data))

    def _decode(self, chunk: slice, data: list[bytes | Failure | None]) -> None:
        started = time.perf_counter()
        job = self._job
        crops = Crops(boxes=job.crops.boxes[chunk], flips=job.crops.flips[chunk])
        failures = self._pipeline.engine.decode(data, job.widths[chunk], job.heights[chunk], crops, self._pixels[chunk])
        self._pipeline.stats.add_decode(time.perf_counter() - started)
        with self._lock:
            self._failures.update({chunk.start + i: f for i, f in enumerate(failures) if f is not None})
            self._left -= 1
            if not self._left and not self._future.done():
                self._future.set_result((self._batch(), self._failures))

    def _batch(self) -> Batch:
        job = self._job
        valid = job.ordinals >= 0
        valid[list(self._failures)] = False
        return Batch(
            images=job.images.permute(0, 3, 1, 2),
            labels=torch.from_numpy(job.labels),
            ordinals=torch.from_numpy(job.ordinals),
            valid=torch.from_numpy(valid),
            index=job.number,
        )
