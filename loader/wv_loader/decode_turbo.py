"""The fastest engine on a CPU: libjpeg-turbo decodes what a crop needs, straight into the batch (`_turbo.c`).

Its pixels are Pillow's to within a level or two. Whatever the kernel does not take (other formats, CMYK, pictures that
EXIF turns, files that end early) is Pillow's to decode or to refuse. What lies behind a crop is not looked at.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wv_loader import _turbo
from wv_loader.augment import Crops
from wv_loader.decode_pillow import PillowEngine
from wv_loader.read import Failure


class TurboEngine:
    """Region decode, scaled decode and an antialiasing resize in C, many images to a call."""

    name = "turbo"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        self._pillow = PillowEngine()

    @property
    def description(self) -> str:
        """Libraries and versions, for a person."""
        major, minor = divmod(_turbo.libjpeg_turbo // 1000, 1000)
        number = f"{major}.{minor}.{_turbo.libjpeg_turbo % 1000}"
        return f"libjpeg-turbo {number}, else {self._pillow.description}"

    def decode(
        self,
        data: Sequence[bytes | memoryview | Failure | None],
        widths: NDArray[np.int64],
        heights: NDArray[np.int64],
        crops: Crops,
        out: NDArray[np.uint8],
    ) -> list[Failure | None]:
        """Decode some samples of a batch; see `Engine.decode`."""
        failures = [item if isinstance(item, Failure) else None for item in data]
        files = [None if isinstance(item, Failure) else item for item in data]
        asks_pillow = np.zeros(len(files), dtype=np.uint8)
        sizes = np.stack([widths, heights], axis=1)
        _turbo.decode(files, sizes, np.ascontiguousarray(crops.boxes), crops.flips, out, asks_pillow, out.shape[1])
        for i in np.flatnonzero(asks_pillow).tolist():
            one = slice(i, i + 1)
            crop = Crops(boxes=crops.boxes[one], flips=crops.flips[one])
            failures[i] = self._pillow.decode(files[one], widths[one], heights[one], crop, out[one])[0]
        for i, item in enumerate(files):
            if item is None:
                out[i] = 0
        return failures
