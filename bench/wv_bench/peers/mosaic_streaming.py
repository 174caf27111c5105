"""MosaicML Streaming: MDS shards on the local disk, its own DataLoader with torch's workers."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from wv_bench.peers.crops import pil_crops
from wv_bench.peers.protocol import Epoch, Setup, image_files, serve


class _Images(StreamingDataset):  # type: ignore[misc] # ships no types
    def __init__(self, crops: Any, **options: Any) -> None:
        super().__init__(**options)
        self._crops = crops

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self._crops(sample["image"].convert("RGB")), sample["label"]


def write(setup: Setup, folder: Path) -> None:
    """Encoding `jpeg` keeps the file's bytes where PIL opened them from a file."""
    with MDSWriter(out=str(folder), columns={"image": "jpeg", "label": "int"}) as shards:
        for path, label in image_files(setup):
            with Image.open(path) as image:
                shards.write({"image": image, "label": label})


def open_loader(setup: Setup, data: Path | None) -> Epoch:
    """Its defaults, local shards, its shuffle."""
    images = _Images(pil_crops(setup), local=str(data), shuffle=True, batch_size=setup.batch_size)
    loader = StreamingDataLoader(
        images,
        batch_size=setup.batch_size,
        num_workers=setup.workers,
        drop_last=True,
        persistent_workers=True,
    )

    def epoch(_number: int) -> Iterator[int]:
        for pixels, _labels in loader:
            yield len(pixels)

    return epoch


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    packages = ("mosaicml-streaming", "torch", "torchvision", "pillow", "numpy")
    serve(given, packages, partial(open_loader, given), write=("mds", partial(write, given)))
