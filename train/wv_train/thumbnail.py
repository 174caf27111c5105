"""A sample as a small JPEG, for the pages that show pictures."""

import io

from PIL import Image

from wv_shards import CorruptDataError, Dataset

_QUALITY = 82


def thumbnail(dataset: Dataset, ordinal: int, size_px: int) -> bytes | None:
    """A JPEG that fits into a square of `size_px`; None if the sample's bytes are damaged or no image."""
    try:
        image: Image.Image = Image.open(io.BytesIO(dataset.read(ordinal)))
        image.draft("RGB", (size_px, size_px))
        image = image.convert("RGB")
        image.thumbnail((size_px, size_px))
    except (CorruptDataError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
