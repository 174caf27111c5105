"""The threads between the plan and the consumer.

```
feed thread            read threads          dispatch thread        decode threads         consumer
plan a batch, say ───► pread, checksum ────► wait for its samples, ─► decode, crop, ───► take batches in order
what to read                                 find memory for it       resize                  │
   ▲                                           ▲                                              │
   │                                           └── at most `prefetch` batches are pixels ─────┤
   └──────── at most `lead` more are files that are being read or wait to be decoded ─────────┘
```

So a storage that stands still is not noticed by a consumer for (lead + prefetch) times its time per batch, once that
much is under way. Whatever fails in a thread reaches the consumer at the batch where it failed. The pipeline decides no
order and keeps no state.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from wv_loader.batch import Batch
from wv_loader.parts import Part
from wv_loader.stage import Failures, Job
from wv_loader.stats import LoaderStats

_HEAD_START_S = 0.02
"""How long planning and reading ahead stand back, at the start, for the reads of the first batch."""

Result = tuple[Batch, Failures]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels of a batch."""

    images: torch.Tensor
    """(n, 3, S, S) uint8, channels-last in memory; zeros where there is no image."""
    failures: Failures
    ready: torch.cuda.Event | None = None
    """What a stream has to wait for before it reads images on a GPU."""


class Stage(Protocol):
    """Reads and decodes. `read` and `decode` are each called in one thread."""

    def read(self, parts: Sequence[Part]) -> None:
        """Have samples read that later jobs will show; each row's in the order of their showing."""

    def decode(self, job: Job) -> "Future[Decoded]":
        """Decode the next batch; its samples were asked for by `read`, and are waited for."""

    def close(self) -> None:
        """Wake whoever waits in `decode`, drop what is not begun, and end the threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A batch that is planned: what to read now, what to decode, and what comes along."""

    parts: Sequence[Part]
    job: Job
    labels: NDArray[np.int64]
    """(n,)"""


class Pipeline:
    """Batches under way. A context: leaving it ends its threads and closes the stage."""

    def __init__(
        self,
        make_order: Callable[[int], Order],
        numbers: range,
        *,
        stage: Stage,
        stats: LoaderStats,
        prefetch: int,
        lead: int,
    ) -> None:
        """Get ready; nothing runs before the context is entered.

        Args:
            make_order: plans a batch; called in the feed thread, in the order of the numbers.
            numbers: the batches.
            stage: reads and decodes.
            stats: gets the depth of the queue.
            prefetch: batches whose pixels may be under way, the one that the consumer takes next included.
            lead: batches beyond these whose samples may be read.
        """
        self._make_order = make_order
        self._numbers = numbers
        self._stage = stage
        self._stats = stats
        self._stopping = False
        self._read_room = threading.Semaphore(prefetch + lead)
        self._decode_room = threading.Semaphore(prefetch)
        self._fed: queue.SimpleQueue[Order | BaseException] = queue.SimpleQueue()
        self._under_way: deque[Future[tuple[Order, Decoded]]] = deque()
        self._announced = threading.Condition()
        self._begun = threading.Event()  # the first batch is read
        self._threads = [
            threading.Thread(target=self._feed, name="wv-feed", daemon=True),
            threading.Thread(target=self._dispatch, name="wv-dispatch", daemon=True),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._begun.set()
        self._read_room.release()
        self._decode_room.release()
        self._fed.put(_Stopped())
        self._stage.close()
        for thread in self._threads:
            thread.join()
        # Nothing will finish any more: who waits in `take`, in a thread of its own, is told.
        with self._announced:
            for batch in self._under_way:
                if not batch.done():
                    batch.set_exception(_Stopped())
            self._under_way.clear()
            self._announced.notify_all()

    def take(self) -> Result:
        """Wait for the next batch, and get it with the failures of its slots.

        Raises:
            BaseException: what went wrong in a thread, or that the context was left.
        """
        with self._announced:
            ready = sum(batch.done() for batch in self._under_way)
            self._stats.add_depths(ready=ready, under_way=len(self._under_way) - ready)
            self._announced.wait_for(lambda: self._under_way or self._stopping)
            if not self._under_way:
                raise _Stopped
            future = self._under_way[0]
        try:
            order, decoded = future.result()
        finally:
            del future  # an error in it would lead back to it by this frame
        with self._announced:
            if not self._stopping:
                self._under_way.popleft()
        self._decode_room.release()
        self._read_room.release()
        return _batch(order, decoded), decoded.failures

    def _feed(self) -> None:
        for number in self._numbers:
            self._read_room.acquire()
            if self._stopping:
                return
            try:
                started = self._stats.clock()
                order = self._make_order(number)
                self._stats.add_plan(self._stats.clock() - started)
                self._stage.read(order.parts)
            except BaseException as error:
                self._fed.put(error)
                return
            self._fed.put(order)
            if number == self._numbers.start:
                self._begun.wait(_HEAD_START_S)

    def _dispatch(self) -> None:
        for number in self._numbers:
            self._decode_room.acquire()
            order = self._fed.get()
            if self._stopping:
                return
            result: Future[tuple[Order, Decoded]] = Future()
            try:
                if isinstance(order, BaseException):
                    raise order
                self._stage.decode(order.job).add_done_callback(_HandOn(order, result))
                self._begun.set()
            except BaseException as error:
                error.add_note(f"in batch {number} of the loader")
                result.set_exception(error)
            with self._announced:
                self._under_way.append(result)
                self._announced.notify()
            failed = result.done() and result.exception() is not None
            # Or the memory of the batch would not be free while this thread waits, and an error would lead to itself.
            del order, result
            if failed:
                return


class _Stopped(BaseException):
    """Ends a thread that waits for work."""


@dataclass(frozen=True, slots=True)
class _HandOn:
    """Puts a batch that is decoded beside its order."""

    order: Order
    result: "Future[tuple[Order, Decoded]]"

    def __call__(self, decoded: "Future[Decoded]") -> None:
        try:
            self.result.set_result((self.order, decoded.result()))
        except BaseException as error:
            error.add_note(f"in batch {self.order.job.number} of the loader")
            self.result.set_exception(error)


def _batch(order: Order, decoded: Decoded) -> Batch:
    """The batch, for the thread and the stream that take it."""
    if decoded.ready is not None:
        stream = torch.cuda.current_stream(decoded.images.device)
        stream.wait_event(decoded.ready)
        decoded.images.record_stream(stream)  # its memory is not used again before this stream's work on it is done
    job = order.job
    valid = job.ordinals >= 0
    valid[list(decoded.failures)] = False
    return Batch(
        images=decoded.images,
        labels=torch.from_numpy(order.labels),
        ordinals=torch.from_numpy(job.ordinals),
        valid=torch.from_numpy(valid),
        index=job.number,
    )
