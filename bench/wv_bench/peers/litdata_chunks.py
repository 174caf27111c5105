"""LitData: chunks written by its `optimize`, read by its StreamingDataset and StreamingDataLoader."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata
from PIL import Image

from wv_bench.peers.crops import tensor_crops
from wv_bench.peers.protocol import Epoch, Setup, image_files, serve


class _Images(litdata.StreamingDataset):  # type: ignore[misc] # ships no types
    def __init__(self, crops: Any, **options: Any) -> None:
        super().__init__(**options)
        self._crops = crops

    def __getitem__(self, index: Any) -> Any:
        # LitData decodes JPEG by torchvision, to a tensor (3, H, W).
        sample = super().__getitem__(index)
        image = sample["image"]
        return self._crops(image if len(image) == 3 else image[:1].expand(3, -1, -1)), sample["label"]


def _sample(item: tuple[str, int]) -> dict[str, Any]:
    return {"image": Image.open(item[0]), "label": item[1]}


def write(setup: Setup, folder: Path) -> None:
    """Chunks of 64 MB as in its documentation's ImageNet example; the files' bytes are kept."""
    litdata.optimize(
        fn=_sample,
        inputs=[(str(path), label) for path, label in image_files(setup)],
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=setup.workers,
    )


def open_loader(setup: Setup, data: Path | None) -> Epoch:
    """Its loader with torch's workers, shuffled."""
    images = _Images(tensor_crops(setup), input_dir=str(data), shuffle=True, drop_last=True)
    loader = litdata.StreamingDataLoader(
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
    packages = ("litdata", "torch", "torchvision", "pillow")
    serve(given, packages, partial(open_loader, given), write=("chunks", partial(write, given)))
