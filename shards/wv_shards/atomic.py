"""Files that are either whole or absent: written under a temporary name, fsynced, renamed.

It does not lock: who may write into a directory is decided above.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"
"""Ending of every temporary name. Readers never open such a file; a resumed build overwrites it."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`, on failure remove it.

    Raises:
        OSError: no space, no permission, with a `filename`; `path` is then as it was before.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            commit(file, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            error.filename = str(path)  # a write tells none
        raise


def temporary_path(path: Path) -> Path:
    """Where a file is written before it gets the name `path`."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def commit(file: BinaryIO, path: Path) -> None:
    """Fsync `file`, which is open at `temporary_path(path)`, and give it the name `path`, durably."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(temporary_path(path), path)
    fsync_directory(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def fsync_directory(directory: Path) -> None:
    """Make renames within `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
