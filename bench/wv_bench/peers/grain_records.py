"""Grain: ArrayRecord files with random access, its Dataset API, decoded in its worker processes."""

import io
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from wv_bench.peers.crops import pil_crops
from wv_bench.peers.protocol import Epoch, Setup, image_files, serve

_BUFFER = 2
"""Batches that a worker may have ready."""


class _Crops(grain.transforms.Map):  # type: ignore[misc] # ships no types
    def __init__(self, setup: Setup) -> None:
        self._crops = pil_crops(setup)

    def map(self, element: bytes) -> Any:
        with Image.open(io.BytesIO(element[4:])) as image:
            return self._crops(image.convert("RGB")).numpy(), np.int32(int.from_bytes(element[:4], "little"))


def write(setup: Setup, folder: Path) -> None:
    """group_size:1, as Grain's documentation wants it for random access. A record: label (4 bytes), JPEG."""
    writer = ArrayRecordWriter(str(folder / "images.array_record"), "group_size:1")
    for path, label in image_files(setup):
        writer.write(label.to_bytes(4, "little") + path.read_bytes())
    writer.close()


def open_loader(setup: Setup, data: Path | None) -> Epoch:
    """Worker processes, as many as cores, a thread in each; batches are made in the workers and come by shared memory.

    Faster here than threads in one process, and than batches read ahead whole (`batch` before `to_iter_dataset`).
    One iterator over all epochs (`repeat`): a new one would start its processes again.
    """
    assert data is not None
    images = (
        grain.MapDataset.source(grain.sources.ArrayRecordDataSource(str(data / "images.array_record")))
        .seed(0)
        .shuffle()
        .repeat()
        .map(_Crops(setup))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=setup.batch_size))
        .batch(setup.batch_size, drop_remainder=True)
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=setup.workers, per_worker_buffer_size=_BUFFER))
    )
    batches = iter(images)

    def epoch(number: int) -> Iterator[int]:
        if number:
            # Beside its buffer a worker has a batch in hand, and images of another read ahead.
            for _ in range(setup.workers * (_BUFFER + 2)):
                next(batches)
            yield 0
        for pixels, _labels in batches:
            yield len(pixels)

    return epoch


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    packages = ("grain", "array-record", "torchvision", "pillow")
    serve(given, packages, partial(open_loader, given), write=("array_record", partial(write, given)))
