"""Which samples are held out of training to validate on: a share of them, by a hash of the key.

So a run can choose thresholds and checkpoints on noisy data like its own, without a clean set. The choice depends on
nothing but key and fraction: not on seed, machine, ranks or the order of the shards. What is held out at a fraction is
held out at every larger one. The labels stay as they are given: accuracy on them is bounded by their noise.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wv_loader import Loader
from wv_shards import Dataset, key_hash

HOLDOUT_SALT = 0x686F6C646F7574  # "holdout"
"""Seed of `key_hash`: apart from the build's seed, by which shards are ordered."""
MAX_FRACTION = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """What was held out of a data set, counted without what is excluded anyway."""

    fraction: float
    """As asked for."""
    samples: int
    trained: int
    """Samples that are left to train on."""
    without_training: tuple[str, ...]
    """Classes all of whose samples are held out."""
    without_validation: int
    """Classes with samples, none of which is held out."""

    @classmethod
    def of(cls, fraction: float, class_counts: list[int], validation: Loader) -> "HeldOut":
        """From the (K,) samples of each class that are trained on, and the other side's loader."""
        trained, held = np.array(class_counts), validation.class_counts
        return cls(
            fraction=fraction,
            samples=int(held.sum()),
            trained=int(trained.sum()),
            without_training=tuple(validation.class_names[k] for k in np.flatnonzero((trained == 0) & (held > 0))),
            without_validation=int(((trained > 0) & (held == 0)).sum()),
        )

    def lines(self) -> list[str]:
        """For a person."""
        share = self.samples / (self.samples + self.trained)
        found = [
            f"held out: {self.samples:,} samples ({share:.2%}), by a hash of the key, with their labels as given; "
            "they are the validation set"
        ]
        if self.without_training:
            found.append(
                f"warning: --holdout {self.fraction:g} leaves no sample to train on in {len(self.without_training):,} "
                f"classes ({_some(self.without_training)}); they will not be learned"
            )
        if self.without_validation:
            found.append(f"note: of {self.without_validation:,} classes no sample is held out")
        return found


def held_out(dataset: Dataset, fraction: float) -> NDArray[np.bool_]:
    """(N,) bool, read-only: True where the key's hash is among the lowest `fraction` of all 2^64.

    Raises CorruptDataError where the keys can't be read.
    """
    return _held_out(dataset.directory, dataset.manifest.digest, fraction)


@lru_cache(maxsize=2)
def _held_out(directory: Path, _digest: str, fraction: float) -> NDArray[np.bool_]:
    """Kept, as every phase asks for it; the digest tells apart what stands at one place at different times."""
    with Dataset.open(directory) as dataset:
        keys = dataset.samples_table(["key"]).column("key")
    limit = int(fraction * 2**64)
    parts = [
        np.fromiter((key_hash(key, HOLDOUT_SALT) < limit for key in chunk.to_pylist()), dtype=np.bool_)
        for chunk in keys.chunks
    ]
    mask = np.concatenate([*parts, np.zeros(0, dtype=np.bool_)])
    mask.flags.writeable = False
    return mask


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
