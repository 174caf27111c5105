"""What a worker process of the loader does: reads and decodes its share of every batch into memory that all share.

It is started by processes.py and ends when its connection does, so also when the process that started it is killed.
It sees no plan: what to read and what to show come as arrays.
"""

import errno
import mmap
import os
import pickle
import queue
import resource
import signal
import threading
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np

from wv_loader.buffers import Arenas, Pixels
from wv_loader.engine import Engine
from wv_loader.errors import LoaderError
from wv_loader.parts import Part
from wv_loader.stage import Failures, Job, ThreadStage
from wv_loader.stats import LoaderStats
from wv_shards import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """First message to a worker."""

    directory: Path
    engine: Engine
    row_slots: list[int]
    """Slots of a batch that each row of this worker fills."""
    threads: int
    """That decode."""
    arena_bytes: int
    """Memory for files to keep that nobody uses."""


@dataclass(frozen=True, slots=True)
class Share:
    """Memory that a batch's pixels go to; its descriptor follows the message."""

    buffer: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """The memory is no longer used."""

    buffer: int


@dataclass(frozen=True, slots=True)
class Read:
    """Read parts; rows are counted within this worker's."""

    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode the next batch."""

    job: Job
    buffer: int
    first_slot: int
    """Of this worker's, within the batch."""


@dataclass(frozen=True, slots=True)
class End:
    """Leave the loop: write no more pixels, forget what was read. Answered by an `Ended`."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A worker's share of a batch is done."""

    number: int
    failures: Failures
    """By slot within the worker's share."""
    read_seconds: float
    """Since the last message, as all that follow."""
    read_bytes: int
    decode_seconds: float
    late_seconds: float
    io_errors: dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Broken:
    """An exception that is nobody's bad image."""

    number: int | None
    """Of the batch; None: nothing more will come."""
    error: BaseException


@dataclass(frozen=True, slots=True)
class Ended:
    """Answer to `End`."""


def main(descriptor: int) -> None:
    """Serve the connection that has this descriptor until it ends."""
    # Ctrl-C is for the process that started this one, which then ends the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        _Worker(connection, connection.recv()).serve()
    except (EOFError, ConnectionError):
        os._exit(0)  # without waiting for threads that read or decode for nobody


class _Worker:
    def __init__(self, connection: "Connection[Any, Any]", setup: Setup) -> None:
        self._connection = connection
        self._setup = setup
        self._sending = threading.Lock()
        self._dataset = Dataset.open(setup.directory)
        self._buffers: dict[int, Pixels] = {}
        self._arenas = Arenas(setup.arena_bytes)
        self._stats = LoaderStats()
        self._counted = self._stats.snapshot()
        self._loop: _Loop | None = None

    def serve(self) -> None:
        while True:
            message = self._connection.recv()
            match message:
                case Share(buffer, shape):
                    self._buffers[buffer] = self._shared(shape)
                case Forget(buffer):
                    del self._buffers[buffer]
                case Read(parts):
                    self._begun().stage.read(parts)
                case Decode(job, buffer, first_slot):
                    pixels = self._buffers[buffer][first_slot : first_slot + len(job.ordinals)]
                    self._begun().jobs.put((job, pixels))
                case End():
                    if self._loop is not None:
                        self._loop.close()
                        self._loop = None
                    self.send(Ended())

    def send(self, message: Decoded | Broken | Ended) -> None:
        with self._sending:
            self._send(message)

    def answer(self, number: int, decoded: "Future[Failures]") -> None:
        """Called in a decode thread when a share of a batch is done."""
        error = decoded.exception()
        if error is not None:
            self.send(Broken(number, _portable(error)))
            return
        with self._sending:
            now = self._stats.snapshot()
            added, self._counted = now.since(self._counted), now
            self._send(
                Decoded(
                    number=number,
                    failures=decoded.result(),
                    read_seconds=added.read_seconds_total,
                    read_bytes=added.bytes,
                    decode_seconds=added.decode_seconds_total,
                    late_seconds=added.read_late_seconds_total,
                    io_errors=dict(added.io_errors),
                )
            )

    def _send(self, message: Decoded | Broken | Ended) -> None:
        try:
            self._connection.send(message)
        except OSError:  # nobody is there any more
            os._exit(0)

    def _shared(self, shape: tuple[int, ...]) -> Pixels:
        """The memory that comes behind a `Share`."""
        try:
            descriptor = recv_handle(self._connection)
            try:
                return shared_pixels(descriptor, shape)
            finally:
                os.close(descriptor)
        except (RuntimeError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EMFILE:
                raise
            # No descriptor came, or it can't be used: too many files are open here.
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            text = f"a worker process of the loader may open {limit} files, which is too few"
            self.send(Broken(None, LoaderError(f"{text}; raise the limit (ulimit -n 4096)")))
            os._exit(1)

    def _begun(self) -> "_Loop":
        if self._loop is None:
            setup = self._setup
            stage = ThreadStage(
                self._dataset, setup.engine, self._stats, self._arenas, row_slots=setup.row_slots, threads=setup.threads
            )
            self._loop = _Loop(self, stage)
        return self._loop


class _Loop:
    """One iteration over the loader."""

    def __init__(self, worker: _Worker, stage: ThreadStage) -> None:
        self.stage = stage
        self.jobs: queue.SimpleQueue[tuple[Job, Pixels] | None] = queue.SimpleQueue()
        self._worker = worker
        self._closing = False
        self._dispatcher = threading.Thread(target=self._dispatch, name="wv-dispatch", daemon=True)
        self._dispatcher.start()

    def close(self) -> None:
        self._closing = True
        self.jobs.put(None)
        self.stage.close()
        self._dispatcher.join()

    def _dispatch(self) -> None:
        while (item := self.jobs.get()) is not None and not self._closing:
            job, pixels = item
            try:
                decoded = self.stage.decode(job, pixels)
            except BaseException as error:
                if not self._closing:
                    self._worker.send(Broken(job.number, _portable(error)))
                return
            decoded.add_done_callback(partial(self._worker.answer, job.number))


def shared_pixels(descriptor: int, shape: tuple[int, ...]) -> Pixels:
    """(shape) uint8: the memory of a file, mapped; gone when nothing refers to the array."""
    return np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), dtype=np.uint8).reshape(shape)


def _portable(error: BaseException) -> BaseException:
    """The same, or where it can't be sent, an error that says what it said."""
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:
        return LoaderError(f"{type(error).__name__} in a worker process: {error}")
    return error
