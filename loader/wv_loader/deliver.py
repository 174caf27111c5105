"""After the pipeline: batches are brought to a device and go through the user's `transform`, ahead of the loop.

```
pipeline ─► wv-deliver thread: copy to the device, transform ─► consumer
                     at most two batches are here, ahead of the loop
```

In a thread, so that both overlap with the loop; in one thread and in order, so that `transform` needs no locks. Where
neither is asked for there is no thread and nothing to pay. It keeps no position: a batch that waits here is not done.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any, Self

import torch

from wv_loader.batch import Batch
from wv_loader.engine_choice import missing_gpu, usable_gpus
from wv_loader.errors import LoaderError, OptionError
from wv_loader.read import Failure
from wv_loader.stats import LoaderStats
from wv_shards import combine

Transform = Callable[[Batch], Any]
Taken = tuple[Batch, dict[int, Failure]]
_Made = tuple[Any, Batch, dict[int, Failure], torch.cuda.Event | None]
_AHEAD = 2
_TAG = 0x42415443  # keeps these seeds apart from the plan's draws


def batch_seed(seed: int, epoch: int, index: int) -> int:
    """`Batch.seed`: 0 … 2^63 − 1, as torch and NumPy take it."""
    return int(combine(seed, _TAG, epoch, index)) >> 1


def find_device(device: torch.device | str | None) -> torch.device | None:
    """The device of a name.

    Raises:
        LoaderError: no such device, or none here.
    """
    try:
        found = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device {device!r}: expected one of torch's, such as cpu or cuda:0") from error
    if found is not None and found.type == "cuda" and (found.index or 0) >= usable_gpus():
        raise LoaderError(f"device {device}: {missing_gpu(found)}")
    return found


class Delivery:
    """Batches in order, each as the consumer wants it. A context: leaving it ends its thread."""

    def __init__(
        self,
        take: Callable[[], Taken],
        count: int,
        *,
        transform: Transform | None,
        device: torch.device | None,
        stats: LoaderStats,
    ) -> None:
        """Begin to take batches, if there is anything to do to them.

        Args:
            take: gives the next batch; called `count` times at most, and not again after it has raised.
            transform, device: as of `Loader`.
            stats: gets the time that both take.
        """
        self._stats = stats
        self._take = take
        self._transform = transform
        self._device = device
        self._left = count
        self._failed = False
        self._under_way: deque[Future[_Made]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        if transform is None and (device is None or device.type == "cpu"):
            return  # batches are made there
        if device is not None and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wv-deliver")

    def __enter__(self) -> Self:
        for _ in range(_AHEAD):
            self._submit()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = True
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._under_way.clear()  # errors in it lead back here by their tracebacks, and to the loader

    def take(self) -> tuple[Any, Batch, dict[int, Failure]]:
        """Wait for the next batch: what to hand out, the batch in main memory, the failures of its slots."""
        if self._thread is None:
            batch, failures = self._take()
            return batch, batch, failures
        delivered, batch, failures, ready = self._under_way.popleft().result()
        self._submit()
        if ready is not None:
            # Made on another stream: this one waits for it, and its memory must not be used again before this
            # stream's work on it is done.
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready)
            for tensor in _tensors(delivered):
                tensor.record_stream(current)
        return delivered, batch, failures

    def _submit(self) -> None:
        if self._thread is not None and self._left:
            self._left -= 1
            self._under_way.append(self._thread.submit(self._next))

    def _next(self) -> _Made:
        if self._failed:
            raise RuntimeError("a batch before this one failed")
        try:
            with torch.cuda.stream(self._stream):  # of None does nothing
                batch, failures = self._take()
                started = self._stats.clock()
                delivered = self._deliver(batch)
            ready = None if self._stream is None else self._stream.record_event()
            self._stats.add_deliver(self._stats.clock() - started)
        except BaseException:
            self._failed = True
            raise
        return delivered, batch, failures, ready

    def _deliver(self, batch: Batch) -> Any:
        moved = batch if self._device is None else batch.to(self._device)
        if self._transform is None:
            return moved
        note = f"in the transform of batch {batch.index} of the loader"
        try:
            return self._transform(moved)
        except StopIteration as error:  # in the loader's generator Python would make an error of it that names nothing
            ended = RuntimeError("transform raised StopIteration, as next() does where there is no more")
            ended.add_note(note)
            raise ended from error
        except Exception as error:
            error.add_note(note)
            raise


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors on a GPU in a batch, or in what a `transform` made of it: containers and dataclasses are looked into."""
    if isinstance(value, torch.Tensor):
        if value.is_cuda:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
