"""Who may write into a folder: one command at a time, and nobody where something else lies.

Locks are the kernel's (`flock`), so they end with the process that holds them, however it ends.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wv_ingest.pack import WORKERS_LOCK_FILE
from wv_shards import BUILD_DIR, MANIFEST_FILE, UNFINISHED, OutputExistsError

LOCK_FILE = "lock"
_ORPHAN_SECONDS = 20.0


def folder_exists(out: Path) -> bool:
    """Whether `out` is a folder; if not it may become one.

    Raises:
        OutputExistsError: it is something else.
    """
    if out.is_dir():
        return True
    if out.exists():
        raise OutputExistsError(f"{out}: is a file, expected a folder that is empty or does not exist")
    if out.is_symlink():
        raise OutputExistsError(f"{out}: is a link that leads nowhere; make the folder it names, or remove the link")
    return False


def existing(out: Path) -> bool:
    """Whether `out` holds a build, finished or not.

    Raises:
        OutputExistsError: it holds something else.
    """
    if not folder_exists(out):
        return False
    if (out / MANIFEST_FILE).is_file() or (out / BUILD_DIR).is_dir():
        return True
    for folder, command in UNFINISHED.items():
        if (out / folder).is_dir():
            raise OutputExistsError(f"{out}: `wv-ingest {command}` has not been finished there; run it again first")
    if any(out.iterdir()):
        raise OutputExistsError(f"{out}: holds something else than shards; choose an empty or a new folder")
    return False


@contextmanager
def build_lock(out: Path) -> Iterator[Path | None]:
    """Own OUT/.build, made if need be; None if `out` holds a finished data set.

    Raises:
        OutputExistsError: `out` holds something else, or another build is at work.
    """
    if existing(out) and (out / MANIFEST_FILE).is_file():
        yield None
        return
    build_dir = out / BUILD_DIR
    try:
        build_dir.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise OutputExistsError(f"{out}: can't be made, what is above it is no folder; choose another place") from error
    lock = os.open(build_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        if not _locked(lock):
            raise OutputExistsError(f"{out}: another build is at work in it; wait for it or choose another folder")
        if (out / MANIFEST_FILE).is_file():  # the other one finished between our two looks
            yield None
        else:
            yield build_dir
    finally:
        os.close(lock)


@contextmanager
def folder_lock(folder: Path) -> Iterator[Path]:
    """Own a folder for the notes of a long command, made if need be.

    Raises:
        OutputExistsError: another command is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        if not _locked(lock):
            raise OutputExistsError(f"{folder.parent}: another command is at work in {folder.name}; wait for it")
        yield folder
    finally:
        os.close(lock)


def unlock_orphans(build_dir: Path) -> None:
    """Wait until no worker of an earlier, killed build writes here any more; they end by themselves within moments.

    Raises:
        OutputExistsError: one is still there after some time.
    """
    lock = os.open(build_dir / WORKERS_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise OutputExistsError(f"{build_dir.parent}: a worker of an earlier build is still at work; end it")
            time.sleep(0.05)
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
