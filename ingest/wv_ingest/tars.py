"""Tars read in place: an index of their members, and from it each row's place.

    index_tar  (a worker, one tar)  ──►  .build/members-000.npy: hash of the path, offset, size
    Listed.places  (all of them)    ──►  (rows,) tar, offset, size; members that no row names are counted

Paths are compared by 128-bit hashes, so that sixteen million members are arrays of 40 bytes each. A tar of which
only the beginning is there gives what it has. As when unpacking, the last of several members of one name counts.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from wv_ingest.tar_walk import TarWalk
from wv_shards import atomic_file

MEMBER_DTYPE = np.dtype([("low", "<u8"), ("high", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("header", "<u8")])
"""`low`, `high`: xxh3_128 of the path as `source_path` has it."""
PLACE_DTYPE = np.dtype([("tar", "<i4"), ("offset", "<i8"), ("size", "<i8")])
"""`tar` is −1 where no tar has the path, NO_IMAGE where a sample of a tar has no image."""
NO_IMAGE = -2
EXAMPLES = 5
"""Names of unlisted files that are kept."""
_EXAMPLES_SOUGHT = 1000
_BATCH = 1 << 16
_SOURCES = (b"google", b"flickr")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexJob:
    """A tar to index."""

    tar: Path
    index: Path
    """The file to write."""
    flat: bytes
    """The folder of the flat validation images; empty for training images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedTar:
    """What a worker says of a tar."""

    job: IndexJob
    members: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unlisted:
    """Files of the source that no list names."""

    files: int
    first: tuple[str, ...]
    """The first of their names, EXAMPLES at most."""


def source_path(name: bytes, tar_name: str, flat: bytes) -> bytes:
    """A member's name, or a list's, as the path that both have in common.

    Training images: from `google` or `flickr` on, whatever stands before; a tar that is called so may leave it out.
    Validation images: `flat` and the base name.
    """
    if flat:
        return flat + b"/" + name.rsplit(b"/", 1)[-1]
    if name.startswith((b"google/q", b"flickr/q")) and b"//" not in name and b"/./" not in name:
        return name
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    for i, part in enumerate(parts[:-1]):
        if part in _SOURCES:
            return b"/".join(parts[i:])
    for source in _SOURCES:
        if tar_name.startswith(source.decode()) and len(parts) > 1:
            return b"/".join((source, *parts[-2:]))
    return b"/".join(parts)


