"""FFCV: a .beton file, its Loader with threads and code compiled by numba.

FFCV builds from source only, against OpenCV and libturbojpeg; where these are not there it can't be installed.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from torchvision.datasets import ImageFolder

from wv_bench.peers.protocol import CROP_RATIO, CROP_SCALE, FLIP, Epoch, Setup, serve

_JPEG_QUALITY = 90


class _Rgb:
    """ImageFolder's images as RGB arrays: what FFCV's writer takes."""

    def __init__(self, folder: str) -> None:
        self._images = ImageFolder(folder)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, at: int) -> tuple[Any, int]:
        image, label = self._images[at]
        return image, label


def write(setup: Setup, folder: Path) -> None:
    """All images as JPEG, as the others have them. FFCV encodes them anew, at the quality of its ImageNet example."""
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=_JPEG_QUALITY), "label": IntField()}
    writer = DatasetWriter(str(folder / "images.beton"), fields, num_workers=setup.workers)
    writer.from_indexed_dataset(_Rgb(setup.folder), shuffle_indices=True)


def open_loader(setup: Setup, data: Path | None) -> Epoch:
    """As FFCV's ImageNet example: fused decode and crop, random order, the file in the page cache."""
    assert data is not None
    size = (setup.size_px, setup.size_px)
    loader = Loader(
        str(data / "images.beton"),
        batch_size=setup.batch_size,
        num_workers=setup.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder(size, scale=CROP_SCALE, ratio=CROP_RATIO),
                RandomHorizontalFlip(FLIP),
                ToTensor(),
                ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )

    def epoch(_number: int) -> Iterator[int]:
        for images, _labels in loader:
            assert isinstance(images, torch.Tensor)
            yield len(images)

    return epoch


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    packages = ("ffcv", "numba", "torch")
    serve(given, packages, partial(open_loader, given), write=("beton", partial(write, given)))
