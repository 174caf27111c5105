"""What `wv-bench plan` plans: a data set on disk, a WebVision file list, or drawn class sizes. No image is read.

The last two are laid out as `build-shards` would: by band, in random order, in shards of some 60 MB.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wv_loader import Loader
from wv_loader.runs import I64, Layout
from wv_shards import band_of

_SMALLEST_CLASS, _LARGEST_CLASS = 26, 9_996
"""Images of WebVision 2.0's smallest and largest class."""
_SKEW = 1.2
"""Standard deviation of the logarithm of a class's size, before the two limits."""
_SHARD_SAMPLES = 2_000
_SIZES = 10_000, 50_000
"""Bytes of a drawn image."""
_BESIDE_BYTES = 3_072
"""Headers, padding, label and facts of a sample in its tar, besides the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A layout, and what the report says of it."""

    name: str
    layout: Layout
    offsets: I64
    """(N,) first byte of each image within its shard."""
    class_names: list[str]


def from_shards(directory: Path, exclude: tuple[Path, ...]) -> Subject:
    """A finished data set, its own exclusions and others."""
    with Loader(directory, batch_size=1, size_px=1, exclude=exclude) as loader:
        return Subject(
            name=directory.name,
            layout=loader.plan.layout,
            offsets=loader.dataset.index["offset"].astype(np.int64),
            class_names=loader.class_names,
        )


def from_list(path: Path) -> Subject:
    """A file list of WebVision's form: a path and a class id in every line.

    Raises:
        ValueError: a line has no class id.
    """
    labels: list[int] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            label = line.rsplit(maxsplit=1)[-1:]
            if not label or not label[0].isdecimal():
                raise ValueError(f"{path}:{number}: expected a path and a class id, found {line.strip()[:60]!r}")
            labels.append(int(label[0]))
    if not labels:
        raise ValueError(f"{path}: no lines: expected a path and a class id in each")
    return _packed(path.name, np.bincount(labels))


def synthetic(samples: int, classes: int) -> Subject:
    """Class sizes skewed as WebVision 2.0's: 26 to 9,996 images where `samples` allows it."""
    weights = np.exp(np.random.default_rng(0).normal(0, _SKEW, classes))
    low, high = 0.0, 2.0 * samples
    for _ in range(100):  # the scale at which the clipped sizes add up
        scale = (low + high) / 2
        total = int(_clipped(weights, scale, samples / classes).sum())
        low, high = (scale, high) if total < samples else (low, scale)
    return _packed(f"{samples:,} drawn samples", _clipped(weights, high, samples / classes))


def _clipped(weights: NDArray[np.float64], scale: float, mean: float) -> I64:
    smallest, largest = min(_SMALLEST_CLASS, max(1.0, mean / 10)), max(_LARGEST_CLASS, 3 * mean)
    return np.clip(weights * scale, smallest, largest).astype(np.int64)


def _packed(name: str, counts: I64) -> Subject:
    random = np.random.default_rng(0)
    bands = np.array([-1 if (band := band_of(int(n))) is None else band for n in counts])
    labels = np.empty(int(counts.sum()), dtype=np.int32)
    starts, shard_bands = [0], []
    for band in np.unique(bands[bands >= 0]).tolist():
        classes = np.flatnonzero(bands == band).astype(np.int32)
        first, rows = starts[-1], int(counts[classes].sum())
        members = labels[first : first + rows]
        members[:] = np.repeat(classes, counts[classes])
        random.shuffle(members)
        shards = -(-rows // _SHARD_SAMPLES)
        starts += [first + rows * (i + 1) // shards for i in range(shards)]
        shard_bands += [band] * shards
    sizes = random.integers(*_SIZES, len(labels), dtype=np.uint32)
    shard_starts = np.array(starts, dtype=np.int64)
    offsets = np.zeros(len(labels), dtype=np.int64)  # within one long tar: a shard's start makes no difference
    np.cumsum(sizes[:-1], out=offsets[1:])
    offsets += np.arange(len(labels)) * _BESIDE_BYTES
    return Subject(
        name=name,
        layout=Layout(
            labels=labels,
            sizes=sizes,
            shard_starts=shard_starts,
            shard_bands=np.array(shard_bands, dtype=np.int64),
            num_classes=len(counts),
        ),
        offsets=offsets,
        class_names=[f"class {c}" for c in range(len(counts))],
    )
