"""The perceptual hash on real photos: what was changed a little stays near, what is something else is far."""

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from wv_ingest.check import Accepted, CheckOptions, check_image
from wv_ingest.duplicates import NEAR_DISTANCE
from wv_ingest.phash import halves, phash_of

Change = Callable[[Image.Image], Image.Image]


def apart(a: int, b: int) -> tuple[int, int]:
    """Bits in which the coarse halves differ, and the fine ones."""
    coarse, fine = halves(a ^ b)
    assert coarse is not None
    assert fine is not None
    return coarse.bit_count(), fine.bit_count()


def near(a: int, b: int, distance: int = NEAR_DISTANCE) -> bool:
    coarse, fine = apart(a, b)
    return coarse <= distance and fine <= 2 * distance


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def cropped(image: Image.Image, fraction: float) -> Image.Image:
    """Without so much of its width and height, half of it on either side."""
    left, top = round(image.width * fraction / 2), round(image.height * fraction / 2)
    return image.crop((left, top, image.width - left, image.height - top))


def resized(image: Image.Image, longest_px: int) -> Image.Image:
    scale = longest_px / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


CHANGES: dict[str, tuple[Change, float]] = {
    "encoded anew at quality 50": (lambda image: as_jpeg(image, 50), 1.0),
    "longest side 128": (lambda image: resized(image, 128), 0.95),
    "longest side 1024": (lambda image: resized(image, 1024), 0.98),
    "stretched to 400 by 300": (lambda image: image.resize((400, 300), Image.Resampling.BICUBIC), 0.98),
    "cropped by 2%": (lambda image: cropped(image, 0.02), 0.95),
    "cropped by 5%": (lambda image: cropped(image, 0.05), 0.7),
    "15% brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.15), 0.98),
    "in greys": (lambda image: image.convert("L"), 1.0),
}
"""What is done to a photo, and of how many at least it is to be the same after; a little less than was measured."""


@pytest.fixture(scope="module")
def photos(test_data: Path) -> list[Image.Image]:
    """Every fourth photo."""
    images = [Image.open(path) for path in sorted((test_data / "photos").iterdir())[::4]]
    return [image if image.mode in ("L", "RGB") else image.convert("RGB") for image in images]


@pytest.fixture(scope="module")
def hashes(photos: list[Image.Image]) -> list[int]:
    found = [phash_of(image) for image in photos]
    assert None not in found, "every photo has structure"
    return [h for h in found if h is not None]


@pytest.mark.parametrize("change", CHANGES)
def test_a_photo_that_was_changed_a_little_is_the_same(
    photos: list[Image.Image], hashes: list[int], change: str
) -> None:
    made, least = CHANGES[change]
    same = [near(a, b) for a, b in zip(hashes, (phash_of(made(p)) for p in photos), strict=True) if b is not None]
    assert len(same) == len(photos)
    assert np.mean(same) >= least


def test_different_photos_and_mirrored_ones_are_not_the_same(photos: list[Image.Image], hashes: list[int]) -> None:
    assert len(hashes) == 100
    assert not any(near(a, b, NEAR_DISTANCE + 2) for a, b in combinations(hashes, 2))
    mirrored = [phash_of(ImageOps.mirror(photo)) for photo in photos]
    assert not any(near(a, b) for a, b in zip(hashes, mirrored, strict=True) if b is not None)


def test_a_photo_kept_as_it_is_and_one_made_smaller_have_near_hashes(test_data: Path) -> None:
    """The first is decoded at an eighth of its size, the second in full."""
    same = []
    for path in sorted((test_data / "photos").iterdir())[::8]:
        kept, smaller = (check_image(path.read_bytes(), CheckOptions(size_px=size)) for size in (0, 200))
        assert isinstance(kept, Accepted)
        assert isinstance(smaller, Accepted)
        assert kept.phash is not None
        assert smaller.phash is not None
        same.append(near(kept.phash, smaller.phash))
    assert np.mean(same) >= 0.95


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_picture_without_structure_has_no_hash(mode: str) -> None:
    """A blank page, gradients, a line: they would all resemble one another."""
    line = Image.new("L", (300, 200), 255)
    line.paste(0, (0, 100, 300, 102))
    gradient = Image.linear_gradient("L")
    for picture in (Image.new("L", (300, 200), 255), gradient, gradient.rotate(90), Image.radial_gradient("L"), line):
        assert phash_of(picture.convert(mode)) is None


def test_the_hash_is_the_same_on_every_machine() -> None:
    """Integers only: this very number, wherever it is computed."""
    rows, columns = np.mgrid[0:128, 0:128].astype(np.int64)
    levels = (rows * rows * 7 + columns * columns * 5 + rows * columns * 3) // 64 % 256
    assert phash_of(Image.fromarray(levels.astype(np.uint8))) == 0x416BDFD7E97A954A54A5052C14
