"""Types of the kernel in `_turbo.c`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

libjpeg_turbo: int

def decode(
    data: Sequence[bytes | memoryview | None],
    sizes: NDArray[np.int64],
    boxes: NDArray[np.float64],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    outcomes: NDArray[np.uint8],
    size_px: int,
) -> None: ...
def use_vectors(on: bool) -> bool: ...
