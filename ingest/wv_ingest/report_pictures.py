"""Small pictures for a report, as JPEG files. A sample that can't be read or shown has none, and nothing stops."""

import io
from collections.abc import Iterable

from PIL import Image

from wv_shards import FLAG_BAD, CorruptDataError, Dataset

THUMBNAIL_PX = 144
_MOST_PIXELS = 100_000_000
_UNSHOWN = (CorruptDataError, OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError)


def thumbnails(dataset: Dataset, ordinals: Iterable[int]) -> dict[int, bytes]:
    """A JPEG of THUMBNAIL_PX at most for every sample that can be shown, by ordinal."""
    made = {}
    for ordinal in sorted(ordinals):
        record = dataset.index[ordinal]
        if int(record["flags"]) & FLAG_BAD or int(record["width"]) * int(record["height"]) > _MOST_PIXELS:
            continue
        try:
            made[ordinal] = thumbnail(dataset.read(ordinal))
        except _UNSHOWN:
            continue
    return made


def thumbnail(data: bytes) -> bytes:
    """An image file made small.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError, MemoryError: it can't be decoded.
    """
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
        small = opened.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
