"""A module of ours as a process of its own: what it cost, its last line where it failed, and never twice.

For benchmarks that are chains of commands: a process that has ended well leaves a file with its cost.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from wv_shards import write_atomic


class RunError(Exception):
    """A process ended badly; the message is one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of a process and its children. None: it was interrupted, so that its time is not known."""

    wall_s: float | None
    cpu_s: float | None

    @classmethod
    def of(cls, document: dict[str, Any]) -> "Cost":
        """From what `document` wrote."""
        return cls(wall_s=document["wall_s"], cpu_s=document["cpu_s"])

    def __add__(self, other: "Cost") -> "Cost":
        walls, cpus = (self.wall_s, other.wall_s), (self.cpu_s, other.cpu_s)
        return Cost(wall_s=_sum(walls), cpu_s=_sum(cpus))

    def document(self) -> dict[str, float | None]:
        """For JSON."""
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s}


def _sum(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def run_stage(
    done: Path,
    log: Path,
    module: str,
    words: Sequence[str],
    *,
    threads: int,
    watch: AbstractContextManager[Callable[[int], object]] | None = None,
    interrupted: bool = False,
) -> Cost:
    """Run `python -m MODULE WORDS…`, unless it has ended well before.

    Args:
        done: written with its cost when it has ended well.
        log: what it says is added to this.
        module: of ours.
        words: its arguments.
        threads: OMP_NUM_THREADS.
        watch: held while it runs, and told its process id; it may refuse by an exception.
        interrupted: it goes on with what an earlier process began, so its cost is not the whole.

    Raises:
        RunError: it ended badly; with its last line.
    """
    if done.exists():
        return Cost.of(json.loads(done.read_text()))
    with watch or nullcontext(_nobody) as begun:
        started = time.monotonic()
        with log.open("ab") as file:
            _only_writer(file, log)
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", module, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # a Ctrl-C reaches it through us, once
            )
            begun(process.pid)
            try:
                _, status, used = os.wait4(process.pid, 0)
            except KeyboardInterrupt:
                process.kill()
                process.wait()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunError(last_line(log.read_text(errors="replace"), f"{module} ended with {process.returncode}"))
    wall, cpu = time.monotonic() - started, used.ru_utime + used.ru_stime
    cost = Cost(wall_s=None, cpu_s=None) if interrupted else Cost(wall_s=round(wall, 2), cpu_s=round(cpu, 2))
    write_atomic(done, (json.dumps(cost.document()) + "\n").encode())
    return cost


def _only_writer(file: BinaryIO, log: Path) -> None:
    """Lock a log until its process, which inherits the file, has ended: it may outlive a benchmark that is killed.

    Raises RunError: the process of an earlier benchmark still writes to it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"{log}: the process of a benchmark that was killed still writes there; start again when it has ended"
        ) from None


def last_line(said: str, otherwise: str) -> str:
    """Of what a process said; `otherwise` where it said nothing."""
    lines = said.strip().splitlines()
    return lines[-1] if lines else otherwise


def _nobody(_process: int) -> None:
    """Nobody watches."""
