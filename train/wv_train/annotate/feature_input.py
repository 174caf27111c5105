"""The overlay `features` as an input: mapped, checked against its data set, read in pieces of bounded size."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_shards import Dataset, Overlay
from wv_train.annotate.named_shards import shards_of
from wv_train.errors import TrainError

_PIECE_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """(N, D) float16 on disk, and the labels of its samples."""

    array: NDArray[np.float16]
    labels: NDArray[np.int32]
    """(N,) class ids."""
    classes: int
    manifest_digest: str
    identity: dict[str, Any]
    """What anything made from them depends on: the array's checksum."""
    info: dict[str, Any]
    """What the overlay says of how it was made."""

    def rows(self, ordinals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of the ordinals that have features, and these, (n, D) float32."""
        taken = self.array[ordinals].astype(np.float32)
        good = ~np.isnan(taken).any(axis=1)
        return ordinals[good], taken[good]

    def pieces(self, ordinals: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The ordinals in pieces whose rows are a bounded number of bytes."""
        count = max(1, _PIECE_BYTES // (4 * self.array.shape[1]))
        for start in range(0, len(ordinals), count):
            yield ordinals[start : start + count]

    def drawn(self, size: int, seed: int) -> NDArray[np.int64]:
        """Up to `size` ordinals, drawn without replacement, in order."""
        count = len(self.array)
        if size >= count:
            return np.arange(count)
        return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))

    def by_class(self) -> list[NDArray[np.int64]]:
        """Ordinals of each class, in order."""
        order = np.argsort(self.labels, kind="stable")
        borders = np.searchsorted(self.labels[order], np.arange(self.classes + 1))
        return [order[first:stop] for first, stop in pairwise(borders)]


def open_features(base: Path, shards: Path | None) -> Features:
    """Map an overlay of features.

    Args:
        base: of the overlay.
        shards: the data set that it must belong to; None: the one that it names itself.

    Raises:
        ShardsError: no overlay, one of another kind or data set, or damaged; no data set.
        TrainError: an array that can't be features.
    """
    with Dataset.open(shards or shards_of(base, "features", "the overlay features")) as dataset:
        manifest = dataset.manifest
        found = Overlay.load(base, manifest_digest=manifest.digest, kind="features", mapped=True)
        labels = np.ascontiguousarray(dataset.index["label"], dtype=np.int32)
    if found.array.ndim != 2 or found.array.dtype != np.float16 or len(found.array) != manifest.samples:
        raise TrainError(
            f"{base}.npy: {found.array.dtype} of shape {found.array.shape}, expected float16 of "
            f"({manifest.samples}, D); make it with wv-annotate features"
        )
    return Features(
        array=found.array,
        labels=labels,
        classes=len(manifest.classes),
        manifest_digest=manifest.digest,
        identity={"features_checksum": found.checksum},
        info=found.info,
    )
