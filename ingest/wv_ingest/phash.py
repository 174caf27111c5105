"""A perceptual hash: 128 bits that stay nearly the same when a picture is rescaled, encoded anew or slightly cropped.

The picture in 32×32 grey levels, its two-dimensional DCT, and of the 128 lowest frequencies (without the mean) the
sign: 64 coarse ones, by which near-duplicates are searched, and 64 finer ones, which confirm what was found. After
Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010. Whether two pictures are the same
is decided in `duplicates`. Mirrored pictures are different ones.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HALF_BITS = 64
"""Bits of either half."""

_SIDE_PX = 32
_SAMPLES = 4
"""So many pixels a side stand for one of the 32×32; to read all of them costs five times as much."""
_FREQUENCIES = 16
_LEAST_LEVELS = 0.2
"""A frequency counts if it sways by so many grey levels or more; JPEG's noise stays below."""
_LEAST_FREQUENCIES = 32
"""Of the coarse half at least so many must count. All 400 photos and 50,000 CIFAR images have 42 or more; blank pages
and plain gradients, which would all resemble one another, have less."""

# Whole numbers below 2^53 throughout, so that the sums are exact on every machine, in whatever order they are added.
_COSINES: NDArray[np.float64] = np.round(
    (1 << 14) * np.cos(np.pi / _SIDE_PX * (np.arange(_SIDE_PX) + 0.5)[None, :] * np.arange(_FREQUENCIES)[:, None])
)
# A wave of amplitude 1 has the coefficient (2^14)² · 16²: the squared cosines of a side add up to 16.
_LEAST_COEFFICIENT = round(_LEAST_LEVELS * (1 << 28) * (_SIDE_PX // 2) ** 2)
_SUMS = np.add.outer(np.arange(_FREQUENCIES), np.arange(_FREQUENCIES))
_SKEWS = np.abs(np.subtract.outer(np.arange(_FREQUENCIES), np.arange(_FREQUENCIES)))
_LOWEST = np.argsort((_SUMS * _FREQUENCIES + _SKEWS).ravel(), kind="stable")[1 : 1 + 2 * HALF_BITS]
"""Places of the lowest frequencies, by their sum over both directions, the mean left out."""


def phash_of(image: Image.Image) -> int | None:
    """The hash of an image in mode L or RGB, as an unsigned 128-bit integer; None if it has too little structure.

    Similar pictures differ in few bits. The upper 64 bits are the coarse half, the lower 64 the fine one.
    """
    side = _SAMPLES * _SIDE_PX
    sampled = image.resize((side, side), Image.Resampling.NEAREST).convert("L").reduce(_SAMPLES)
    levels = np.asarray(sampled, dtype=np.float64)  # (32, 32)
    waves = (_COSINES @ levels @ _COSINES.T).ravel()[_LOWEST]  # (128,)
    if np.count_nonzero(np.abs(waves[:HALF_BITS]) >= _LEAST_COEFFICIENT) < _LEAST_FREQUENCIES:
        return None
    return int.from_bytes(np.packbits(waves > 0).tobytes(), "big")


def halves(phash: int | None) -> tuple[int | None, int | None]:
    """The coarse and the fine half of a hash, as two unsigned 64-bit integers."""
    return (None, None) if phash is None else (phash >> HALF_BITS, phash & ((1 << HALF_BITS) - 1))
