"""A perceptual hash: 64 bits that stay nearly the same when a picture is rescaled, encoded anew or slightly retouched.

The picture in 32×32 grey levels, its two-dimensional DCT, and of the 64 lowest frequencies (without the mean) which
are above their median. After Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
"""

import numpy as np
from PIL import Image

_SIDE_PX = 32
_FREQUENCIES = 9
_BITS = 64
# Whole numbers below 2^53 throughout, so that the sums are exact on every machine, in whatever order they are added.
_COSINES = np.round(
    (1 << 14) * np.cos(np.pi / _SIDE_PX * (np.arange(_SIDE_PX) + 0.5)[None, :] * np.arange(_FREQUENCIES)[:, None])
)


def phash_of(image: Image.Image) -> int:
    """The hash of an image in mode L or RGB, as an unsigned 64-bit integer; similar pictures differ in few bits."""
    small = image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX).convert("L")
    levels = np.asarray(small, dtype=np.float64)  # (32, 32)
    waves = (_COSINES @ levels @ _COSINES.T).ravel()[1 : 1 + _BITS]  # (64,)
    middle = np.sort(waves)[_BITS // 2]
    return int.from_bytes(np.packbits(waves > middle).tobytes(), "big")
