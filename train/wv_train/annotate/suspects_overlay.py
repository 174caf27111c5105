"""The overlay `suspects`: how probably each label is wrong, and which class the model believes in; on disk.

It remembers where its shards are, so that a command needs its name alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wv_shards import Dataset, NotADatasetError, Overlay

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
            ShardsError: there is no such overlay or data set, or it is not that data set's.
        """
        where = shards or _named_shards(base)
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


def _named_shards(base: Path) -> Path:
    """Where the overlay says that its shards are."""
    file = base.with_name(base.name.removesuffix(".npy").removesuffix(".json") + ".json")
    try:
        return Path(json.loads(file.read_bytes())["info"]["shards"])
    except FileNotFoundError:
        raise NotADatasetError(f"{base}: expected an overlay of wv-annotate suspects, found no {file.name}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise NotADatasetError(f"{file}: does not say where its shards are; name them with --shards") from error
