"""The folder of one run: names of its files, who may write into it, and cutting metrics on resume.

Only rank 0 writes. What each file holds is the business of its writer.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wv_shards import write_atomic
from wv_train.errors import RunDirectoryError

FORMAT_VERSION = 1


class RunDirectory:
    """Paths and the run's facts (`run.json`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_json = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"
        self.ledger = path / "ledger"
        self.skipped = path / "skipped"
        self.eval_json = path / "eval.json"
        self.tensorboard = path / "tensorboard"
        self.quarantine = path / "quarantine.jsonl"
        self.nonfinite = path / "nonfinite_batches.json"
        self._lock = path / ".lock"

    def check_new(self) -> None:
        """Raises RunDirectoryError unless the folder is absent or empty."""
        if self.run_json.exists():
            raise RunDirectoryError(f"{self.path}: already holds a run; --resume continues it, or name another --out")
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path}: expected a folder for the run, found a file; name another --out")
        if self.path.is_dir() and (
            others := [item.name for item in self.path.iterdir() if item.suffix != ".tmp" and item != self._lock]
        ):
            raise RunDirectoryError(
                f"{self.path}: expected an empty folder, found {sorted(others)[0]} and no run.json; name another --out"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other trainings out of the folder, which is made if need be; the end of the process lets go of it.

        Raises RunDirectoryError: another one is at work here, or the folder can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunDirectoryError(f"{self.path}: cannot be written: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise RunDirectoryError(
                    f"{self.path}: a training is at work here ({file.read().strip()}); stop it or wait for its end, "
                    "or name another --out"
                ) from error
            except OSError:
                pass  # a file system without locks: as safe as it was
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def read_info(self) -> dict[str, Any]:
        """`run.json`. Raises RunDirectoryError: no run here, not readable, or written by a newer version."""
        try:
            info = json.loads(self.run_json.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunDirectoryError(f"{self.path}: expected a run of wv-train, found no run.json") from error
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{self.run_json}: cannot be read") from error
        version = info.get("format_version") if isinstance(info, dict) else None
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise RunDirectoryError(
                f"{self.run_json}: format {version}, this wv-toolkit reads up to {FORMAT_VERSION}; upgrade wv-toolkit"
            )
        return dict(info)

    def begun_by(self, launch: str | None) -> bool:
        """Whether the run here was begun by this launch (`distributed.launch_id`)."""
        return launch is not None and self.run_json.exists() and self.read_info().get("launch") == launch

    def write_info(self, info: dict[str, Any]) -> None:
        """Create the folder and write `run.json`: from then on it is a run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format_version": FORMAT_VERSION, **info}, indent=1, ensure_ascii=False, allow_nan=False)
            write_atomic(self.run_json, (text + "\n").encode())
        except OSError as error:
            raise RunDirectoryError(f"{self.path}: cannot be written: {error.strerror}") from error

    def cut_metrics(self, length: int) -> None:
        """Drop what was written after the checkpoint that says `length` bytes."""
        if self.metrics.exists() and self.metrics.stat().st_size > length:
            os.truncate(self.metrics, length)
