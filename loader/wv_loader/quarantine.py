"""The quarantine log: JSON lines that name the samples which failed, each once per reason.

Several ranks, phases and resumed runs may write to one file; what it names already is not named again. One file belongs
to one data set. Counting, and stopping a run, is not its business: a log that can't be written any more is a warning.
"""

import fcntl
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wv_loader.errors import LoaderError, QuarantineWarning

_Identity = tuple[str, int, str]


class Quarantine:
    """Appends to a file, which there is not while nothing fails."""

    def __init__(self, path: Path) -> None:
        """Try that the file can be written, and leave none behind.

        Raises:
            LoaderError: it can't.
        """
        self.path = path
        try:
            if not path.exists():
                if not path.parent.is_dir():
                    raise LoaderError(f"{path.parent}: expected a folder that is there, for the quarantine log")
                # Under a name of its own: another rank may write to the log by now.
                tempfile.TemporaryFile(dir=path.parent).close()
            elif not path.is_file():
                raise LoaderError(f"{path}: expected a file for the quarantine log")
            else:
                open(path, "ab").close()
        except OSError as error:
            raise LoaderError(_not_written(path, error)) from error
        self._known: set[_Identity] = set()
        self._read_until = 0
        self._warned = False

    def write(self, rows: Sequence[dict[str, Any]], keys: Callable[[list[int]], list[str | None]]) -> None:
        """Append the rows of samples that the file does not name for this reason, with their keys, and flush.

        Where that fails, as on a full disk, it warns once (QuarantineWarning) and tries again at the next call.

        Args:
            rows: each with `ordinal`, `shard`, `reason`, and whatever else shall stand there.
            keys: gives the keys of ordinals.
        """
        wanted = {_identity(row): row for row in rows}
        if wanted.keys() <= self._known:
            return
        try:
            with open(self.path, "ab+") as file:
                with suppress(OSError):  # a file system without locks: at worst a sample is named twice
                    fcntl.flock(file, fcntl.LOCK_EX)  # other ranks write too
                file.seek(self._read_until)
                text = file.read()
                self._learn(text)
                new = [row for identity, row in wanted.items() if identity not in self._known]
                named = zip(new, keys([row["ordinal"] for row in new]), strict=True)
                lines = "".join(json.dumps({"key": key, **row}) + "\n" for row, key in named)
                cut_off = bool(text) and not text.endswith(b"\n")
                file.write(("\n" * cut_off + lines).encode())
                file.flush()
                self._read_until = file.seek(0, os.SEEK_END)
        except OSError as error:
            self._warn(error)
            return
        self._known |= wanted.keys()

    def _learn(self, text: bytes) -> None:
        """Take in what others have written, or an earlier run; a line that was cut off by a kill is passed over."""
        for line in text.splitlines():
            try:
                self._known.add(_identity(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                continue

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            text = f"{_not_written(self.path, error)}; failed samples are counted, but not all of them are named there"
            warnings.warn(text, QuarantineWarning, stacklevel=2)


def _not_written(path: Path, error: OSError) -> str:
    return f"{path}: the quarantine log can't be written: {error.strerror}"


def _identity(row: dict[str, Any]) -> _Identity:
    return row["shard"], row["ordinal"], row["reason"]
