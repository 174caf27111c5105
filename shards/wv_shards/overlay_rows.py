"""An overlay that takes hours to make: its array is a mapped file, filled piece by piece, and survives a kill.

    BASE.npy.part    the array at its full size; nobody reads it but who writes it
    BASE.json.part   what it is (identity) and how much of it is done, written after the rows that it speaks of

`finish` turns the first into BASE.npy, with BASE.json after it, without reading it into memory.
"""

import fcntl
import io
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from wv_shards.atomic import fsync_directory, write_atomic
from wv_shards.errors import OutputExistsError, ShardsError
from wv_shards.hashing import file_checksum
from wv_shards.overlay import Overlay, describe, exchanged, without_suffix

COMMIT_S = 5.0
"""Seconds of work that a kill may cost."""


class OverlayRows:
    """The array of an overlay in the making. A context manager: leaving it keeps what is done.

    One process at a time: a second one is refused.
    """

    def __init__(
        self,
        base: Path | str,
        *,
        kind: str,
        manifest_digest: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        identity: dict[str, Any],
        commit_s: float = COMMIT_S,
    ) -> None:
        """Open what an earlier process has left of this very array, or begin it; all its disk space is taken at once.

        Args:
            base: path without suffix.
            kind: as in `Overlay`.
            manifest_digest: of the data set that it is made for.
            shape: (N, …).
            dtype: of the array.
            identity: everything that decides its content, JSON-able; part of the finished overlay's `info`. What was
                begun under another identity is thrown away, see `anew`.
            commit_s: what is done is made safe once in so many seconds.

        Raises:
            OutputExistsError: another process is at work on it.
            OSError: it can't be written, or there is no space.
        """
        self._base = without_suffix(base)
        self._kind, self.manifest_digest, self._commit_s = kind, manifest_digest, commit_s
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._part = self._base.with_name(self._base.name + ".npy.part")
        self._state = self._base.with_name(self._base.name + ".json.part")
        self.done = 0
        """Rows, or whatever the user counts, that need not be made again."""
        self.counts: dict[str, int] = {}
        """Whatever else is counted on the way; kept with `done`."""
        self.anew: str | None = None
        """What differs from an array that was begun earlier and has been thrown away for it."""
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        self._header = header.getvalue()
        self._bytes = len(self._header) + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._rows = shape[0]
        self._base.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = self._open()
        try:
            if not self._take_up():
                self._begin()
            self.array = np.lib.format.open_memmap(self._part, mode="r+")
            """(N, …), writable."""
        except BaseException:
            os.close(self._descriptor)
            raise
        self._committed = time.monotonic()

    @staticmethod
    def is_finished(base: Path | str, *, kind: str, manifest_digest: str, identity: dict[str, Any]) -> bool:
        """Whether the overlay is there, whole, made for this data set under this identity."""
        try:
            found = Overlay.load(base, manifest_digest=manifest_digest, kind=kind, mapped=True)
        except ShardsError:
            return False
        wanted = json.loads(json.dumps(identity))
        return all(key in found.info and found.info[key] == value for key, value in wanted.items())

    def advance(self, done: int, *, now: bool = False) -> None:
        """Everything before `done` is in the array: made safe if it is time, or `now`."""
        self.done = done
        if now or time.monotonic() - self._committed >= self._commit_s:
            self._commit()

    def finish(self, *, info: dict[str, Any], neutral: Any = None) -> None:
        """Make the overlay of it, by a rename: `array` is not to be written any more.

        Args:
            info: beside the identity.
            neutral: as in `Overlay`.
        """
        self._commit()
        overlay = Overlay(
            kind=self._kind,
            array=np.empty(0),
            manifest_digest=self.manifest_digest,
            info={**self.identity, **info},
            neutral=neutral,
        )
        document = describe(overlay, rows=self._rows, checksum=file_checksum(self._part))
        with exchanged(self._base, document):
            os.replace(self._part, self._base.with_name(self._base.name + ".npy"))
            fsync_directory(self._base.parent)
        self._state.unlink(missing_ok=True)

    def discard(self) -> None:
        """Throw away what is there: it has served."""
        self._state.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._state.exists():
                self._commit()
        finally:
            os.close(self._descriptor)

    def _open(self) -> int:
        """The array's file, held against other processes until it is closed."""
        while True:
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise OutputExistsError(
                    f"{self._base}: another process is making it; wait for its end or stop it, or name another --out"
                ) from None
            except OSError:
                pass  # a file system without locks: as safe as it was
            # Whoever held it may have finished in between: then this file has the overlay's name by now.
            if self._part.exists() and os.path.samestat(os.fstat(descriptor), self._part.stat()):
                return descriptor
            os.close(descriptor)

    def _take_up(self) -> bool:
        """Whether what is there is this array, begun; then `done` and `counts` are what was made safe of it."""
        try:
            state = json.loads(self._state.read_bytes())
            then, done, counts = state["identity"], state["done"], state["counts"]
        except FileNotFoundError:
            return False
        except (ValueError, TypeError, KeyError):
            self.anew = "its notes cannot be read"
            return False
        now = self._whole_identity()
        if then != now:
            keys = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
            self.anew = ", ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys)
            return False
        if os.pread(self._descriptor, len(self._header), 0) != self._header or self._part.stat().st_size != self._bytes:
            self.anew = "its array is damaged"
            return False
        self.done, self.counts = done, counts
        return True

    def _begin(self) -> None:
        self._state.unlink(missing_ok=True)
        os.ftruncate(self._descriptor, 0)
        try:
            os.posix_fallocate(
                self._descriptor, 0, self._bytes
            )  # a full disk is an error now, and no killed process later
        except OSError as error:
            os.ftruncate(self._descriptor, 0)
            raise OSError(error.errno, error.strerror, str(self._part)) from error
        os.pwrite(self._descriptor, self._header, 0)
        os.fsync(self._descriptor)
        self._note()

    def _commit(self) -> None:
        """The rows first, then the note that says that they are there."""
        self.array.flush()
        self._note()
        self._committed = time.monotonic()

    def _note(self) -> None:
        state = {"identity": self._whole_identity(), "done": self.done, "counts": self.counts}
        write_atomic(self._state, (json.dumps(state, indent=1, sort_keys=True) + "\n").encode())

    def _whole_identity(self) -> dict[str, Any]:
        return {**self.identity, "kind": self._kind, "manifest_digest": self.manifest_digest}
