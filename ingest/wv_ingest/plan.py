"""Which row goes into which shard: decided from the source's rows alone, before anything is decoded.

A class's band follows from its rows, a row's place within the band from a hash of (key, seed). The same source,
seed and sizes give the same plan on every machine, whoever runs its shards, and in whatever order.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from wv_ingest.keys import key_of
from wv_ingest.sources import Source
from wv_shards import band_of, key_hash

TRIAL_ROWS = 256
"""Rows, at most, that are packed in trial to learn the mean size of a stored image."""
_TRIAL_ROWS_LEAST = 16
_TRIAL_PART = 32
"""Of a small set one row in so many is tried."""
SMALL_SET_SHARDS = 32
SMALL_SHARD_ROWS = 64
"""A set too small for many full shards is cut into about SMALL_SET_SHARDS anyway, of no fewer rows than this, so
that all workers have work."""
NO_BAND = -1
"""In arrays: a class without a band."""
_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """Rows `start` … `stop` − 1 of the plan's order, all of one band."""

    name: str
    band: int | None
    """None: its classes have none, because their other samples lie in tars that were not packed by band."""
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOrder:
    """The source's rows in the order in which they are packed."""

    order: NDArray[np.int64]
    """(rows − repeated,) row numbers: by band, within a band by hash."""
    bands: tuple[tuple[int, int, int], ...]
    """(band, start, stop) within `order`, ascending, without gaps; bands without rows are left out. −1: no band."""
    repeated: NDArray[np.int64]
    """Row numbers whose path stood in an earlier row."""
    trial: NDArray[np.int64]
    """(≤ TRIAL_ROWS,) row numbers with the smallest hashes: a fair sample, the same in every build."""


def order_rows(source: Source, seed: int, bands: Sequence[int | None] | None = None) -> RowOrder:
    """Order the rows of a source; see the module's text.

    Args:
        source: what is to be packed.
        seed: decides the order within a band.
        bands: of each class; None: as its rows in this source say.
    """
    if bands is None:
        bands = [band_of(int(rows)) for rows in source.class_rows()]
    labels = source.labels
    path_hashes, place_hashes = _hashes(source.rows.column("path"), seed)
    repeated = _repeated(source.rows.column("path"), path_hashes)
    kept = np.ones(len(labels), dtype=bool)
    kept[repeated] = False
    rows = np.flatnonzero(kept)
    class_bands = np.array([NO_BAND if band is None else band for band in bands], dtype=np.int64)
    row_bands = class_bands[labels[rows]]  # (rows,) int64
    order = rows[np.lexsort((place_hashes[rows], row_bands))]
    found, counts = np.unique(row_bands, return_counts=True)
    stops = np.cumsum(counts)
    cuts = tuple(zip(found.tolist(), (stops - counts).tolist(), stops.tolist(), strict=True))
    tried = min(TRIAL_ROWS, max(_TRIAL_ROWS_LEAST, len(rows) // _TRIAL_PART))
    trial = rows[np.argsort(place_hashes[rows], kind="stable")[:tried]]
    return RowOrder(order=order, bands=cuts, repeated=repeated, trial=trial)


def cut_shards(
    bands: tuple[tuple[int, int, int], ...],
    bytes_per_row: int,
    shard_bytes: int,
    taken: Collection[str] = (),
) -> list[PlannedShard]:
    """Cut each band into shards of nearly equal rows, about `shard_bytes` each at most.

    Args:
        bands: (band, start, stop) as in `RowOrder`.
        bytes_per_row: mean size of a row in a tar.
        shard_bytes: what a shard may weigh, about.
        taken: names of shards that are there already; the numbers go on after theirs.
    """
    total = sum(stop - start for _, start, stop in bands)
    small_rows = max(SMALL_SHARD_ROWS, -(-total // SMALL_SET_SHARDS))
    shard_rows = max(1, min(shard_bytes // max(1, bytes_per_row), small_rows))
    shards = []
    for band, start, stop in bands:
        rows = stop - start
        count = -(-rows // shard_rows)
        cuts = [start + i * rows // count for i in range(count + 1)]
        prefix = "x" if band == NO_BAND else f"b{band:02d}"
        first = next_number(prefix, taken)
        shards += [
            PlannedShard(
                name=f"{prefix}-{first + i:06d}",
                band=None if band == NO_BAND else band,
                start=cuts[i],
                stop=cuts[i + 1],
            )
            for i in range(count)
        ]
    return shards


def next_number(prefix: str, taken: Collection[str]) -> int:
    """The number after the largest N of the names PREFIX-N; 0 where there is none."""
    pattern = re.compile(re.escape(prefix) + r"-(\d{6,})")
    return max((int(match[1]) + 1 for name in taken if (match := pattern.fullmatch(name))), default=0)


def _hashes(paths: pa.ChunkedArray, seed: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """For each path its own hash, and the hash of (key, seed) that orders it: (rows,) uint64 each."""
    own = np.empty(len(paths), dtype=np.uint64)
    place = np.empty(len(paths), dtype=np.uint64)
    for start in range(0, len(paths), _CHUNK_ROWS):
        for i, path in enumerate(paths.slice(start, _CHUNK_ROWS).to_pylist(), start):
            own[i] = xxhash.xxh3_64_intdigest(path)
            place[i] = key_hash(key_of(path), seed)
    return own, place


def _repeated(paths: pa.ChunkedArray, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rows whose path an earlier row has: equal hashes name the suspects, the paths decide."""
    by_hash = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[by_hash][1:] == hashes[by_hash][:-1])
    suspects = np.unique(np.concatenate([by_hash[alike], by_hash[alike + 1]]))  # ascending: the first row comes first
    seen: set[bytes] = set()
    repeated = []
    for row, path in zip(suspects.tolist(), paths.take(pa.array(suspects)).to_pylist(), strict=True):
        if path in seen:
            repeated.append(row)
        seen.add(path)
    return np.array(repeated, dtype=np.int64)
