"""DALI on the CPU: readers.webdataset with the index files, decoding only the crop, its iterator for PyTorch."""

import sys
from collections.abc import Iterator
from typing import Any

from nvidia.dali import fn, pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from nvidia.dali.types import DALIInterpType

from wv_bench.peers.protocol import CROP_RATIO, CROP_SCALE, FLIP, Epoch, Setup, serve

_QUEUE = 2
"""Batches that are made ahead: DALI's default."""


@pipeline_def  # type: ignore[untyped-decorator] # ships no types
def _pipeline(setup: Setup) -> Any:
    data, label = fn.readers.webdataset(
        paths=list(setup.tars),
        index_paths=[f"{tar.removesuffix('.tar')}.idx" for tar in setup.tars],
        ext=["jpg", "cls"],
        random_shuffle=True,
        initial_fill=1024,
        missing_component_behavior="error",
        name="reader",
    )
    # The decoder that reads only the rows of the crop; its fast options, as DALI's own training examples set them.
    region = fn.decoders.image_random_crop(
        data, random_area=list(CROP_SCALE), random_aspect_ratio=list(CROP_RATIO), use_fast_idct=True
    )
    resized = fn.resize(
        region, size=[setup.size_px, setup.size_px], interp_type=DALIInterpType.INTERP_LINEAR, antialias=True
    )
    # Labels are text of one or more bytes: padded, they make a tensor.
    return fn.flip(resized, horizontal=fn.random.coin_flip(probability=FLIP)), fn.pad(label, fill_value=ord(" "))


def open_loader(setup: Setup) -> Epoch:
    """As many threads as cores, and a queue of two batches (DALI's default)."""
    pipeline = _pipeline(
        setup,
        batch_size=setup.batch_size,
        num_threads=setup.workers,
        device_id=None,
        seed=1,
        prefetch_queue_depth=_QUEUE,
    )
    loader = DALIGenericIterator([pipeline], ["images", "label"])  # without size: it never stops

    def epoch(number: int) -> Iterator[int]:
        if number:
            for _ in range(_QUEUE + 1):  # and one that the iterator has in hand
                next(loader)
            yield 0
        while True:
            yield len(next(loader)[0]["images"])

    return epoch


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    serve(given, ("nvidia-dali-cuda130", "torch"), lambda _data: open_loader(given))
