"""From the boxes of crops to what a region decoder and a resize with fractional borders are told. Knows no decoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_loader.augment import Crops


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Of n images; y before x, C-contiguous."""

    start: NDArray[np.int32]
    """(n, 2) first pixel of the region that is decoded."""
    shape: NDArray[np.int32]
    """(n, 2) pixels of the region."""
    roi_start: NDArray[np.float32]
    """(n, 2) where the output begins, within the region; behind `roi_end` in x where it is mirrored."""
    roi_end: NDArray[np.float32]
    """(n, 2)"""


def windows_of(
    widths: NDArray[np.int64], heights: NDArray[np.int64], crops: Crops, size_px: int, *, region: bool
) -> Windows:
    """The regions that some crops need: their boxes, and as much around them as the resize's filter reaches.

    Args:
        widths, heights: (n,) of the images.
        crops: n boxes and flips.
        size_px: S, of the output.
        region: False: whole images.
    """
    low, high = crops.boxes[:, 1::-1], crops.boxes[:, 3:1:-1]  # (n, 2) y, x
    sizes = np.stack([heights, widths], axis=1)
    first, last = np.zeros_like(sizes), sizes
    if region:
        # An antialiased linear filter reaches half an output pixel's width; float32 borders may round a pixel further.
        reach = np.ceil(np.maximum((high - low) / size_px, 1.0) / 2).astype(np.int64) + 1
        first = np.maximum(np.floor(low).astype(np.int64) - reach, 0)
        last = np.minimum(np.ceil(high).astype(np.int64) + reach, sizes)
    start, end = low - first, np.minimum(high, sizes) - first
    flips = crops.flips
    start[flips, 1], end[flips, 1] = end[flips, 1], start[flips, 1]
    return Windows(
        start=np.ascontiguousarray(first, dtype=np.int32),
        shape=np.ascontiguousarray(last - first, dtype=np.int32),
        roi_start=np.ascontiguousarray(start, dtype=np.float32),
        roi_end=np.ascontiguousarray(end, dtype=np.float32),
    )
