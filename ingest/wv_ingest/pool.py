"""Worker processes that do jobs and answer, in any order. They never outlive their parent.

Unlike `concurrent.futures` it can be stopped at once, and knows which worker died, and at which item of its job. The
item is then tried alone in a new process; if it kills that one too it is condemned, and the job is done again
without it. It knows nothing of images.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from wv_ingest.chatter import Chatter
from wv_ingest.errors import WorkerDiedError

Job = TypeVar("Job")
Result = TypeVar("Result")

COUNTERS = 5
"""Numbers that a worker counts up while it is at work: their meaning is the handler's."""
MEMORY_EXIT = 77
"""A worker that leaves with this code says that an item wanted more memory than it may have."""
_MAX_DEATHS = 5
"""A job that has lost so many workers without any item being to blame ends the run."""
_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM}
"""Deaths that someone else (a person, the OOM killer) may have dealt."""
_NO_ITEM = -1
_ARMED_ITEMS = 64
_REPORT_SECONDS = 0.2
_STOP_SECONDS = 5.0


class Verdict(StrEnum):
    """What an item did, alone in a process of its own."""

    CRASHED = "crashed"
    CPU_LIMIT = "cpu-limit"
    MEMORY_LIMIT = "memory-limit"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLimits:
    """What one item may cost: CPU time, which a busy machine does not change, and memory."""

    max_cpu_s: float = 60.0
    """Of the process, user and system, for one item."""
    max_memory_mb: int = 4096
    """Writable private memory for one item, in million bytes, on top of what the worker holds before it."""

    def __post_init__(self) -> None:
        if not self.max_cpu_s > 0:
            raise ValueError(f"the limit of CPU time must be positive, got {self.max_cpu_s} s")
        if self.max_memory_mb < 64:
            raise ValueError(f"an item needs 64 MB or more, got {self.max_memory_mb}")


@dataclass(slots=True)
class _Task:
    """A job and what is known of it. With `probe` set, only that item is tried."""

    job: Any
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    probe: int | None = None
    deaths: int = 0


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    item: Any
    """Shared: the number of the item that it is at, or _NO_ITEM."""
    task: _Task | None = None
    counted: list[int] = field(default_factory=lambda: [0] * COUNTERS)
    """What it has reported of its present task."""


