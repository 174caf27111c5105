"""Where the samples stand, and the runs of them that are sampled and read: what the plan of every epoch starts from.

A run is consecutive samples of one shard. Nothing here knows an epoch, τ or a stream.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from wv_shards import combine

MAX_RUN_SAMPLES = 256
MAX_RUN_BYTES = 10_000_000
_RUNS_PER_DATASET = 4096
"""Runs that a data set is cut into at least, so that a small one is sampled by single images."""
_CHUNK_SAMPLES = 1 << 20

I64 = NDArray[np.int64]


class Purpose(IntEnum):
    """Second part of every hash of the plan, so that no two decisions share their randomness."""

    RUN_ORDER = 1
    BAND_PHASE = 2
    SAMPLE_PHASE = 3
    VISIT_ORDER = 4
    VISIT_JITTER = 5
    WINDOW = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the samples stand, as far as the plan needs to know."""

    labels: NDArray[np.int32]
    """(N,) class id of each ordinal."""
    sizes: NDArray[np.uint32]
    """(N,) bytes of each sample."""
    shard_starts: I64
    """(S + 1,) first ordinal of each shard, then N."""
    shard_bands: I64
    """(S,) band of each shard, −1 where it has none."""
    num_classes: int
    excluded: NDArray[np.bool_] | None = None
    """(N,) samples not to be shown, or None."""


class Runs:
    """The runs of a data set, and which classes stand in them."""

    def __init__(self, layout: Layout, *, length: int | None, seed: int) -> None:
        """Cut the shards.

        Args:
            layout: where the samples stand.
            length: samples of a run at most; None: N/4096, within 1 … 256.
            seed: of the phases.

        Raises:
            ValueError: no sample is left to show.
        """
        self.layout = layout
        self.class_counts = _class_counts(layout)
        """(K,) samples not excluded."""
        shown = int(self.class_counts.sum())
        if not shown:
            raise ValueError("no sample is left to show: the data set is empty, or everything in it is excluded")
        self.length = length or min(max(shown // _RUNS_PER_DATASET, 1), MAX_RUN_SAMPLES)
        """Samples of a run at most."""
        self.starts, self.bands = _cut(layout, self.length)
        """(R + 1,) first ordinal of each run, then N; (R,) its band, −1 for none."""
        self.phases = _phases(self.bands, seed)
        """(R,) u, fixed point in [0, 1)."""
        self.classes_of_band = _classes_of_band(layout)
        """Class ids that stand in the shards of a band."""

    def __len__(self) -> int:
        return len(self.bands)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Borders of stretches of runs of about a million samples, so that arrays per sample stay small."""
        return slices(self.starts[:-1] // _CHUNK_SAMPLES)


def slices(groups: I64) -> Iterator[tuple[int, int]]:
    """Borders of the stretches of equal numbers in a sorted array."""
    borders = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
    return ((a, b) for a, b in itertools.pairwise(borders) if a < b)


def chunks_of(lengths: I64) -> Iterator[tuple[int, int]]:
    """Borders of stretches of visits that have about a million samples together."""
    return slices(np.cumsum(lengths) // _CHUNK_SAMPLES)


def _class_counts(layout: Layout) -> I64:
    counts = np.zeros(layout.num_classes, dtype=np.int64)
    for start in range(0, len(layout.labels), _CHUNK_SAMPLES):
        labels = layout.labels[start : start + _CHUNK_SAMPLES]
        if layout.excluded is not None:
            labels = labels[~layout.excluded[start : start + _CHUNK_SAMPLES]]
        counts += np.bincount(labels, minlength=layout.num_classes)
    return counts


def _classes_of_band(layout: Layout) -> dict[int, I64]:
    present = {band: np.zeros(layout.num_classes, dtype=bool) for band in np.unique(layout.shard_bands).tolist()}
    for shard, band in enumerate(layout.shard_bands.tolist()):
        present[band][layout.labels[layout.shard_starts[shard] : layout.shard_starts[shard + 1]]] = True
    return {band: np.flatnonzero(classes) for band, classes in present.items()}


def _cut(layout: Layout, longest: int) -> tuple[I64, I64]:
    """Cut every shard into runs alike in length, of at most `longest` samples and about 10 MB."""
    starts: list[I64] = []
    bands: list[I64] = []
    for shard, band in enumerate(layout.shard_bands.tolist()):
        first, last = int(layout.shard_starts[shard]), int(layout.shard_starts[shard + 1])
        ends = np.concatenate([[0], np.cumsum(layout.sizes[first:last], dtype=np.int64)])
        pieces = -(-(last - first) // longest)
        while pieces:
            cut = np.arange(pieces + 1, dtype=np.int64) * (last - first) // pieces
            if pieces == last - first or np.diff(ends[cut]).max() <= MAX_RUN_BYTES:
                starts.append(first + cut[:-1])
                bands.append(np.full(pieces, band, dtype=np.int64))
                break
            pieces = min(2 * pieces, last - first)
    starts.append(np.array([len(layout.labels)], dtype=np.int64))
    return np.concatenate(starts), np.concatenate(bands)


def _phases(bands: I64, seed: int) -> I64:
    """Phases u of the runs, fixed point in [0, 1): evenly spread within a band, in hashed order."""
    runs = np.arange(len(bands))
    drawn = combine(seed, Purpose.RUN_ORDER, runs)
    order = np.lexsort((drawn, bands))
    names, sizes = np.unique(bands, return_counts=True)
    shift = (combine(seed, Purpose.BAND_PHASE, names) >> np.uint64(32)).astype(np.int64)
    place = np.arange(len(bands)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    phases = np.empty(len(bands), dtype=np.int64)
    phases[order] = ((place << 32) + np.repeat(shift, sizes)) // np.repeat(sizes, sizes)
    return phases
