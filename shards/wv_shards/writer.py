"""One shard: a USTAR tar in WebDataset's layout, and DALI's index of it.

The writer streams and never seeks; the tar's checksum and every offset are known when it ends. It neither
decodes nor decides what goes in.
"""

import json
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
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._idx_lines: list[str] = []
        self._finished = False

    def __enter__(self) -> Self:
        self._file = open(self._temporary, "wb")
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
        members = (
            ("jpg", image),
            ("cls", str(label).encode()),
            ("json", json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()),
        )
        placed = []
        for extension, data in members:
            name = f"{key}.{extension}"
            self._write(_header(name, len(data)))
            placed.append(f"{extension} {self._offset} {len(data)} {name}")
            if extension == "jpg":
                self._rows.append((self._offset, checksum(data), len(data), label, width, height, 0))
            self._write(data)
            self._write(bytes(-len(data) % BLOCK_BYTES))
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
        self._file.write(data)
        self._digest.update(data)
        self._offset += len(data)


def temporary_files(directory: Path) -> list[Path]:
    """Leftovers of killed writers in `directory`."""
    return sorted(directory.glob(f"*{TEMPORARY_SUFFIX}"))


def _header(name: str, size: int) -> bytes:
    """A USTAR header block of a regular file: mode 0444, owner and group 0, time 0."""
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: {size} bytes, a member of a USTAR tar holds {MAX_MEMBER_BYTES} at most")
    fields = [
        name.encode("ascii").ljust(100, b"\0"),
        b"0000444\0",  # mode
        b"0000000\0",  # uid
        b"0000000\0",  # gid
        b"%011o\0" % size,
        b"00000000000\0",  # mtime
        b"        ",  # checksum, counted as blanks
        b"0",  # regular file
        bytes(100),  # link name
        b"ustar\0" + b"00",
        bytes(32 + 32 + 8 + 8 + 155 + 12),  # user, group, device numbers, prefix, padding
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
