"""Pictures that lie in no data set, shown to a model as evaluation shows the samples of one. Reads no files."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wv_loader.augment import CENTRE, Augment, eval_crops
from wv_loader.decode_pillow import PillowEngine, upright_size
from wv_loader.read import Failure


def decode_pictures(
    files: Sequence[bytes],
    size_px: int,
    augment: Augment | None = None,
    crop_position: tuple[float, float] = CENTRE,
) -> tuple[NDArray[np.uint8], list[Failure | None]]:
    """Decode files with the engine `pillow`, cropped as a `Loader` with train=False crops; safe on several threads.

    Args:
        files: n image files in any format that Pillow reads; EXIF orientation is followed.
        size_px, augment, crop_position: as of `Loader`.

    Returns:
        (n, S, S, 3) uint8, zeros where a file is no picture; and for each file why it failed, or None.
    """
    sizes = [upright_size(file) for file in files]
    widths, heights = np.array([size or (1, 1) for size in sizes], dtype=np.int64).reshape(-1, 2).T
    crops = eval_crops(augment or Augment(), widths, heights, size_px, crop_position)
    out = np.empty((len(files), size_px, size_px, 3), dtype=np.uint8)
    seen = [file if size else Failure.DECODE for file, size in zip(files, sizes, strict=True)]
    return out, PillowEngine().decode(seen, widths, heights, crops, out)
