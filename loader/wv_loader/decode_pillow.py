"""The portable decode engine: Pillow, or Pillow-SIMD in its place. Every format that Pillow reads.

Thread-safe: Pillow drops the GIL while it decodes and resizes.
"""

import io
import struct
from collections.abc import Sequence

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from wv_loader.augment import Crops
from wv_loader.read import Failure

# What Pillow's plugins raise for files that are not what they claim to be.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
)
_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)

_DRAFT_GAP = 2
"""Resolution of a scaled JPEG over the output's, at least: libjpeg's own scaling is a coarser filter than ours."""


class PillowEngine:
    """Decodes with Pillow, scaled by the JPEG's own DCT where the crop is much larger than the output, and resizes with
    Pillow's antialiased bilinear filter."""

    name = "pillow"

    @property
    def description(self) -> str:
        """Name and version, for a person."""
        return f"Pillow-SIMD {PIL.__version__}" if "post" in PIL.__version__ else f"Pillow {PIL.__version__}"

    def decode(
        self,
        data: Sequence[bytes | Failure | None],
        widths: NDArray[np.int64],
        heights: NDArray[np.int64],
        crops: Crops,
        out: NDArray[np.uint8],
    ) -> list[Failure | None]:
        """Decode some samples of a batch.

        Args:
            data: n image files; what is not bytes is passed over and its slot zeroed.
            widths, heights: (n,) of the stored images as the index has them; the boxes refer to these.
            crops: n boxes and flips.
            out: (n, S, S, 3) uint8, written in place; slots without an image are zeroed.

        Returns:
            For each sample why it failed, or None.
        """
        failures: list[Failure | None] = []
        for i, source in enumerate(data):
            failure = source if isinstance(source, Failure) else None
            if isinstance(source, bytes):
                try:
                    size = (int(widths[i]), int(heights[i]))
                    out[i] = _decode_one(source, size, crops.boxes[i], bool(crops.flips[i]), out.shape[1])
                except (*_DECODE_ERRORS, *_BOMB_ERRORS):
                    failure = Failure.DECODE
            if failure is not None or source is None:
                out[i] = 0
            failures.append(failure)
        return failures


def _decode_one(
    data: bytes, size: tuple[int, int], box: NDArray[np.float64], flip: bool, size_px: int
) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        left, top, right, bottom = box.tolist()
        if image.format == "JPEG":
            # The smallest of 1/1, 1/2, 1/4, 1/8 that leaves the filter a good part of the reduction to do.
            wanted = _DRAFT_GAP * size_px
            image.draft("RGB", (_ceil(size[0] * wanted, right - left), _ceil(size[1] * wanted, bottom - top)))
        x_scale, y_scale = image.width / size[0], image.height / size[1]
        region = (left * x_scale, top * y_scale, min(right * x_scale, image.width), min(bottom * y_scale, image.height))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        shown = rgb.resize((size_px, size_px), Image.Resampling.BILINEAR, box=region)
    pixels = np.asarray(shown)  # (S, S, 3) uint8
    return pixels[:, ::-1] if flip else pixels


def _ceil(numerator: float, denominator: float) -> int:
    return int(-(-numerator // denominator))