class WorkerPool(Generic[Job, Result]):
    """`count` spawned processes, each with its own copy of `handler`; one that dies is replaced.

    Args:
        count: how many processes.
        handler: picklable; called in a worker as `handler(job, desk)`.
        limits: of each worker.
    """

    def __init__(
        self, count: int, handler: "Callable[[Job, Desk], Result]", limits: WorkerLimits | None = None
    ) -> None:
        self._handler, self._limits = handler, limits or WorkerLimits()
        self._counters = [0] * COUNTERS
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        item = context.RawValue("q", _NO_ITEM)
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._handler, self._limits, item), daemon=True)
        _start_deaf_to_ctrl_c(process)
        theirs.close()  # so that its end is felt when the worker dies
        return _Worker(process, ours, item)

    def counters(self) -> tuple[int, ...]:
        """Sums over all workers of what they have counted so far."""
        return tuple(self._counters)

    def run(
        self, jobs: Iterable[Job], tick: Callable[[], None] = lambda: None, tick_seconds: float = 0.2
    ) -> Iterator[Result]:
        """Do all jobs; yields results as they come. `tick` is called every now and then while waiting.

        Raises:
            WorkerDiedError: a job lost worker after worker, and no item of it is to blame.
            Exception: what the handler raised.
        """
        waiting = iter(jobs)
        for slot in range(len(self._workers)):
            self._give_next(slot, waiting)
        while busy := {w.pipe: slot for slot, w in enumerate(self._workers) if w.task is not None}:
            for ready in wait(list(busy), timeout=tick_seconds):
                slot = busy[ready]  # type: ignore[index] # `wait` returns what it was given
                worker = self._workers[slot]
                try:
                    counts, done, error, result = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    self._bury(slot)
                    continue
                self._count(worker, counts)
                if not done:
                    continue
                task, worker.task = worker.task, None
                assert task is not None
                if error is not None:
                    raise error
                if task.probe is not None:  # innocent: the whole job once more
                    task.probe = None
                    self._count(worker, [-n for n in worker.counted])
                    self._give(slot, task)
                    continue
                self._give_next(slot, waiting)
                yield result
            tick()

    def _give_next(self, slot: int, waiting: Iterator[Job]) -> None:
        for job in waiting:
            self._give(slot, _Task(job))
            return

    def _give(self, slot: int, task: _Task) -> None:
        worker = self._workers[slot]
        worker.task, worker.counted = task, [0] * COUNTERS
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # dead: `run` feels it at the pipe
            worker.pipe.send((task.job, task.verdicts, task.probe))

    def _count(self, worker: _Worker, counts: list[int]) -> None:
        self._counters = [a + b for a, b in zip(self._counters, counts, strict=True)]
        worker.counted = [a + b for a, b in zip(worker.counted, counts, strict=True)]

    def _bury(self, slot: int) -> None:
        """A worker died: a new one in its place tries the item that it was at, alone, or the job without it."""
        worker = self._workers[slot]
        task = worker.task
        assert task is not None
        worker.process.join(_STOP_SECONDS)
        worker.pipe.close()
        self._count(worker, [-n for n in worker.counted])
        code, item = worker.process.exitcode, worker.item.value
        task.deaths += 1
        if task.probe is not None and item == task.probe and code not in _OUTSIDE:
            task.verdicts[item] = _verdict(code)
            task.probe, task.deaths = None, 0
        elif task.deaths >= _MAX_DEATHS:
            raise _died(worker)
        else:
            task.probe = item if item != _NO_ITEM else None
        self._workers[slot] = self._start()
        self._give(slot, task)

    def close(self) -> None:
        """End all workers: idle ones at once, busy ones in the middle of their job, without debris."""
        for worker in self._workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            while worker.process.is_alive() and time.monotonic() < deadline:
                if worker.task is not None:
                    # Once more: a signal that comes just before a system call does not end that call.
                    worker.process.terminate()
                worker.process.join(_REPORT_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _verdict(exit_code: int | None) -> Verdict:
    if exit_code == -signal.SIGPROF:
        return Verdict.CPU_LIMIT
    return Verdict.MEMORY_LIMIT if exit_code == MEMORY_EXIT else Verdict.CRASHED


def _died(worker: _Worker) -> WorkerDiedError:
    code = worker.process.exitcode
    how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return WorkerDiedError(
        f"worker process {worker.process.pid} ended {how}, as {_MAX_DEATHS - 1} before it at the same job (killed, or "
        "out of memory?); run the same command again: finished shards are kept"
    )


def _start_deaf_to_ctrl_c(process: BaseProcess) -> None:
    """Ctrl-C reaches all processes of a terminal, but it is the parent who decides: the child never gets it."""
    resource_tracker.ensure_running()  # its own first start would unblock SIGINT for good
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # inherits what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Desk:
    """What a handler has at hand while it does a job: counters, the limits of an item, verdicts on items."""

    def __init__(self, pipe: "Connection[Any, Any]", limits: WorkerLimits, item: Any) -> None:
        self._pipe, self._limits, self._item = pipe, limits, item
        self._chatter = Chatter()
        self._memory = resource.getrlimit(resource.RLIMIT_DATA)
        self._armed_items = 0
        self.verdicts: dict[int, Verdict] = {}
        """Items of the job that are not to be touched."""
        self.probe: int | None = None
        """The only item to try; the result is thrown away."""
        self._reset()

    def take(self, verdicts: dict[int, Verdict], probe: int | None) -> None:
        """Begin a job."""
        self.verdicts, self.probe = verdicts, probe
        self._chatter.happened()  # what came before is of no item
        self._reset()

    def count_up(self, counter: int, amount: int) -> None:
        """Add to a counter."""
        self._counts[counter] += amount
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._pipe.send((self._counts, False, None, None))
            self._reset()

    def complained(self) -> bool:
        """Whether a library has written to stderr since this was last asked; nobody sees what."""
        return self._chatter.happened()

    @contextlib.contextmanager
    def at(self, item: int) -> Iterator[None]:
        """Work on an item within its limits: the kernel ends a process that is over its CPU time, wherever it is, and
        gives no memory to one that is over the other. What is done between items is not limited."""
        self._item.value = item
        if not self._armed_items:
            self._arm()
        self._armed_items -= 1
        signal.setitimer(signal.ITIMER_PROF, self._limits.max_cpu_s)
        try:
            yield
        except MemoryError:
            os._exit(MEMORY_EXIT)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._item.value = _NO_ITEM

    def _arm(self) -> None:
        """Limit memory to what is held now and an item's share. Once for some items: it costs as much as a header."""
        soft, hard = self._memory
        limit = _data_bytes() + self._limits.max_memory_mb * 1_000_000
        wanted = min(n for n in (limit, soft, hard) if n != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
        self._armed_items = _ARMED_ITEMS

    def answer(self, error: Exception | None, result: Any) -> None:
        """End a job."""
        resource.setrlimit(resource.RLIMIT_DATA, self._memory)
        self._armed_items = 0
        self._pipe.send((self._counts, True, error, result))

    def _reset(self) -> None:
        self._counts, self._reported = [0] * COUNTERS, time.monotonic()


def _data_bytes() -> int:
    """This process's writable private memory: stacks and mappings, touched or not."""
    return int(Path("/proc/self/statm").read_bytes().split()[5]) * resource.getpagesize()


def _work(pipe: "Connection[Any, Any]", handler: Callable[[Any, Desk], Any], limits: WorkerLimits, item: Any) -> None:
    """A worker's life: answers are (counts since the last one, whether the job is done, its error, its result)."""
    # Blocked so far; a library's thread may still have it open, and would hand it to us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    desk = Desk(pipe, limits, item)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionError):  # the parent is gone or done
        while True:
            job, verdicts, probe = pipe.recv()
            desk.take(verdicts, probe)
            error: Exception | None = None
            result = None
            try:
                result = handler(job, desk)
            except Exception as raised:  # carried to the parent, which raises it
                error = raised
            desk.answer(error, result)


def _leave(signal_number: int, _: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the clearing up is not to be interrupted
    raise SystemExit(128 + signal_number)  # through the context managers, which remove temporary files


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
