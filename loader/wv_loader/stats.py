"""What the loader did and waited for, and which stage is the slow one.

Sums and counts, so that they can be added over ranks and divided last. Planning and decoding are judged by their
occupancy, busy seconds over the seconds that their threads had: summed seconds alone would blame whoever has the most
threads. Reading has many threads that wait for disks, mostly ahead of time: it is judged by how long decoders with room
waited for files.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from wv_loader.read import Failure

STAGES = ("plan", "read", "decode", "deliver")

_CONSUMER_WAIT_FRACTION = 0.02
"""Below this share of waiting, the consumer of the batches is the slow stage."""
_IDLE_OCCUPANCY = 0.5
"""Where no stage is as busy as this and the consumer waits, too few batches are under way, and no stage is slow."""

_SUMS = (
    "batches",
    "samples",
    "bytes",
    "wait_seconds_total",
    "first_wait_seconds_total",
    "busy_seconds_total",
    *(f"{stage}_seconds_total" for stage in STAGES),
    *(f"{stage}_capacity_seconds_total" for stage in STAGES),
    "read_late_seconds_total",
    "ready_batches_total",
)

_NOTHING = "nothing was loaded yet"
_ADVICE = {
    "none": "none is busy half of the time: more batches under way (prefetch) or longer epochs would help",
    "consumer": "the loader keeps up",
    "plan": "larger batches, or a core that is free for planning, would help",
    "read": "a faster disk, smaller images or more read-ahead would help",
    "deliver": "a cheaper `transform`, or one that works on the device, would help",
    "decode": "more threads (cores), the turbo engine or shards of smaller images would help",
}


@dataclass(kw_only=True, slots=True)
class LoaderStats:
    """Totals since the loader was made. Readable at any time, from any thread; `since` gives those of an epoch."""

    batches: int = 0
    """Batches taken by the consumer."""
    samples: int = 0
    """Shows handed out, bad and padded ones not counted."""
    bytes: int = 0
    """Bytes of image files read."""
    wait_seconds_total: float = 0.0
    """Time that the consumer waited for a batch, the epoch's planning included."""
    first_wait_seconds_total: float = 0.0
    """Of it, for the first batch of each loop."""
    busy_seconds_total: float = 0.0
    """Time that the consumer spent with a batch."""
    plan_seconds_total: float = 0.0
    """Time at work, of the thread that plans batches; waiting for room is not work."""
    read_seconds_total: float = 0.0
    """Time at work, waits for the disk included, summed over threads."""
    read_late_seconds_total: float = 0.0
    """Time that decoding waited for files, having room; summed over processes where there are several."""
    decode_seconds_total: float = 0.0
    """Time at work, summed over threads."""
    deliver_seconds_total: float = 0.0
    """Time at work, of the thread that copies batches to a device and runs `transform`."""
    plan_capacity_seconds_total: float = 0.0
    """Time that the stage's threads had while the consumer waited or worked: threads · seconds."""
    read_capacity_seconds_total: float = 0.0
    decode_capacity_seconds_total: float = 0.0
    deliver_capacity_seconds_total: float = 0.0
    ready_batches_total: int = 0
    """Queue depth, summed over takes: finished batches that lay ready when the consumer asked for one."""
    ready_batches: int = 0
    """Queue depth now: finished batches that wait for the consumer."""
    batches_under_way: int = 0
    """Queue depth now: batches that are planned and not finished."""
    failures: Counter[str] = field(default_factory=Counter)
    """Masked shows by reason."""
    io_errors: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Reads that the operating system refused, by (number of the shard, errno)."""
    ranks: int = 1
    """Ranks whose figures are added up here."""
    threads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 1))
    """Of each stage on this rank: threads that work; of reading, processes that wait for it."""
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)
    """What every time here is measured with, in seconds."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    # -- counted by the stages --------------------------------------------------------------------------------------

    def add_plan(self, seconds: float) -> None:
        """Count the planning of a batch, or of an epoch."""
        with self._lock:
            self.plan_seconds_total += seconds

    def add_read(self, seconds: float, size: int) -> None:
        """Count one task of the read stage, of `size` bytes."""
        with self._lock:
            self.read_seconds_total += seconds
            self.bytes += size

    def add_decode(self, seconds: float) -> None:
        """Count one task of the decode stage."""
        with self._lock:
            self.decode_seconds_total += seconds

    def add_deliver(self, seconds: float) -> None:
        """Count the copying of a batch to a device and its `transform`."""
        with self._lock:
            self.deliver_seconds_total += seconds

    def add_late(self, seconds: float) -> None:
        """Count a wait for files by a stage that could have decoded them."""
        with self._lock:
            self.read_late_seconds_total += seconds

    def add_io_error(self, shard: int, errno: int, count: int = 1) -> None:
        """Count samples of a shard (its number) whose read the operating system refused."""
        with self._lock:
            self.io_errors[shard, errno] += count

    def add_depths(self, *, ready: int, under_way: int) -> None:
        """Note the queues' depths when the consumer asks for a batch."""
        with self._lock:
            self.ready_batches, self.batches_under_way = ready, under_way
            self.ready_batches_total += ready

    def add_wait(self, seconds: float, *, first: bool = False) -> None:
        """Count a wait of the consumer for a batch, which it then took; `first` of a loop."""
        with self._lock:
            self.batches += 1
            self.first_wait_seconds_total += seconds * first
            self.wait_seconds_total += seconds
            self._grant(seconds)

    def add_work(self, seconds: float) -> None:
        """Count the time that the consumer spent with a batch."""
        with self._lock:
            self.busy_seconds_total += seconds
            self._grant(seconds)

    def add_outcome(self, samples: int, failures: Counter[str]) -> None:
        """Count what a batch held: samples shown, and masked ones by reason."""
        with self._lock:
            self.samples += samples
            self.failures.update(failures)

    def _grant(self, seconds: float) -> None:
        self.plan_capacity_seconds_total += seconds * self.threads["plan"]
        self.read_capacity_seconds_total += seconds * self.threads["read"]
        self.decode_capacity_seconds_total += seconds * self.threads["decode"]
        self.deliver_capacity_seconds_total += seconds * self.threads["deliver"]

    # -- parts and sums ---------------------------------------------------------------------------------------------

    def snapshot(self) -> Self:
        """A copy that no longer changes, for `since`."""
        with self._lock:
            return type(self)(
                **{name: getattr(self, name) for name in (*_SUMS, "ready_batches", "batches_under_way", "ranks")},
                failures=Counter(self.failures),
                io_errors=Counter(self.io_errors),
                threads=dict(self.threads),
            )

    def since(self, earlier: "LoaderStats") -> Self:
        """What was added after a snapshot; depths are those of now."""
        now = self.snapshot()
        for name in _SUMS:
            setattr(now, name, getattr(now, name) - getattr(earlier, name))
        now.failures -= earlier.failures
        now.io_errors -= earlier.io_errors
        return now

    def as_row(self) -> list[float]:
        """The sums as numbers, alike on all ranks in length and order, for `from_rows`. Shards' errors stay here."""
        with self._lock:
            return [*(float(getattr(self, name)) for name in _SUMS), *(float(self.failures[f]) for f in Failure)]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> Self:
        """The sum over ranks of their `as_row`."""
        sums = [sum(column) for column in zip(*rows, strict=True)]
        values: dict[str, Any] = dict(zip(_SUMS, sums[: len(_SUMS)], strict=True))
        values |= {name: int(values[name]) for name in ("batches", "samples", "bytes", "ready_batches_total")}
        counts = {str(failure): int(n) for failure, n in zip(Failure, sums[len(_SUMS) :], strict=True) if n}
        return cls(**values, failures=Counter(counts), ranks=len(rows))

    # -- what they say ----------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Time from the first batch asked for to the last one done with, mean over ranks."""
        return (self.wait_seconds_total + self.busy_seconds_total) / self.ranks

    @property
    def wait_fraction(self) -> float:
        """Share of the consumer's time that it waited for data."""
        total = self.wait_seconds_total + self.busy_seconds_total
        return self.wait_seconds_total / total if total else 0.0

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Time that the stages' threads were at work; of reading, that it was late."""
        return {
            "plan": self.plan_seconds_total,
            "read": self.read_late_seconds_total,
            "decode": self.decode_seconds_total,
            "deliver": self.deliver_seconds_total,
        }

    @property
    def stage_capacity(self) -> dict[str, float]:
        """The most that `stage_seconds` could be."""
        return {stage: getattr(self, f"{stage}_capacity_seconds_total") for stage in STAGES}

    @property
    def occupancy(self) -> dict[str, float]:
        """Share of each stage's time that it was at work, or late."""
        seconds, capacity = self.stage_seconds, self.stage_capacity
        return {stage: seconds[stage] / capacity[stage] if capacity[stage] else 0.0 for stage in STAGES}

    @property
    def bottleneck(self) -> str:
        """The slow stage: `consumer` where it hardly waits, or not for want of batches; else the fullest of STAGES.

        `none` where that one is not busy half of the time, or nothing was loaded yet. The wait for the first batch of
        a loop tells nothing about who keeps up with whom.
        """
        if self._idle:
            return "none"
        if self._lay_ready:
            return "consumer"
        later = self.wait_seconds_total - self.first_wait_seconds_total
        if later < _CONSUMER_WAIT_FRACTION * (later + self.busy_seconds_total) or not later:
            return "consumer"
        occupancy = self.occupancy
        fullest = max(STAGES, key=lambda stage: occupancy[stage])
        return fullest if occupancy[fullest] >= _IDLE_OCCUPANCY else "none"

    @property
    def verdict(self) -> str:
        """The bottleneck in words, for a person."""
        if self._idle:
            return _NOTHING
        return "no stage stands out" if self.bottleneck == "none" else f"slow stage: {self.bottleneck}"

    @property
    def _idle(self) -> bool:
        return not self.batches and not self.seconds

    @property
    def _lay_ready(self) -> bool:
        """Whether on average a batch was there when one was asked for: then waiting is for a core or Python's lock."""
        return 0 < self.batches <= self.ready_batches_total

    @property
    def advice(self) -> str:
        """What would help, for a person."""
        if self._idle:
            return _NOTHING
        if self._lay_ready and self.wait_fraction >= _CONSUMER_WAIT_FRACTION:
            return "batches lay ready: a core that is free for the loop, or fewer threads beside it, would help"
        if self.bottleneck == "consumer" and self.wait_fraction >= _CONSUMER_WAIT_FRACTION:
            return "the loader keeps up, but for the first batch; longer epochs would help"
        return _ADVICE[self.bottleneck]

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        with self._lock:
            values: dict[str, Any] = {name: getattr(self, name) for name in _SUMS}
            values |= {"ready_batches": self.ready_batches, "batches_under_way": self.batches_under_way}
            values["failures"] = dict(self.failures)
            values["io_errors"] = self.io_errors.total()
            values["ranks"] = self.ranks
        occupancy = {f"{stage}_occupancy": value for stage, value in self.occupancy.items()}
        return {
            **values,
            "seconds": self.seconds,
            "wait_fraction": self.wait_fraction,
            **occupancy,
            "bottleneck": self.bottleneck,
        }

    def __str__(self) -> str:
        """One line for a person: how much, how long, who was slow, what would help."""
        if self._idle:
            return _NOTHING
        seconds, busy = self.seconds, self.occupancy
        rate = f" ({self.samples / seconds:,.0f}/s)" if seconds else ""
        deliver = f", deliver busy {busy['deliver']:.0%}" if self.deliver_seconds_total else ""
        failed = ", ".join(f"{count} {reason}" for reason, count in sorted(self.failures.items()))
        return (
            f"{self.samples:,} samples in {seconds:.1f} s{rate}; waited for data {self.wait_fraction:.1%} of the time, "
            f"{self.first_wait_seconds_total / self.ranks:.1f} s of it for the first batch; "
            f"{self.verdict} (plan busy {busy['plan']:.0%}, read late {busy['read']:.0%}, "
            f"decode busy {busy['decode']:.0%}{deliver}): {self.advice}" + (f"; masked: {failed}" if failed else "")
        )
