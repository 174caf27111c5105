"""A file of one folder in another: linked where that can be, else copied and compared. Sources stay as they are."""

import os
from collections.abc import Callable
from pathlib import Path

import xxhash

from wv_shards import CorruptDataError, atomic_file

_COPY_BYTES = 1 << 22


def bring(source: Path, target: Path, tick: Callable[[], None], checksum: str | None = None) -> None:
    """Give `source` the name `target` too, whole or not at all; what stood there is replaced.

    Args:
        checksum: xxh3_128 that a copy must have. A link is the file itself and is not read.

    Raises:
        CorruptDataError: the file is not what its checksum says.
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
            if checksum not in (None, digest.hexdigest()):
                raise CorruptDataError(
                    f"{source}: checksum {digest.hexdigest()}, expected {checksum}: the file changed after it was "
                    "packed; mend it where it lies, or copy it from there again"
                ) from None
