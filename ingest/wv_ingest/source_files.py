"""Bytes of a source's members and metadata, wherever they lie. Opened tars stay open, up to a number of them."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

METADATA_PLACES_FILE = "metadata.arrow"
"""Path, tar, offset and size of the metadata lists that lie in tars."""
_METADATA_FOLDERS = (b"", b"info", b"metadata", b"info/metadata")
"""Where a list may lie below the root."""
_MOST_OPEN = 256


class SourceFiles:
    """Reads members by their place, and metadata lists by their path.

    Args:
        root: the source.
        build_dir: has METADATA_PLACES_FILE, if the source has metadata in tars.
        tars: by number.
    """

    def __init__(self, root: Path, build_dir: Path, tars: tuple[Path, ...]) -> None:
        self._root = os.fsencode(root)
        self._build_dir = build_dir
        self._tars = tars
        self._open: dict[int, int] = {}
        self._metadata: dict[bytes, tuple[int, int, int]] | None = None

    def member(self, place: tuple[int, int, int]) -> bytes:
        """The bytes at a place; fewer where the tar has shrunk.

        Raises:
            OSError: the tar can't be read.
        """
        tar, offset, size = place
        descriptor = self._open.pop(tar, None)
        if descriptor is None:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))  # the one that was used the longest time ago
            descriptor = os.open(self._tars[tar], os.O_RDONLY | os.O_CLOEXEC)
        self._open[tar] = descriptor
        return os.pread(descriptor, size, offset)

    def metadata(self, path: bytes, offset: int, size: int) -> bytes | None:
        """Bytes of a metadata list, `size` of them at most; None if there is no such list."""
        if not path or b".." in path.split(b"/") or path.startswith(b"/"):
            return None
        for folder in _METADATA_FOLDERS:
            name = os.path.join(self._root, folder, path)
            try:
                if not os.path.isfile(name):  # a pipe would hang
                    continue
                with open(name, "rb") as file:
                    file.seek(offset)
                    return file.read(size)
            except (OSError, ValueError):
                continue
        place = self._places().get(path)
        if place is None:
            return None
        tar, start, whole = place
        try:
            return self.member((tar, start + offset, min(size, whole - offset)))
        except OSError:
            return None

    def _places(self) -> dict[bytes, tuple[int, int, int]]:
        if self._metadata is None:
            self._metadata = {}
            file = self._build_dir / METADATA_PLACES_FILE
            if file.is_file():
                with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
                    for row in reader.read_all().to_pylist():
                        self._metadata[row["path"]] = (row["tar"], row["offset"], row["size"])
        return self._metadata
