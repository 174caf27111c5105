"""A file of one folder in another: linked where that can be, else copied and compared. Sources stay as they are."""

import os
from collections.abc import Callable
from pathlib import Path

import xxhash

from wv_shards import CorruptDataError, atomic_file, file_checksum

_COPY_BYTES = 1 << 22


class ChangedFileError(CorruptDataError):
    """A file is not what its checksum says."""

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__(
            f"{path}: checksum {found}, expected {expected}: the file changed after it was packed; "
            "mend it where it lies, or copy it from there again"
        )
        self.path = path
        self.found = found
        self.expected = expected


def bring(
    source: Path,
    target: Path,
    tick: Callable[[], None],
    checksum: str | None = None,
    *,
    read_links: bool = False,
) -> None:
    """Give `source` the name `target` too, whole or not at all; what stood there is replaced.

    Args:
        checksum: xxh3_128 that a copy must have.
        read_links: a link must have it too; without this it is not read, being the file itself.

    Raises:
        ChangedFileError: the file is not what its checksum says.
        OSError: no space, no permission.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        digest = xxhash.xxh3_128()
        with open(source, "rb") as file, atomic_file(target) as copy:
            while chunk := file.read(_COPY_BYTES):
                copy.write(chunk)
                digest.update(chunk)
                tick()
            _compare(source, digest.hexdigest(), checksum)
        return
    if read_links:
        try:
            _compare(source, file_checksum(target, lambda _: tick()), checksum)
        except BaseException:
            target.unlink()
            raise


def _compare(source: Path, found: str, checksum: str | None) -> None:
    if checksum is not None and checksum != found:
        raise ChangedFileError(source, found, checksum) from None
