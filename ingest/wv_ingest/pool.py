"""Worker processes that do jobs and answer, in any order. They never outlive their parent.

Unlike `concurrent.futures` it can be stopped at once, and knows which worker died. It knows nothing of images.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from wv_ingest.errors import WorkerDiedError

Job = TypeVar("Job")
Result = TypeVar("Result")

COUNTERS = 4
"""Numbers that a worker counts up while it is at work: their meaning is the handler's."""
_REPORT_SECONDS = 0.2
_STOP_SECONDS = 5.0


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    busy: bool = False


class WorkerPool(Generic[Job, Result]):
    """`count` spawned processes, each with its own copy of `handler`.

    Args:
        count: how many processes.
        handler: picklable; called in a worker as `handler(job, count_up)`, where `count_up(i, n)` adds n to the
            worker's counter i.
    """

    def __init__(self, count: int, handler: Callable[[Job, Callable[[int, int], None]], Result]) -> None:
        context = multiprocessing.get_context("spawn")
        self._counters = [0] * COUNTERS
        self._workers: list[_Worker] = []
        try:
            for slot in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, handler), daemon=True, name=f"wv-ingest-{slot}")
                _start_deaf_to_ctrl_c(process)
                theirs.close()  # so that its end is felt when the worker dies
                self._workers.append(_Worker(process, ours))
        except BaseException:
            self.close()
            raise

    def counters(self) -> tuple[int, ...]:
        """Sums over all workers of what they have counted so far."""
        return tuple(self._counters)

    def run(
        self, jobs: Iterable[Job], tick: Callable[[], None] = lambda: None, tick_seconds: float = 0.2
    ) -> Iterator[Result]:
        """Do all jobs; yields results as they come. `tick` is called every now and then while waiting.

        Raises:
            WorkerDiedError: a worker ended without an answer.
            Exception: what the handler raised.
        """
        waiting = iter(jobs)
        for worker in self._workers:
            self._give(worker, waiting)
        while busy := {worker.pipe: worker for worker in self._workers if worker.busy}:
            for ready in wait(list(busy), timeout=tick_seconds):
                worker = busy[ready]  # type: ignore[index] # `wait` returns what it was given
                try:
                    counts, done, error, result = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    raise _died(worker) from None
                self._counters = [a + b for a, b in zip(self._counters, counts, strict=True)]
                if not done:
                    continue
                worker.busy = False
                if error is not None:
                    raise error
                self._give(worker, waiting)
                yield result
            tick()

    def _give(self, worker: _Worker, waiting: Iterator[Job]) -> None:
        for job in waiting:
            try:
                worker.pipe.send(job)
            except (BrokenPipeError, ConnectionError):
                raise _died(worker) from None
            worker.busy = True
            return

    def close(self) -> None:
        """End all workers: idle ones at once, busy ones in the middle of their job, without debris."""
        for worker in self._workers:
            if worker.busy:
                worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            while worker.process.is_alive() and time.monotonic() < deadline:
                if worker.busy:
                    # Once more: a signal that comes just before a system call does not end that call.
                    worker.process.terminate()
                worker.process.join(_REPORT_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _died(worker: _Worker) -> WorkerDiedError:
    worker.process.join(_STOP_SECONDS)
    code = worker.process.exitcode
    how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return WorkerDiedError(
        f"worker process {worker.process.pid} ended {how} (killed, or out of memory?); "
        "run the same command again: finished shards are kept"
    )


def _start_deaf_to_ctrl_c(process: BaseProcess) -> None:
    """Ctrl-C reaches all processes of a terminal, but it is the parent who decides: the child never gets it."""
    resource_tracker.ensure_running()  # the first start would start it, and that unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # inherits what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: "Connection[Any, Any]", handler: Callable[[Any, Callable[[int, int], None]], Any]) -> None:
    """A worker's life: answers are (counts since the last one, whether the job is done, its error, its result)."""
    # Blocked so far; a library's thread may still have it open, and would hand it to us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_die_with_parent, daemon=True).start()

    counts, reported = [0] * COUNTERS, time.monotonic()

    def count_up(counter: int, amount: int) -> None:
        nonlocal counts, reported
        counts[counter] += amount
        if (now := time.monotonic()) - reported >= _REPORT_SECONDS:
            pipe.send((counts, False, None, None))
            counts, reported = [0] * COUNTERS, now

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionError):  # the parent is gone or done
        while True:
            job = pipe.recv()
            error: Exception | None = None
            result = None
            try:
                result = handler(job, count_up)
            except Exception as raised:  # carried to the parent, which raises it
                error = raised
            pipe.send((counts, True, error, result))
            counts, reported = [0] * COUNTERS, time.monotonic()


def _leave(signal_number: int, _: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the clearing up is not to be interrupted
    raise SystemExit(128 + signal_number)  # through the context managers, which remove temporary files


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