def index_tar(job: IndexJob) -> Iterator[int]:
    """Write the index of a tar; yields the members found, now and then."""
    descriptor = os.open(job.tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        walk = TarWalk(descriptor, os.fstat(descriptor).st_size)
        digests, numbers, links, parts = bytearray(), [], [], []
        count = 0
        for member in walk.members():
            digests += xxhash.xxh3_128_digest(source_path(member.name, job.tar.name, job.flat))
            numbers.append((member.offset, member.size, member.header))
            if member.link is not None:
                links.append((count, xxhash.xxh3_128_digest(source_path(member.link, job.tar.name, job.flat))))
            count += 1
            if len(numbers) == _BATCH:
                parts.append(_records(digests, numbers))
                digests, numbers = bytearray(), []
                yield count
        parts.append(_records(digests, numbers))
        members = np.concatenate(parts)
    finally:
        os.close(descriptor)
    if links:
        members = _linked(members, links)
    with atomic_file(job.index) as file:
        np.save(file, members)
    warnings = []
    if walk.damage:
        warnings.append(f"{job.tar.name}: {walk.damage}; {count:,} members are there, the others count as missing")
    if walk.odd:
        warnings.append(f"{job.tar.name}: {walk.odd:,} sparse members can't be read in place and count as missing")
    yield count
    job.index.with_suffix(".txt").write_text("\n".join(warnings), encoding="utf-8")


def indexed(job: IndexJob) -> IndexedTar:
    """What `index_tar` found."""
    warnings = job.index.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    return IndexedTar(job=job, members=len(np.load(job.index, mmap_mode="r")), warnings=tuple(warnings))


def _records(digests: bytearray, numbers: list[tuple[int, int, int]]) -> NDArray[np.void]:
    records = np.zeros(len(numbers), dtype=MEMBER_DTYPE)
    records["high"], records["low"] = _halves(bytes(digests))
    if numbers:
        records["offset"], records["size"], records["header"] = np.array(numbers, dtype=np.uint64).T
    return records


def _halves(digests: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    both = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)  # (paths, 2)
    return both[:, 0], both[:, 1]


def _linked(members: NDArray[np.void], links: list[tuple[int, bytes]]) -> NDArray[np.void]:
    """Give hard links their target's data: of the last member before them that is called so; others are dropped."""
    wanted = {target for _, target in links}
    rows = dict(links)
    place_of: dict[bytes, tuple[int, int]] = {}
    kept = np.ones(len(members), dtype=bool)
    high, low = members["high"], members["low"]
    targets_low = np.unique(np.array([np.frombuffer(t, dtype="<u8")[1] for t in wanted], dtype=np.uint64))
    interesting = np.flatnonzero(np.isin(low, targets_low) | np.isin(np.arange(len(members)), list(rows)))
    for row in interesting.tolist():
        own = high[row].tobytes() + low[row].tobytes()
        if row in rows:
            place = place_of.get(rows[row])
            if place is None:
                kept[row] = False
                continue
            members["offset"][row], members["size"][row] = place
        if own in wanted:
            place_of[own] = (int(members["offset"][row]), int(members["size"][row]))
    return members[kept]


def path_hashes(paths: pa.ChunkedArray, flat: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(paths,) high and low halves of the hashes of `paths`."""
    parts = []
    for start in range(0, len(paths), _BATCH):
        batch = paths.slice(start, _BATCH).to_pylist()
        parts.append(b"".join([xxhash.xxh3_128_digest(source_path(path, "", flat)) for path in batch]))
    return _halves(b"".join(parts))


class Listed:
    """The paths that the lists name, for looking up members and files.

    Args:
        paths: columns of paths; of equal ones the first counts.
        flat: as in `source_path`.
    """

    def __init__(self, paths: Sequence[pa.ChunkedArray], flat: bytes) -> None:
        halves = [path_hashes(column, flat) for column in paths]
        high = np.concatenate([half[0] for half in halves])
        low = np.concatenate([half[1] for half in halves])
        self._order = np.argsort(low, kind="stable")  # (paths,) int64
        self._low, self._high = low[self._order], high[self._order]
        self._flat = flat

    def find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(hashes,) int64: number of the path, −1 where none has that hash."""
        if not len(self._low):
            return np.full(len(low), -1, dtype=np.int64)
        at = np.searchsorted(self._low, low)
        last = len(self._low) - 1
        while True:
            alike = (at <= last) & (self._low[np.minimum(at, last)] == low)
            other = alike & (self._high[np.minimum(at, last)] != high)
            if not other.any():
                return np.where(alike, self._order[np.minimum(at, last)], -1)
            at[other] += 1

    def places(self, tars: Sequence[IndexedTar]) -> NDArray[np.void]:
        """(paths,) of PLACE_DTYPE. Of several members the last one in the last tar counts, as when unpacking."""
        places = np.zeros(len(self._order), dtype=PLACE_DTYPE)
        places["tar"] = -1
        for number, tar in enumerate(tars):
            members = np.load(tar.job.index, mmap_mode="r")
            for start in range(0, len(members), _BATCH * 16):
                part = np.asarray(members[start : start + _BATCH * 16])
                rows = self.find(part["high"], part["low"])
                hit = rows >= 0
                # Assignment by a list of rows keeps the last of equal ones.
                places["tar"][rows[hit]] = number
                places["offset"][rows[hit]] = part["offset"][hit]
                places["size"][rows[hit]] = part["size"][hit]
        return places

    def unlisted_members(self, tar: IndexedTar) -> Iterator[tuple[int, list[bytes]]]:
        """Counts of a tar's members that no path names, and of the first ones the names."""
        members = np.load(tar.job.index, mmap_mode="r")
        sought = _EXAMPLES_SOUGHT
        for start in range(0, len(members), _BATCH * 16):
            part = np.asarray(members[start : start + _BATCH * 16])
            headers = part["header"][self.find(part["high"], part["low"]) < 0]
            yield len(headers), self._names(tar.job, headers[:sought])
            sought -= min(sought, len(headers))

    def _names(self, job: IndexJob, headers: NDArray[np.uint64]) -> list[bytes]:
        if not len(headers):
            return []
        descriptor = os.open(job.tar, os.O_RDONLY | os.O_CLOEXEC)
        try:
            walk = TarWalk(descriptor, os.fstat(descriptor).st_size)
            members = [next(walk.members(int(header)), None) for header in headers]
        finally:
            os.close(descriptor)
        return [source_path(member.name, job.tar.name, job.flat) for member in members if member is not None]

    def unlisted_files(self, root: Path, folders: Sequence[str]) -> Iterator[tuple[int, list[bytes]]]:
        """The same of the files below `folders`, streaming: folders are walked, links are not followed."""
        batch: list[bytes] = []
        for folder in folders:
            for path in _walk(os.fsencode(root), folder.encode()):
                batch.append(path)
                if len(batch) == _BATCH:
                    yield self._unlisted(batch)
                    batch = []
        yield self._unlisted(batch)

    def _unlisted(self, paths: list[bytes]) -> tuple[int, list[bytes]]:
        column = pa.chunked_array([pa.array(paths, pa.large_binary())])
        rows = self.find(*path_hashes(column, self._flat))
        without = [paths[i] for i in np.flatnonzero(rows < 0)]
        return len(without), sorted(without)[:EXAMPLES]


def _walk(root: bytes, folder: bytes) -> Iterator[bytes]:
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            below = []
            for entry in entries:
                path = folder + b"/" + entry.name
                if entry.is_dir(follow_symlinks=False):
                    below.append(path)
                elif not entry.is_dir():
                    yield path
    except OSError:  # a folder that can't be read: its rows say so
        return
    for path in below:
        yield from _walk(root, path)


def add_up(parts: Iterator[tuple[int, list[bytes]]], before: Unlisted) -> Unlisted:
    """Total of counts; of the names the first in the order of their bytes."""
    files, first = before.files, list(before.first)
    for count, names in parts:
        files += count
        first = sorted({*first, *(name.decode("utf-8", "backslashreplace") for name in names)})[:EXAMPLES]
    return Unlisted(files=files, first=tuple(first))
