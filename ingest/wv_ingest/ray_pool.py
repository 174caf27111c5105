"""The same jobs on a Ray cluster: an actor for each worker, which has a `WorkerPool` of one process inside.

So a decoder that crashes costs one file there too. All nodes need the same wv-toolkit, and a file system that holds
source and output under the same paths. An actor or a node that dies is replaced, and its job done again elsewhere.
Ray itself (the extra `[ray]`) is imported only here.
"""

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from wv_ingest.errors import BuildError, WorkerDiedError
from wv_ingest.pool import COUNTERS, Desk, WorkerLimits, WorkerPool

Job = TypeVar("Job")
Result = TypeVar("Result")

_MAX_DEATHS = 5
"""A job that has lost so many actors ends the run."""
_FIRST_SECONDS = 120.0
"""So long the first actor may take to start."""
_COUNT_SECONDS = 1.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """Which cluster, and how much of it."""

    address: str = "auto"
    """As `ray.init` takes it: `auto`, `host:port`, `ray://…`; `local` starts a cluster on this machine."""
    actors: int | None = None
    """None: one for each CPU of the cluster."""


@dataclass(slots=True)
class _Task:
    job: Any
    deaths: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """An actor and what is known of it."""

    actor: Any
    task: _Task | None = None
    """None before it has greeted, and without work."""
    counted: tuple[int, ...] = (0,) * COUNTERS
    """At its last answer."""
    sure: tuple[int, ...] = (0,) * COUNTERS
    """At the end of its last job: what counts if it dies."""
    count: Any = None
    """Of its counters, on the way."""


class RayPool(Generic[Job, Result]):
    """As `WorkerPool`, on the nodes of a cluster.

    Args:
        options: which cluster.
        handler: picklable; called in an actor's worker as `handler(job, desk)`.
        limits: of each worker.
        same: called here and on every node that joins; answers that differ end the run.

    Raises:
        BuildError: Ray is not installed, there is no such cluster, or it has no CPU free.
    """

    def __init__(
        self,
        options: RayOptions,
        handler: Callable[[Job, Desk], Result],
        limits: WorkerLimits,
        same: Callable[[], object],
    ) -> None:
        self._ray = _ray()
        self._handler, self._limits, self._same, self._expected = handler, limits, same, same()
        self._gone = (0,) * COUNTERS
        self.lost = 0
        """Actors that died."""
        self._slots: list[_Slot] = []
        self._greetings: dict[Any, _Slot] = {}
        self._again: deque[_Task] = deque()
        self._counted_at = 0.0
        self._ours = not self._ray.is_initialized()
        try:
            if self._ours:
                _connect(self._ray, options)
            count = options.actors or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            for _ in range(count):
                self._start()
            self._first()
        except BaseException:
            self.close()
            raise

    def counters(self) -> tuple[int, ...]:
        """Sums over all actors of what they have counted, as far as is known here."""
        return tuple(map(sum, zip(self._gone, *(slot.counted for slot in self._slots), strict=True)))

    def run(
        self, jobs: Iterable[Job], tick: Callable[[], None] = lambda: None, tick_seconds: float = 0.2
    ) -> Iterator[Result]:
        """Do all jobs; yields results as they come. `tick` is called every now and then while waiting.

        Raises:
            WorkerDiedError: a job lost actor after actor, or worker after worker.
            Exception: what the handler raised.
        """
        waiting = iter(jobs)
        busy: dict[Any, _Slot] = {}
        for slot in self._slots:
            if slot not in self._greetings.values():
                self._give_next(slot, waiting, busy)
        while busy or self._again:
            ready, _ = self._ray.wait([*busy, *self._greetings], num_returns=1, timeout=tick_seconds)
            for ref in ready:
                if ref in self._greetings:
                    slot = self._greetings.pop(ref)
                    if self._greeted(ref, slot):
                        self._give_next(slot, waiting, busy)
                    continue
                slot = busy.pop(ref)
                task, slot.task = slot.task, None
                assert task is not None
                try:
                    error, result, slot.counted = self._ray.get(ref)
                except self._ray.exceptions.RayError as died:
                    self._bury(slot, task, died)
                    continue
                slot.sure = slot.counted
                if error is not None:
                    raise error
                self._give_next(slot, waiting, busy)
                yield result
            self._ask_counts()
            tick()

    def _give_next(self, slot: _Slot, waiting: Iterator[Job], busy: dict[Any, _Slot]) -> None:
        if self._again:
            slot.task = self._again.popleft()
        else:
            slot.task = next((_Task(job) for job in waiting), None)
        if slot.task is not None:
            busy[slot.actor.do.remote(slot.task.job)] = slot

    def _start(self) -> None:
        # One thread does a job, the other answers meanwhile.
        remote = self._ray.remote(num_cpus=1, max_concurrency=2, scheduling_strategy="SPREAD")(_Actor)
        slot = _Slot(remote.remote(self._handler, self._limits))
        self._slots.append(slot)
        # No job before it has answered: there may be no CPU for it, now or ever.
        self._greetings[slot.actor.greet.remote(self._same)] = slot

    def _first(self) -> None:
        """Wait for one actor, so that a cluster without room is not waited for in silence."""
        ready, _ = self._ray.wait(list(self._greetings), num_returns=1, timeout=_FIRST_SECONDS)
        if not ready:
            raise BuildError(
                f"no actor has started on the Ray cluster within {_FIRST_SECONDS:.0f} s; see `ray status` for free CPUs"
            )
        self._greeted(ready[0], self._greetings.pop(ready[0]))

    def _greeted(self, ref: Any, slot: _Slot) -> bool:
        """Whether the actor can work; it is replaced if it died at its start."""
        try:
            node, answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as died:
            if self.lost >= _MAX_DEATHS + len(self._slots):
                raise WorkerDiedError(f"actors die on the Ray cluster at their start: {_first_line(died)}") from None
            self._bury(slot, None, died)
            return False
        if answer != self._expected:
            raise BuildError(
                f"node {node} of the Ray cluster has {answer}, here it is {self._expected}; install the same versions, "
                "and give it the file systems of source and output"
            )
        return True

    def _bury(self, slot: _Slot, task: _Task | None, died: Exception) -> None:
        """An actor died: a new one takes its place, and its job goes to whoever is free."""
        self.lost += 1
        self._gone = tuple(map(sum, zip(self._gone, slot.sure, strict=True)))
        self._slots.remove(slot)
        if task is not None:
            task.deaths += 1
            if task.deaths >= _MAX_DEATHS:
                raise WorkerDiedError(
                    f"a job lost {_MAX_DEATHS} actors of the Ray cluster ({_first_line(died)}); run the same command "
                    "again: finished shards are kept"
                )
            self._again.append(task)
        self._start()

    def _ask_counts(self) -> None:
        """Look at the counters of the jobs under way; an answer that is late is not waited for."""
        if time.monotonic() - self._counted_at < _COUNT_SECONDS:
            return
        self._counted_at = time.monotonic()
        for slot in self._slots:
            if slot.task is None:
                continue
            if slot.count is None:
                slot.count = slot.actor.counters.remote()
            elif self._ray.wait([slot.count], timeout=0)[0]:
                with contextlib.suppress(self._ray.exceptions.RayError):  # dead: `run` sees it at the job
                    slot.counted = self._ray.get(slot.count)
                slot.count = None

    def close(self) -> None:
        """End all actors, busy ones in the middle of their job, and leave the cluster."""
        if not self._ray.is_initialized():
            return
        ends = [slot.actor.close.remote() for slot in self._slots if slot not in self._greetings.values()]
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.wait(ends, num_returns=max(1, len(ends)), timeout=_STOP_SECONDS) if ends else None
        for slot in self._slots:
            self._ray.kill(slot.actor)
        self._slots = []
        if self._ours:
            self._ray.shutdown()


