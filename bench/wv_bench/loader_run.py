"""Runs the contestants of `wv-bench loader`: processes that live for the whole run and answer line by line.

Every contestant, ours too, is a process of its own with its children: processor time and memory are summed over its
session by /proc, alike for threads and processes, whatever the loader says of itself. Which contestants there are, and
what is printed, is loader.py's affair.
"""

import json
import os
import re
import selectors
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from wv_bench.nvml import Gpu, GpuUse

_SAMPLING_S = 0.1
_SETTLING_S = 3.0
_GRACE_S = 5.0
_MISSING = re.compile(r"^(?:ModuleNotFoundError|ImportError|wv_loader\.errors\.LoaderError): (.*)", re.MULTILINE)
"""A package, a library, or an engine of ours is not there."""
_TICKS = os.sysconf("SC_CLK_TCK")


class ContestantError(Exception):
    """A contestant that can't run or stopped; one line for its row."""


class NotInstalledError(ContestantError):
    """It lacks a package, or what that needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A loader to be measured, or a bare loop."""

    name: str
    kind: str
    """`ours`, `ceiling` (decoding alone), `reading` (reading alone) or `peer`."""
    dtype: str
    command: tuple[str, ...]
    """The setup as JSON is appended."""
    setup: Mapping[str, Any]
    environment: Mapping[str, str]
    writes: bool = False
    """It has a format of its own, which is written before anything is timed."""
    engine: str = ""
    """Of ours and of ceilings."""

    @property
    def label(self) -> str:
        """Its name, and for peers, of which some are there twice, what they give."""
        return f"{self.name}, {self.dtype}" if self.kind == "peer" else self.name


@dataclass(kw_only=True, slots=True)
class Row:
    """What was measured of a contestant."""

    contestant: Contestant
    problem: str = ""
    """Why there is nothing more; empty: all went well."""
    skipped: bool = False
    """The problem is that it isn't installed."""
    versions: dict[str, str] = field(default_factory=dict)
    format_mb: float | None = None
    first_batch_s: float | None = None
    """From making the loader to its first batch, imports apart, in a fresh process."""
    pss_mb: list[float] = field(default_factory=list)
    """Peak of each epoch that was watched: proportional set size, summed over its processes."""
    rates: list[float] = field(default_factory=list)
    """Images a second of each timed epoch."""
    cpu_s_per_1000: list[float] = field(default_factory=list)
    cpu_step_s_per_1000: float = 0.0
    """The smallest difference that the kernel's clock of processor time shows."""
    gpu: list[GpuUse] = field(default_factory=list)
    """Of each timed epoch, where the GPU is watched."""

    def fail(self, error: ContestantError) -> None:
        """Keep the reason; what was measured before stays out of the table."""
        self.problem, self.skipped = str(error), isinstance(error, NotInstalledError)

    @property
    def median_rate(self) -> float:
        """Images a second."""
        return statistics.median(self.rates)

    def ratio_to(self, other: "Row") -> tuple[float, float]:
        """Speed over another's, round by round: minimum and median."""
        ratios = [mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True)]
        return min(ratios), statistics.median(ratios)


