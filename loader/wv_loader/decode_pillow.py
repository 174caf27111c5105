"""The portable decode engine: Pillow, or Pillow-SIMD in its place. Every format that Pillow reads.

Thread-safe: Pillow drops the GIL while it decodes and resizes.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

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

_ORIENTATION_TAG = 0x0112
_DRAFT_GAP = 2
"""Resolution of a scaled JPEG over the output's, at least: libjpeg's own scaling is a coarser filter than ours."""


class PillowEngine:
    """Decodes with Pillow, scaled by the JPEG's own DCT where the crop is much larger than the output, and resizes with
    Pillow's antialiased bilinear filter."""

    name = "pillow"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    @property
    def description(self) -> str:
        """Name and version, for a person."""
        return f"Pillow-SIMD {PIL.__version__}" if "post" in PIL.__version__ else f"Pillow {PIL.__version__}"

    def decode(
        self,
        data: Sequence[bytes | memoryview | Failure | None],
        widths: NDArray[np.int64],
        heights: NDArray[np.int64],
        crops: Crops,
        out: NDArray[np.uint8],
    ) -> list[Failure | None]:
        """Decode some samples of a batch; see `Engine.decode`."""
        failures: list[Failure | None] = []
        for i, source in enumerate(data):
            failure = source if isinstance(source, Failure) else None
            try:
                if source is None or isinstance(source, Failure):
                    out[i] = 0
                else:
                    size = (int(widths[i]), int(heights[i]))
                    out[i] = _decode_one(source, size, crops.boxes[i], bool(crops.flips[i]), out.shape[1])
            except (*_DECODE_ERRORS, *_BOMB_ERRORS):
                out[i] = 0
                failure = Failure.DECODE
            failures.append(failure)
        return failures


def upright_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height of a picture that no index describes, turned as `decode` turns it; None where it is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turn = _orientation(image)
            width, height = image.size
    except (*_DECODE_ERRORS, *_BOMB_ERRORS):
        return None
    return (height, width) if turn is not None and turn.sides_swapped else (width, height)


def _decode_one(
    data: bytes | memoryview, size: tuple[int, int], box: NDArray[np.float64], flip: bool, size_px: int
) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        turn = _orientation(image)
        if turn is not None:  # box and size are of the upright picture: back to the one that is stored
            box = turn.stored(box, size)
            size = size[::-1] if turn.sides_swapped else size
        left, top, right, bottom = box.tolist()
        if image.format in ("JPEG", "MPO"):
            # The smallest of 1/1, 1/2, 1/4, 1/8 that leaves the filter a good part of the reduction to do.
            wanted = _DRAFT_GAP * size_px
            image.draft("RGB", (_ceil(size[0] * wanted, right - left), _ceil(size[1] * wanted, bottom - top)))
        x_scale, y_scale = image.width / size[0], image.height / size[1]
        region = (left * x_scale, top * y_scale, min(right * x_scale, image.width), min(bottom * y_scale, image.height))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        shown = rgb.resize((size_px, size_px), Image.Resampling.BILINEAR, box=region)
    if turn is not None:
        shown = shown.transpose(turn.method)  # a square stays one
    pixels = np.asarray(shown)  # (S, S, 3) uint8
    return pixels[:, ::-1] if flip else pixels


@dataclass(frozen=True, slots=True)
class _Turn:
    """What makes a stored picture upright."""

    method: Image.Transpose
    sides_swapped: bool
    from_right: bool
    """Of the upright picture x runs against the stored axis that it lies on; `from_bottom`: y does."""
    from_bottom: bool

    def stored(self, box: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """A box of the upright picture, which has this size, in the stored one."""
        left, top, right, bottom = box.tolist()
        if self.from_right:
            left, right = size[0] - right, size[0] - left
        if self.from_bottom:
            top, bottom = size[1] - bottom, size[1] - top
        return np.array((top, left, bottom, right) if self.sides_swapped else (left, top, right, bottom))


_TURNS = {
    2: _Turn(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: _Turn(Image.Transpose.ROTATE_180, False, True, True),
    4: _Turn(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: _Turn(Image.Transpose.TRANSPOSE, True, False, False),
    6: _Turn(Image.Transpose.ROTATE_270, True, True, False),
    7: _Turn(Image.Transpose.TRANSVERSE, True, True, True),
    8: _Turn(Image.Transpose.ROTATE_90, True, False, True),
}
"""By EXIF orientation."""


def _orientation(image: Image.Image) -> _Turn | None:
    """How a picture that was not packed by us has to be turned; ours are upright."""
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return None
    if image.format not in ("JPEG", "MPO"):
        image.load()  # EXIF may come behind the pixels, and a TIFF is turned by Pillow itself
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF breaks in any way, and the picture is still good
        return None


def _ceil(numerator: float, denominator: float) -> int:
    return int(-(-numerator // denominator))
