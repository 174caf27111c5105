"""From an opened data set to what the plan needs to know of it: labels, sizes, shards, and what is not to be shown."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from wv_loader.errors import LoaderError
from wv_loader.runs import Layout
from wv_shards import EXCLUDE, Dataset, Overlay, lost_exclude


def layout_of(dataset: Dataset, exclude: Sequence[Path | str | NDArray[np.bool_]]) -> Layout:
    """The layout of a data set.

    Args:
        dataset: an open one. Its own overlay `exclude`, where there is one, always holds.
        exclude: paths of more overlays of this kind, or masks, (N,) bool.

    Raises:
        LoaderError: an overlay of another shape, or the data set's own is lost.
        ShardsError: an overlay of another data set or kind, or a damaged one.
    """
    asked = list(exclude)
    if lost := lost_exclude(dataset.directory, dataset.manifest):
        raise LoaderError(lost)
    if (dataset.directory / f"{EXCLUDE}.json").exists():
        asked.append(dataset.directory / EXCLUDE)
    excluded: NDArray[np.bool_] | None = None
    for one in asked:
        if isinstance(one, np.ndarray):
            who, array = "exclude", one
        else:
            who, array = str(one), Overlay.load_onto(one, dataset.manifest, kind=EXCLUDE).array
        if array.shape != (dataset.manifest.samples,):
            raise LoaderError(f"{who}: shape {array.shape}, expected ({dataset.manifest.samples},): a row per sample")
        excluded = array.astype(bool) if excluded is None else excluded | array.astype(bool)
    bands = [-1 if shard.band is None else shard.band for shard in dataset.manifest.shards]
    return Layout(
        labels=np.ascontiguousarray(dataset.index["label"], dtype=np.int32),
        sizes=np.ascontiguousarray(dataset.index["size"], dtype=np.uint32),
        shard_starts=dataset.shard_starts,
        shard_bands=np.array(bands, dtype=np.int64),
        num_classes=len(dataset.manifest.classes),
        excluded=excluded if excluded is not None and excluded.any() else None,
    )


def digest_of(excluded: NDArray[np.bool_] | None) -> str:
    """Identity of exclusions, (N,) or None."""
    return "" if excluded is None else xxhash.xxh3_128_hexdigest(np.packbits(excluded).tobytes())