class Running:
    """A contestant's process and all that it starts."""

    def __init__(self, contestant: Contestant, log: Path, timeout_s: float, *, prepare: bool = False) -> None:
        self._log = log
        self._timeout_s = timeout_s
        command = [*contestant.command, json.dumps(dict(contestant.setup)), *(["prepare"] if prepare else [])]
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own scripts, and the interpreter that the user names
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(contestant.environment),
                cwd=log.parent,
                start_new_session=True,
            )
        self._buffer = b""
        self._grace_s = _GRACE_S

    def ready(self) -> dict[str, Any]:
        """Wait until it has imported what it needs: its versions, and where its format is."""
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def epoch(self, number: int) -> tuple[dict[str, Any], float]:
        """Run an epoch: what the contestant answers, and the processor seconds of all its processes meanwhile."""
        before = self._cpu_s()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the answer says how
            self._process.stdin.write(f"{number}\n".encode())
            self._process.stdin.flush()
        answer = self._answer()
        return answer, self._cpu_s() - before

    def watched_epoch(self, number: int) -> tuple[dict[str, Any], float]:
        """Run an epoch, not to be timed: the answer, and the peak of memory in MiB."""
        stop, peak = threading.Event(), 0.0

        def watch() -> None:
            nonlocal peak
            while not stop.wait(_SAMPLING_S):
                peak = max(peak, self._pss_mb())

        watcher = threading.Thread(target=watch, name="wv-bench-memory")
        watcher.start()
        try:
            answer, _ = self.epoch(number)
        finally:
            stop.set()
            watcher.join()
        return answer, max(peak, self._pss_mb())

    def settle(self) -> None:
        """Wait until it has stopped working, so that what it makes ahead costs no other contestant."""
        until, before = time.monotonic() + _SETTLING_S, self._cpu_s()
        while time.monotonic() < until:
            time.sleep(_SAMPLING_S)
            now = self._cpu_s()
            if now - before <= 1.5 / _TICKS:
                return
            before = now

    def pids(self) -> set[int]:
        """Its processes."""
        return set(_session(self._process.pid))

    def wait(self) -> None:
        """Wait until it ends by itself.

        Raises:
            ContestantError: it did not, or not well.
        """
        try:
            code = self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            raise ContestantError(f"did not end within {self._timeout_s:.0f} s") from None
        if code:
            raise self._error()

    def hang_up(self) -> None:
        """Tell it that there is no more to do."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what it did not read
                    pipe.close()

    def close(self) -> None:
        """End it and whatever it has started."""
        self.hang_up()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._grace_s)
        for pid in _session(self._process.pid):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, until - time.monotonic())):
                    self._grace_s = 0.0
                    raise ContestantError(f"no answer within {self._timeout_s:.0f} s: see {self._log}")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise self._error()
                self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _error(self) -> ContestantError:
        """What its standard error says of its end."""
        code = self._process.wait()
        text = self._log.read_text(errors="replace")
        if missing := _MISSING.findall(text):
            return NotInstalledError(missing[-1])
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        how = f"killed by signal {-code}" if code < 0 else f"ended with {code}"
        return ContestantError(f"{how}: {lines[-1] if lines else 'it said nothing'}")

    def _cpu_s(self) -> float:
        return sum(sum(times) for times in _session(self._process.pid).values()) / _TICKS

    def _pss_mb(self) -> float:
        kib = 0
        for pid in _session(self._process.pid):
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue  # it has ended
            kib += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
        return kib / 1024


def measure(
    contestants: Sequence[Contestant],
    *,
    repeats: int,
    watched_epochs: int,
    logs: Path,
    timeout_s: float,
    after_round: Callable[[list[Row], int], None],
    gpu: Gpu | None = None,
) -> list[Row]:
    """Prepare, watch and time all contestants.

    First each alone: its format is written, and in a fresh process the first batch is timed and the memory watched
    (alone, because libraries that several processes map would count for less). Then all are started, warmed up by an
    epoch, and run in turn, `repeats` rounds, each round beginning with another. `after_round` is given what is known by
    then and the rounds so far: whoever ran well has as many rates.
    """
    rows = [Row(contestant=contestant) for contestant in contestants]
    for at, row in enumerate(rows):
        try:
            _alone(row, logs / f"{at:02d}.log", watched_epochs, timeout_s)
        except ContestantError as error:
            row.fail(error)
    running: dict[int, Running] = {}
    try:
        for at, row in enumerate(rows):
            if not row.problem:
                running[at] = Running(row.contestant, logs / f"{at:02d}-timed.log", timeout_s)
        for at, process in running.items():
            try:
                process.ready()
                process.epoch(0)
            except ContestantError as error:
                rows[at].fail(error)
        for number in range(repeats):
            for at, row in _turns(rows, number):
                try:
                    running[at].settle()
                    _timed(row, running[at], number + 1, gpu)
                    running[at].settle()
                except ContestantError as error:
                    row.fail(error)
            after_round(rows, number + 1)
    finally:
        for process in running.values():
            process.hang_up()  # all at once: they end in parallel
        for process in running.values():
            process.close()
    return rows


def _turns(rows: Sequence[Row], number: int) -> Iterator[tuple[int, Row]]:
    """Rows that have not failed, with their places; every round begins with another one."""
    for turn in range(len(rows)):
        at = (turn + number) % len(rows)
        if not rows[at].problem:
            yield at, rows[at]


def measure_apart(
    contestants: Sequence[Contestant],
    *,
    repeats: int,
    logs: Path,
    timeout_s: float,
    after_round: Callable[[list[Row], int], None],
    gpu: Gpu | None = None,
) -> list[Row]:
    """Time contestants of which there are too many to be there at once: a GPU's memory does not hold them all.

    Each epoch is that of a fresh process, after one that is not timed. Turns and `after_round` are as of `measure`.
    """
    rows = [Row(contestant=contestant) for contestant in contestants]
    for number in range(repeats):
        for at, row in _turns(rows, number):
            try:
                with Running(row.contestant, logs / f"{at:02d}.log", timeout_s) as process:
                    row.versions = process.ready()["versions"]
                    _watched(row, process, 0)
                    process.settle()
                    _timed(row, process, number + 1, gpu)
            except ContestantError as error:
                row.fail(error)
        after_round(rows, number + 1)
    return rows


def _timed(row: Row, process: Running, number: int, gpu: Gpu | None) -> None:
    if gpu is None:
        answer, cpu_s = process.epoch(number)
    else:
        with gpu.watch(process.pids) as used:
            answer, cpu_s = process.epoch(number)
        row.gpu += used
    row.rates.append(answer["samples"] / answer["seconds"])
    row.cpu_s_per_1000.append(1000 * cpu_s / answer["samples"])
    row.cpu_step_s_per_1000 = 1000 / _TICKS / answer["samples"]


def _watched(row: Row, process: Running, number: int) -> None:
    answer, peak_mb = process.watched_epoch(number)
    if not answer["samples"]:
        raise ContestantError("gave no batch")
    if row.first_batch_s is None:
        row.first_batch_s = answer["first_s"]
    row.pss_mb.append(round(peak_mb, 1))


def _alone(row: Row, log: Path, epochs: int, timeout_s: float) -> None:
    if row.contestant.writes:
        with Running(row.contestant, log, timeout_s, prepare=True) as process:
            process.ready()
            process.wait()
    with Running(row.contestant, log, timeout_s) as process:
        about = process.ready()
        row.versions = about["versions"]
        if data := about["data"]:
            row.format_mb = sum(path.stat().st_size for path in Path(data).rglob("*") if path.is_file()) / 1e6
        for number in range(epochs):
            _watched(row, process, number)


def _session(leader: int) -> dict[int, tuple[int, ...]]:
    """Processes of a session: their ticks of user and system time, and those of their ended children."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has ended
            if int(fields[3]) == leader:
                found[int(entry.name)] = tuple(int(value) for value in fields[11:15])
    return found
