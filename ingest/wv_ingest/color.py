"""From whatever Pillow decodes to 8-bit RGB in sRGB, transparency laid on white.

It changes colours only: no sides, no orientation.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
"""Colour space that a profile must have, as ICC writes it, to belong to an image of this mode."""
_SAME_LEVELS = 3
"""A profile that moves no colour by more than this is sRGB in effect, whatever it is called."""
_SRGB = ImageCms.createProfile("sRGB")


def flatten(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or CMYK, its colours still those of its profile.

    16-bit grey keeps its upper eight bits.

    Raises:
        ValueError: the mode has no 8-bit form.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.int64)  # (H, W)
        return Image.fromarray((levels.clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.mode in ("F", "LAB", "HSV"):
        raise ValueError(f"no way from mode {image.mode} to RGB")
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in _SPACES else image.convert("RGB")


def follow_profile(flat: Image.Image, icc: bytes | None) -> Image.Image:
    """A flat image in RGB, in sRGB.

    A profile is followed if it is whole and of the image's colour space, else ignored, as browsers do.
    """
    transform = to_srgb(icc, flat.mode) if icc else None
    if transform is not None:
        return _apply(flat, transform)
    return flat if flat.mode == "RGB" else flat.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    moved = ImageCms.applyTransform(image, transform)
    assert moved is not None  # it is None only when told to work in place
    return moved


@lru_cache(maxsize=64)
def to_srgb(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Transform of images of `mode` (L, RGB, CMYK) with this profile to sRGB.

    None where it would change nothing, or the profile is broken or of another colour space.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(profile, _SRGB, mode, "RGB")
        if mode == "CMYK":
            return transform
        probe = _probe(mode)
        moved = _apply(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    before, after = (np.asarray(part.convert("RGB")).astype(np.int64) for part in (probe, moved))  # (1, P, 3)
    return transform if int(np.abs(before - after).max()) > _SAME_LEVELS else None


def _probe(mode: str) -> Image.Image:
    """One row of colours that covers the space: all greys, or a 6×6×6 cube."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 6).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)  # (6, 6, 6, 3)
    return Image.fromarray(cube.reshape(1, -1, 3))