AnyPool: TypeAlias = WorkerPool[Any, Any] | RayPool[Any, Any]
"""What runs jobs."""


class _Actor:
    """Lives on a node."""

    def __init__(self, handler: Callable[[Any, Desk], Any], limits: WorkerLimits) -> None:
        self._pool: WorkerPool[Any, Any] = WorkerPool(1, handler, limits)

    def greet(self, same: Callable[[], object]) -> tuple[str, object]:
        """Name of the node, and its answer."""
        return os.uname().nodename, same()

    def do(self, job: Any) -> tuple[Exception | None, Any, tuple[int, ...]]:
        """Error, result, counters so far."""
        try:
            (result,) = self._pool.run([job])
        except Exception as error:  # carried to the driver, which raises it
            return error, None, self._pool.counters()
        return None, result, self._pool.counters()

    def counters(self) -> tuple[int, ...]:
        return self._pool.counters()

    def close(self) -> None:
        self._pool.close()


def _ray() -> Any:
    # Nobody was asked whether Ray may report home what it runs on.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        raise BuildError(
            "--executor ray needs Ray, which is not installed; `pip install 'wv-toolkit[ray]'`, on all nodes"
        ) from None
    return ray


def _connect(ray: Any, options: RayOptions) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = {"num_cpus": options.actors, "include_dashboard": False} if options.address == "local" else {}
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BuildError(
            f"no Ray cluster at --ray-address {options.address} ({_first_line(error)}); start one with `ray start "
            "--head`, or give `local`"
        ) from error
    finally:
        for number, handler in handlers.items():  # Ray puts its own in their place
            signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
