"""DALI's own reader before the operators of our dali-cpu pipeline: what our read stage costs, compared with DALI's.

The same tars, the same decoder and resize (decode_dali.py of wv_loader), windows that come as arrays. DALI shuffles by
itself, so a window is drawn for another image than it meets and is given in shares of the image; boxes are thus as
large as ours on average, less the two or three pixels around them that our filter reads.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from torch.utils.dlpack import from_dlpack

from wv_bench.peers.protocol import Epoch, Setup, serve
from wv_loader import Augment
from wv_loader.augment import train_crops
from wv_loader.decode_dali import crops_of

_QUEUE = 2
"""Batches that are made ahead: DALI's default."""
_WINDOWS = ("start", "shape", "roi_start", "roi_end")
_SIDES = (341, 256)
"""Width and height that boxes are drawn for; they are used as shares of the image."""


class _Windows:
    """Arrays for each batch in turn, over and over."""

    def __init__(self, setup: Setup) -> None:
        count = setup.batches * setup.batch_size
        widths, heights = (np.full(count, side, dtype=np.int64) for side in _SIDES)
        crops = train_crops(Augment(), widths, heights, seed=0, epoch=0, slots=np.arange(count))
        sizes = np.array(_SIDES[::-1])
        low, high = crops.boxes[:, 1::-1] / sizes, crops.boxes[:, 3:1:-1] / sizes  # (n, 2) y, x in shares
        begin, end = np.zeros_like(low), np.ones_like(low)
        begin[crops.flips, 1], end[crops.flips, 1] = 1.0, 0.0
        columns = zip(_WINDOWS, (low, high - low, begin, end), strict=True)
        self._arrays: dict[str, NDArray[np.float32]] = {
            name: np.ascontiguousarray(column, dtype=np.float32) for name, column in columns
        }
        self._batch_size, self._count = setup.batch_size, count
        self._at = dict.fromkeys(_WINDOWS, 0)

    def source(self, name: str) -> Callable[[], NDArray[np.float32]]:
        """What gives the (B, 2) array of the next batch."""

        def take() -> NDArray[np.float32]:
            first = self._at[name]
            self._at[name] = (first + self._batch_size) % self._count
            return self._arrays[name][first : first + self._batch_size]

        return take


def open_loader(setup: Setup) -> Epoch:
    """As many threads as cores, and a queue of two batches (DALI's default)."""
    windows = _Windows(setup)

    @pipeline_def(  # type: ignore[untyped-decorator] # ships no types
        batch_size=setup.batch_size,
        num_threads=setup.workers,
        device_id=None,
        seed=1,
        prefetch_queue_depth=_QUEUE,
        exec_dynamic=True,
    )
    def graph() -> Any:
        read: Any = fn.readers.webdataset(
            paths=list(setup.tars),
            index_paths=[f"{tar.removesuffix('.tar')}.idx" for tar in setup.tars],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=1024,
            missing_component_behavior="error",
        )
        drawn = {
            name: fn.external_source(source=windows.source(name), batch=True, dtype=types.FLOAT, ndim=1)
            for name in _WINDOWS
        }
        resized = crops_of(read[0], drawn, setup.size_px, relative=True)
        # Labels are text of one or more bytes: padded, they make a tensor.
        return resized, fn.pad(read[1], fill_value=ord(" "))

    pipeline = graph()
    pipeline.build()

    def epoch(number: int) -> Iterator[int]:
        if number:
            for _ in range(_QUEUE):
                pipeline.run()
            yield 0
        while True:
            images, _labels = pipeline.run()
            yield len(from_dlpack(images.as_tensor()))

    return epoch


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    serve(given, ("nvidia-dali-cuda130", "torch"), lambda _data: open_loader(given))
