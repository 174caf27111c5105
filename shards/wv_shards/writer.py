"""One shard: a USTAR tar in WebDataset's layout, and DALI's index of it.

The writer streams and never seeks; the tar's checksum and every offset are known when it ends. It neither
decodes nor decides what goes in.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import xxhash

from wv_shards.atomic import TEMPORARY_SUFFIX, commit, temporary_path, write_atomic
from wv_shards.hashing import checksum
from wv_shards.index import INDEX_DTYPE, IndexArray
from wv_shards.manifest import ShardInfo

BLOCK_BYTES = 512
RECORD_BYTES = 20 * BLOCK_BYTES
"""Tars end on a record of 20 blocks, as GNU tar and `tarfile` write them."""
MAX_KEY_BYTES = 94
"""`key.json` then fits USTAR's 100 bytes for a name, with one to spare."""
MAX_MEMBER_BYTES = 8**11 - 1
"""USTAR's size field has eleven octal digits."""
IDX_VERSION = "v1.2"
_WRITE_BYTES = 1 << 20
_WRITE_PIECES = 512
"""The system takes 1,024 in one call."""
# A header block, but for name, size and checksum.
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" + b"0000000\0"  # mode, uid, gid
_BEFORE_SUM = b"\0" + b"00000000000\0"  # the size's end, mtime
_AFTER_SUM = (
    b"0"  # regular file
    + bytes(100)  # link name
    + b"ustar\0"
    + b"00"
    + bytes(32 + 32 + 8 + 8 + 155 + 12)  # user, group, device numbers, prefix, padding
)
_FIXED_SUM = sum(_BEFORE_SIZE + _BEFORE_SUM + b" " * 8 + _AFTER_SUM)
"""The checksum counts itself as blanks."""
_to_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


class FinishedShard:
    """What a finished shard adds to the manifest and to the index."""

    __slots__ = ("info", "records")

    def __init__(self, info: ShardInfo, records: IndexArray) -> None:
        self.info = info
        self.records = records
        """(samples,) of INDEX_DTYPE."""


class ShardWriter:
    """Writes NAME.tar and NAME.idx into a directory; both appear under their names only when the shard is finished.

    Use as a context manager: leaving it without `finish()` removes what was written.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._temporary = temporary_path(directory / f"{name}.tar")
        self._digest = xxhash.xxh3_128()
        self._offset = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._idx_lines: list[str] = []
        self._finished = False

    def __enter__(self) -> Self:
        self._file = open(self._temporary, "wb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()  # may still find the disk full
        finally:
            if not self._finished:
                self._temporary.unlink(missing_ok=True)

    def add(self, key: str, image: bytes, label: int, facts: dict[str, object], *, width: int, height: int) -> None:
        """Append one sample as `key.jpg`, `key.cls` and `key.json`.

        Args:
            key: unique in the data set; ASCII, without dots and slashes, 94 bytes at most.
            image: a JPEG file.
            label: class id.
            facts: what `key.json` says, JSON-able.
            width, height: of the image, in pixels.

        Raises:
            ValueError: the key can't be a WebDataset key, or the image is larger than USTAR can say.
            OSError: no space left, no permission.
        """
        if (
            not key
            or not key.isascii()
            or "." in key
            or "/" in key
            or len(key) > MAX_KEY_BYTES
            or not key.isprintable()
        ):
            raise ValueError(
                f"key {key!r}: expected 1 to {MAX_KEY_BYTES} printable ASCII characters without '.' and '/'"
            )
        self._write(_header(f"{key}.jpg", len(image)))
        self._rows.append((self._offset, checksum(image), len(image), label, width, height, 0))
        placed = [f"jpg {self._offset} {len(image)} {key}.jpg"]
        self._write(image)
        rest = [bytes(-len(image) % BLOCK_BYTES)]
        at = self._offset + len(rest[0])
        for extension, data in (("cls", b"%d" % label), ("json", _to_json(facts).encode())):
            name = f"{key}.{extension}"
            padding = -len(data) % BLOCK_BYTES
            rest += [_header(name, len(data)), data, bytes(padding)]
            placed.append(f"{extension} {at + BLOCK_BYTES} {len(data)} {name}")
            at += BLOCK_BYTES + len(data) + padding
        self._write(b"".join(rest))
        self._idx_lines.append(" ".join(placed))

    def finish(self, band: int | None) -> FinishedShard:
        """End the tar, write its DALI index, fsync both and give them their names.

        Raises:
            ValueError: the shard holds no sample (DALI refuses such a tar).
        """
        if not self._rows:
            raise ValueError(f"shard {self._name} holds no sample")
        self._write(bytes(2 * BLOCK_BYTES))
        self._write(bytes(-self._offset % RECORD_BYTES))
        self._flush()
        # The index first: a tar under its final name always has its index beside it.
        idx = "\n".join([f"{IDX_VERSION} {len(self._idx_lines)}", *self._idx_lines, ""])
        write_atomic(self._directory / f"{self._name}.idx", idx.encode())
        commit(self._file, self._directory / f"{self._name}.tar")
        self._finished = True
        info = ShardInfo(
            name=self._name,
            samples=len(self._rows),
            bytes=self._offset,
            checksum=self._digest.hexdigest(),
            band=band,
        )
        return FinishedShard(info, np.array(self._rows, dtype=INDEX_DTYPE))

    @property
    def bytes_written(self) -> int:
        """Bytes of the tar so far."""
        return self._offset

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._offset += len(data)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _WRITE_BYTES or len(self._waiting) >= _WRITE_PIECES:
            self._flush()

    def _flush(self) -> None:
        """Hand what waits to the system in one call, without joining it; a full disk takes less than all."""
        while self._waiting:
            taken = os.writev(self._file.fileno(), self._waiting)
            self._waiting_bytes -= taken
            while self._waiting and taken >= len(self._waiting[0]):
                taken -= len(self._waiting.pop(0))
            if taken:
                self._waiting[0] = self._waiting[0][taken:]


def temporary_files(directory: Path) -> list[Path]:
    """Leftovers of killed writers in `directory`."""
    return sorted(directory.glob(f"*{TEMPORARY_SUFFIX}"))


def _header(name: str, size: int) -> bytes:
    """A USTAR header block of a regular file: mode 0444, owner and group 0, time 0."""
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: {size} bytes, a member of a USTAR tar holds {MAX_MEMBER_BYTES} at most")
    called, digits = name.encode("ascii"), b"%011o" % size
    total = _FIXED_SUM + sum(called) + sum(digits)
    return b"".join((called.ljust(100, b"\0"), _BEFORE_SIZE, digits, _BEFORE_SUM, b"%06o\0 " % total, _AFTER_SUM))
