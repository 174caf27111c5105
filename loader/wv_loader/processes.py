"""Reading and decoding in worker processes, for machines with more cores than one process can feed.

```
this process: plan, consumer  ══ jobs as arrays ══► worker 0 … P−1: read and decode their rows of each batch (worker.py)
       ▲                                                   │
       └──────── batches: shared memory without a name ◄───┘
```

Shared memory is a file without a name (memfd): there is nothing to clean up, however a process ends. Workers are
started afresh, not forked, and need no `if __name__ == "__main__"` of the program; they end when this process does.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

import numpy as np

from wv_loader.buffers import Buffers, Pixels
from wv_loader.engine import Engine
from wv_loader.errors import LoaderError
from wv_loader.parts import Part
from wv_loader.readahead import ReadAheadClosedError
from wv_loader.stage import Failures, Job
from wv_loader.stats import LoaderStats
from wv_loader.worker import Broken, Decode, Decoded, End, Ended, Forget, Read, Setup, Share, shared_pixels

_START = "import sys; from wv_loader.worker import main; main(int(sys.argv[1]))"
_PATIENCE_S = 10.0
"""How long a worker may take to end before it is killed: it may stand in a read."""


class Workers:
    """Worker processes that live as long as the loader, and the memory that they share with it."""

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        stats: LoaderStats,
        *,
        processes: int,
        threads: int,
        row_slots: Sequence[int],
        size_px: int,
        spare: int,
        arena_bytes: int,
    ) -> None:
        """Start them.

        Args:
            directory: of the data set.
            engine: goes to the workers, pickled.
            stats: gets what they count.
            processes: P, at most as many as there are rows.
            threads: that decode, in all processes together; each has one at least.
            row_slots: slots of a batch that each row fills.
            size_px: S.
            spare: batches' memory to keep that nobody uses.
            arena_bytes: memory for files to keep that nobody uses, in all processes together.
        """
        self._stats = stats
        stats.threads.update(read=processes, decode=processes * max(1, threads // processes))
        self._shape = (sum(row_slots), size_px, size_px, 3)
        borders = [len(row_slots) * p // processes for p in range(processes + 1)]
        self._workers = [
            _Worker(
                Setup(
                    directory=directory.absolute(),
                    engine=engine,
                    row_slots=list(row_slots[first:last]),
                    threads=max(1, threads // processes),
                    arena_bytes=arena_bytes // processes,
                ),
                rows=range(first, last),
                slots=slice(sum(row_slots[:first]), sum(row_slots[:last])),
            )
            for first, last in itertools.pairwise(borders)
        ]
        self._addresses: dict[int, int] = {}  # of shared memory → its number
        self._dropped: deque[int] = deque()
        self._numbers = itertools.count()
        self._buffers = Buffers(self._allocate, spare=spare)
        self._changed = threading.Condition()
        self._pending: dict[int, _Pending] = {}
        self._ended = 0
        self._closing = False
        self.error: LoaderError | None = None
        """Why no more work is possible, or None."""
        self._receiver = threading.Thread(target=self._receive, name="wv-receive", daemon=True)
        self._receiver.start()

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [worker.process.pid for worker in self._workers]

    def memory(self) -> Pixels:
        """(n, S, S, 3) uint8 for a batch, shared, that nobody refers to."""
        return self._buffers.take()

    def begin(self) -> "ProcessStage":
        """What reads and decodes in one loop over the loader; the one before has been left."""
        return ProcessStage(self)

    def close(self) -> None:
        """End the processes."""
        self._closing = True
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.wait()
        if threading.current_thread() is not self._receiver:
            self._receiver.join()

    def send(self, make: Callable[["_Worker"], object]) -> None:
        """Send each worker what is made for it; None: nothing."""
        for worker in self._workers:
            if (message := make(worker)) is not None:
                worker.send(message)

    def decode(self, job: Job, pixels: Pixels) -> "Future[Failures]":
        buffer = self._addresses.get(_address(pixels))
        shared = pixels if buffer is not None else self.memory()
        pending = _Pending(len(self._workers), None if buffer is not None else pixels, shared)
        number = self._addresses[_address(shared)]
        with self._changed:
            if self.error is not None:
                raise self.error
            self._pending[job.number] = pending
        self.send(lambda worker: Decode(job.slots(worker.slots), number, worker.slots.start))
        return pending.future

    def end(self) -> None:
        """Wait until no worker writes pixels any more."""
        self._ended = 0
        self.send(lambda _: End())
        with self._changed:
            ended = self._changed.wait_for(self._has_ended, _PATIENCE_S)
        if not ended:
            self.kill()
        with self._changed:
            self._pending.clear()

    def _has_ended(self) -> bool:
        return self._ended == len(self._workers) or self.error is not None or self._closing

    def kill(self) -> None:
        """End processes that may have been stopped or stand in a read; the next loop starts new ones."""
        self._fail(f"worker processes of the loader did not answer within {_PATIENCE_S:g} s, and were killed")
        for worker in self._workers:
            worker.process.kill()

    def _allocate(self) -> Pixels:
        while self._dropped:
            forget = Forget(self._dropped.popleft())
            for worker in self._workers:
                worker.send(forget)
        number = next(self._numbers)
        descriptor = os.memfd_create("wv-loader")
        try:
            os.ftruncate(descriptor, int(np.prod(self._shape)))
            pixels = shared_pixels(descriptor, self._shape)
            for worker in self._workers:
                worker.send(Share(number, self._shape), descriptor)
        finally:
            os.close(descriptor)
        self._addresses[_address(pixels)] = number
        weakref.finalize(pixels, _drop, self._addresses, self._dropped, _address(pixels))
        return pixels

    def _receive(self) -> None:
        by_connection = {worker.connection: worker for worker in self._workers}
        while not self._closing:
            for ready in wait(list(by_connection)):
                assert isinstance(ready, Connection)
                worker = by_connection[ready]
                try:
                    message = ready.recv()
                except (EOFError, OSError):
                    if not self._closing:
                        self._fail(worker.obituary())
                    return
                self._handle(worker, message)
                if self.error is not None:
                    return

    def _handle(self, worker: "_Worker", message: Decoded | Broken | Ended) -> None:
        match message:
            case Ended():
                with self._changed:
                    self._ended += 1
                    self._changed.notify_all()
            case Broken(number, error):
                if number is None:
                    self._fail(str(error))
                elif (pending := self._pending.get(number)) is not None and not pending.future.done():
                    pending.future.set_exception(error)
            case Decoded(number, failures, read_seconds, read_bytes, decode_seconds, late_seconds, io_errors):
                self._stats.add_read(read_seconds, read_bytes)
                self._stats.add_decode(decode_seconds)
                self._stats.add_late(late_seconds)
                for (shard, errno), count in io_errors.items():
                    self._stats.add_io_error(shard, errno, count)
                pending = self._pending[number]
                pending.failures.update({worker.slots.start + slot: why for slot, why in failures.items()})
                pending.left -= 1
                if not pending.left and not pending.future.done():
                    del self._pending[number]
                    pending.finish()

    def _fail(self, message: str) -> None:
        with self._changed:
            if self.error is None:  # else this follows from what was first
                self.error = LoaderError(message)
            pending = list(self._pending.values())
            self._pending.clear()
            self._changed.notify_all()
        for batch in pending:
            if not batch.future.done():
                batch.future.set_exception(LoaderError(str(self.error)))


class ProcessStage:
    """One loop's reading and decoding in worker processes; as `ThreadStage`, but `decode` does not wait."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._closing = threading.Lock()  # nothing may be sent behind the end
        self._closed = False

    def read(self, parts: Sequence[Part]) -> None:
        """Have samples read that later jobs will show; each row's in the order of their showing."""

        def share(worker: _Worker) -> Read | None:
            mine = [(row - worker.rows.start, ordinals) for row, ordinals in parts if row in worker.rows]
            return Read(mine) if mine else None

        with self._closing:
            if not self._closed:
                self._workers.send(share)

    def decode(self, job: Job, pixels: Pixels) -> "Future[Failures]":
        """Decode the next batch, as soon as its samples are read.

        Args:
            job: its samples were asked for by `read`.
            pixels: (n, S, S, 3) uint8, to be written; zeros where there is no image. Memory that is not the workers'
                is written here, after them.

        Raises:
            LoaderError: a worker has died.
            ReadAheadClosedError: `close` was called.
        """
        with self._closing:
            if self._closed:
                raise ReadAheadClosedError
            return self._workers.decode(job, pixels)

    def close(self) -> None:
        """Wait until the workers have dropped what is not done; they stay, unless that takes too long."""
        if not self._closing.acquire(timeout=_PATIENCE_S):  # a send holds it, to a process that takes nothing
            self._workers.kill()
            self._closing.acquire()
        self._closed = True
        self._closing.release()
        self._workers.end()


