"""What the contestants of `wv-bench loader` read: the images of some shards, as the tars that they are and as a folder.

All images come out of the shards, so that everybody decodes the same bytes. What is written is kept under the data
set's digest, and used again by the next run with the same work folder.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wv_shards import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The same images twice."""

    folder: Path
    """Class folders of image files."""
    tars: tuple[Path, ...]
    samples: int
    set_samples: int
    """Of the whole data set, of which these are the first."""
    mb: float
    """Image files alone, in MB."""
    root: Path
    """Place for the formats of the peers, one folder each."""

    def as_setup(self) -> dict[str, Any]:
        """As part of what a contestant is given."""
        return {"folder": str(self.folder), "tars": [str(tar) for tar in self.tars], "samples": self.samples}


def prepare(shards: Path, work: Path, wanted: int, *, folder: bool = True) -> Inputs:
    """Take the first shards that hold at least `wanted` samples, or all, and write their images into a folder.

    folder: False writes no images, for those who read shards alone.

    Raises:
        ShardsError: no finished data set.
    """
    with Dataset.open(shards) as dataset:
        count = 1 + int(dataset.shard_starts[1:-1].searchsorted(wanted)) if len(dataset.manifest.shards) else 0
        samples = int(dataset.shard_starts[count])
        root = work / f"{dataset.manifest.digest[:12]}-{samples}"
        images = root / "images"
        root.mkdir(parents=True, exist_ok=True)
        if folder and not images.exists():
            unfinished = root / "images.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            for label in set(dataset.index["label"][:samples].tolist()):
                (unfinished / f"{label:05d}").mkdir(parents=True)
            for ordinal in range(samples):
                label = int(dataset.index["label"][ordinal])
                (unfinished / f"{label:05d}" / f"{ordinal:08d}.jpg").write_bytes(dataset.read(ordinal))
            unfinished.rename(images)
        return Inputs(
            folder=images,
            tars=tuple(dataset.shard_path(shard).resolve() for shard in range(count)),
            samples=samples,
            set_samples=dataset.manifest.samples,
            mb=float(dataset.index["size"][:samples].sum(dtype="int64")) / 1e6,
            root=root,
        )
