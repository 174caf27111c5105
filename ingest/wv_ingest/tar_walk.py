"""Members of a tar by its headers alone: names, and where the data lies. Nothing is unpacked, no data is read.

Knows USTAR, GNU and PAX names and sizes, and hard links. Members whose data does not lie there in one piece (sparse
files) are stepped over and counted. `tarfile` would do, at 0.4 of the speed and keeping an object of each member.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_BYTES = 512
_ZERO = bytes(BLOCK_BYTES)
_LONG_BYTES = 1 << 20
"""A name or a PAX header longer than this is damage."""
_REGULAR, _LINK, _WITHOUT_DATA = b"0\0007", b"1", b"123456"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar."""

    name: bytes
    header: int
    """First byte of its headers, long names included: `TarWalk.members` can start there."""
    offset: int
    """First byte of its data."""
    size: int
    link: bytes | None
    """The name of an earlier member, whose data this hard link shares."""


class TarWalk:
    """Steps through the headers of an open tar.

    Args:
        descriptor: of the tar.
        tar_bytes: its size.
    """

    def __init__(self, descriptor: int, tar_bytes: int) -> None:
        self._descriptor = descriptor
        self._tar_bytes = tar_bytes
        self.damage = ""
        """Why the walk ended before the archive's end mark; empty if it did not."""
        self.odd = 0
        """Sparse files, stepped over."""

    def members(self, start: int = 0) -> Iterator[Member]:
        """All files, in the tar's order, that are there in full."""
        header = offset = start
        name: bytes | None = None
        link: bytes | None = None
        pax: dict[bytes, bytes] = {}
        while True:
            block = os.pread(self._descriptor, BLOCK_BYTES, offset)
            if len(block) < BLOCK_BYTES:
                self.damage = f"ends at byte {self._tar_bytes} without an end mark"
                return
            if block == _ZERO:
                if os.pread(self._descriptor, BLOCK_BYTES, offset + BLOCK_BYTES) in (_ZERO, b""):
                    return
                offset += BLOCK_BYTES
                continue
            size = _size_of(block)
            if size is None:
                self.damage = f"no header of a member at byte {offset}"
                return
            kind, data = block[156:157], offset + BLOCK_BYTES
            if kind in b"LKxXg":
                text = os.pread(self._descriptor, size, data) if size <= _LONG_BYTES else b""
                if len(text) < size or size > _LONG_BYTES:
                    self.damage = f"the name at byte {offset} is not whole"
                    return
                if kind == b"L":
                    name = text.split(b"\0", 1)[0]
                elif kind == b"K":
                    link = text.split(b"\0", 1)[0]
                elif kind in b"xX":
                    pax = _pax(text)
                offset = data + _padded(size)
                continue
            size = int(pax[b"size"]) if pax.get(b"size", b"").isdigit() else size
            if kind in b"S":
                data = self._after_sparse_map(block, data)
            end = data + (0 if kind in _WITHOUT_DATA else size)
            sparse = kind in b"S" or any(key.startswith(b"GNU.sparse.") for key in pax)
            if end > self._tar_bytes:
                self.damage = f"ends at byte {self._tar_bytes}, within a member"
                return
            if sparse:
                self.odd += 1
            elif kind in _REGULAR or kind in _LINK:
                full = pax.get(b"path") or name or _name_of(block)
                target = pax.get(b"linkpath") or link or block[157:257].split(b"\0", 1)[0]
                if not full.endswith(b"/"):
                    yield Member(full, header, data, end - data, target if kind in _LINK else None)
            header = offset = data + _padded(end - data)
            name = link = None
            pax = {}

    def _after_sparse_map(self, block: bytes, data: int) -> int:
        """Where the data of an old GNU sparse file begins: further blocks of its map come first."""
        more = block[482]
        while more:
            block = os.pread(self._descriptor, BLOCK_BYTES, data)
            data += BLOCK_BYTES
            more = block[504] if len(block) == BLOCK_BYTES else 0
        return data


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _size_of(block: bytes) -> int | None:
    """The size that a header states; None if the block is no header."""
    try:
        said = int(block[148:156].strip(b"\0 ") or b"0", 8)
        field = block[124:136]
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None
    return size if said == sum(block) - sum(block[148:156]) + 8 * 32 and size >= 0 else None


def _name_of(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(text: bytes) -> dict[bytes, bytes]:
    """Records `LENGTH KEY=VALUE\\n`; what can't be read is left out."""
    records: dict[bytes, bytes] = {}
    while text:
        digits = text.split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(text):
            break
        key, _, value = text[len(digits) + 1 : length - 1].partition(b"=")
        records[key] = value
        text = text[length:]
    return records
