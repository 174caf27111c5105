"""The overlay `suspects`: how probably each label is wrong, and which class the model believes in; on disk.

It remembers where its shards are, so that a command needs its name alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wv_shards import Dataset, Overlay
from wv_train.annotate.named_shards import shards_of

KIND = "suspects"
SUSPECTS_DTYPE = np.dtype([("wrong", "<f4"), ("believed", "<i4")])
"""A row per sample.

wrong: expected probability that the label is wrong; −1: unknown.
believed: the class that the model predicted at the last visit; −1: unknown.
"""
UNKNOWN = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class SuspectsFile:
    """An overlay read, with the labels that it speaks of."""

    rows: NDArray[Any]
    """(N,) of SUSPECTS_DTYPE."""
    labels: NDArray[np.int64]
    """(N,) class ids."""
    info: dict[str, Any]
    manifest_digest: str
    shards: Path

    @classmethod
    def load(cls, base: Path, shards: Path | None) -> Self:
        """Read it for the data set in `shards`, or in the folder that it names.

        A data set that has grown since has unknown rows at the end.

        Raises:
            ShardsError: there is no such data set, or the overlay is not of it.
            TrainError: there is no such overlay, or it names no data set.
        """
        where = shards or shards_of(base, KIND, f"an overlay of wv-annotate {KIND}")
        with Dataset.open(where) as dataset:
            overlay = Overlay.load_onto(base, dataset.manifest, kind=KIND)
            labels = dataset.index["label"].astype(np.int64)
        return cls(
            rows=overlay.array,
            labels=labels,
            info=overlay.info,
            manifest_digest=overlay.manifest_digest,
            shards=where,
        )


def save_suspects(
    base: Path,
    wrong: NDArray[np.float64],
    believed: NDArray[np.int64],
    *,
    manifest_digest: str,
    info: dict[str, Any],
) -> None:
    """Write `base`.npy and `base`.json; `wrong` (N,) is NaN and `believed` (N,) is −1 where unknown."""
    rows = np.empty(len(wrong), dtype=SUSPECTS_DTYPE)
    rows["wrong"] = np.where(np.isnan(wrong), UNKNOWN, wrong)
    rows["believed"] = believed
    neutral = {"wrong": UNKNOWN, "believed": UNKNOWN}
    Overlay(kind=KIND, array=rows, manifest_digest=manifest_digest, info=info, neutral=neutral).save(base)