class _Worker:
    """This side of one process."""

    def __init__(self, setup: Setup, *, rows: range, slots: slice) -> None:
        self.rows = rows
        self.slots = slots
        """Of a batch."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-c", _START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)},
                process_group=0,  # Ctrl-C on a terminal is not for them
            )
            self.connection: Connection[Any, Any] = Connection(ours.detach())
        self._sending = threading.Lock()
        self.send(setup)

    def send(self, message: object, descriptor: int | None = None) -> None:
        """Send a message; to a process that has died it goes nowhere, which the receiver finds out."""
        with self._sending, suppress(OSError):
            self.connection.send(message)
            if descriptor is not None:
                send_handle(self.connection, descriptor, None)

    def hang_up(self) -> None:
        """The process ends when its connection does."""
        with socket.socket(fileno=os.dup(self.connection.fileno())) as ours, suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)

    def wait(self) -> None:
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):  # a read that can't be interrupted
                self.process.wait(_PATIENCE_S)
        self.connection.close()

    def obituary(self) -> str:
        """How the process ended, for a person."""
        try:
            code = self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"worker process {self.process.pid} of the loader hung up and still runs"
        if code < 0:
            return (
                f"worker process {self.process.pid} of the loader was killed by {signal.Signals(-code).name}: "
                "was memory short? Resume from the last checkpoint, with fewer processes or a smaller read_ahead_bytes"
            )
        return f"worker process {self.process.pid} of the loader ended with exit code {code}: see what it printed"


class _Pending:
    """A batch that workers are at."""

    def __init__(self, workers: int, copy_to: Pixels | None, shared: Pixels) -> None:
        self.left = workers
        self.failures: Failures = {}
        self.future: Future[Failures] = Future()
        self._copy_to = copy_to
        self._shared = shared  # held until they have written it

    def finish(self) -> None:
        if self._copy_to is not None:
            np.copyto(self._copy_to, self._shared)
        self.future.set_result(self.failures)


def _address(pixels: Pixels) -> int:
    return int(pixels.__array_interface__["data"][0])


def _drop(addresses: dict[int, int], dropped: "deque[int]", address: int) -> None:
    dropped.append(addresses.pop(address))
