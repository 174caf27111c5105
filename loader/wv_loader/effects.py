"""Changes the pixels of cropped images: RandAugment, colour jitter, erasing, as drawn by augment.py.

The same code for every engine, on uint8 pixels, with Pillow's operations as torchvision has them for Pillow images.
Only operations that drop the GIL are used: Pillow's `blend` and `merge` do not, and torch's would start threads of
their own in every decode thread. It draws nothing.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from wv_loader.augment import MAGNITUDE_MAX, Effects, Jitter, Operation

_LEVELS = np.arange(256)
_GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)
"""Red, green and blue in Pillow's grey."""


def apply_effects(effects: Effects, pixels: NDArray[np.uint8], shown: Sequence[bool]) -> None:
    """Apply effects in place.

    Args:
        effects: of n images.
        pixels: (n, S, S, 3) uint8.
        shown: n; False where there is no image: the slot stays as it is.
    """
    for slot in np.flatnonzero(shown).tolist():
        _apply_one(effects, slot, pixels[slot])


def _apply_one(effects: Effects, slot: int, pixels: NDArray[np.uint8]) -> None:
    operations, order = effects.operations[slot].tolist(), effects.jitter_order[slot].tolist()
    if operations or order:
        image = Image.fromarray(pixels)
        for operation, sign in zip(operations, effects.signs[slot].tolist(), strict=True):
            image = operate(image, Operation(operation), effects.magnitude, sign)
        for step in order:
            image = JITTER[Jitter(step)](image, float(effects.jitter_factors[slot, step]))
        pixels[:] = np.asarray(image)
    left, top, right, bottom = effects.erased[slot].tolist()
    pixels[top:bottom, left:right] = effects.erase_color


def operate(image: Image.Image, operation: Operation, magnitude: int, sign: int) -> Image.Image:
    """One of RandAugment's operations, with torchvision's ranges; geometry by the nearest pixel, black outside.

    Args:
        image: RGB.
        operation: which.
        magnitude: 0 … MAGNITUDE_MAX.
        sign: −1 or 1; ignored by operations of one direction.
    """
    share = magnitude / MAGNITUDE_MAX
    match operation:
        case Operation.SHEAR_X:
            return _affine(image, (1, sign * 0.3 * share, 0, 0, 1, 0))
        case Operation.SHEAR_Y:
            return _affine(image, (1, 0, 0, sign * 0.3 * share, 1, 0))
        case Operation.TRANSLATE_X:
            return _affine(image, (1, 0, -sign * _shift(image.width, magnitude), 0, 1, 0))
        case Operation.TRANSLATE_Y:
            return _affine(image, (1, 0, 0, 0, 1, -sign * _shift(image.height, magnitude)))
        case Operation.ROTATE:
            return image.rotate(sign * 30.0 * share, Image.Resampling.NEAREST)
        case Operation.BRIGHTNESS:
            return adjust_brightness(image, 1.0 + sign * 0.9 * share)
        case Operation.COLOR:
            return adjust_saturation(image, 1.0 + sign * 0.9 * share)
        case Operation.CONTRAST:
            return adjust_contrast(image, 1.0 + sign * 0.9 * share)
        case Operation.SHARPNESS:
            return _adjust_sharpness(image, 1.0 + sign * 0.9 * share)
        case Operation.POSTERIZE:
            # 8 bits minus up to 4, rounded; no magnitude lies half way.
            return ImageOps.posterize(image, 8 - (8 * magnitude + MAGNITUDE_MAX) // (2 * MAGNITUDE_MAX))
        case Operation.SOLARIZE:
            # Levels from the threshold on, rounded up as levels are whole.
            return ImageOps.solarize(image, -(-255 * (MAGNITUDE_MAX - magnitude) // MAGNITUDE_MAX))
        case Operation.AUTO_CONTRAST:
            return ImageOps.autocontrast(image)
        case Operation.EQUALIZE:
            return ImageOps.equalize(image)
        case Operation.IDENTITY:
            return image


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Levels times `factor`."""
    return image.point(_blended_levels(0, factor) * 3)


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Distances from the image's mean grey times `factor`."""
    histogram = np.array(image.convert("L").histogram())
    mean = int(float(histogram @ _LEVELS) / (image.width * image.height) + 0.5)
    return image.point(_blended_levels(mean, factor) * 3)


def adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    """Distances from the pixel's own grey times `factor`, within one level of torchvision, whose grey is rounded.

    A third faster than what is exact: grey, then blend.
    """
    red, green, blue = (share * (1.0 - factor) for share in _GREY)
    down = -0.5  # Pillow rounds here, `blend` cuts off
    matrix = (
        *(red + factor, green, blue, down),
        *(red, green + factor, blue, down),
        *(red, green, blue + factor, down),
    )
    return image.convert("RGB", matrix)


def adjust_hue(image: Image.Image, factor: float) -> Image.Image:
    """Colours turned by `factor` of the circle, in steps of 1/255."""
    turned = (_LEVELS + int(factor * 255)) % 256
    same = _LEVELS.tolist()
    return image.convert("HSV").point(turned.tolist() + same + same).convert("RGB")


JITTER: dict[Jitter, Callable[[Image.Image, float], Image.Image]] = {
    Jitter.BRIGHTNESS: adjust_brightness,
    Jitter.CONTRAST: adjust_contrast,
    Jitter.SATURATION: adjust_saturation,
    Jitter.HUE: adjust_hue,
}


def _adjust_sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Distances from the smoothed image times `factor`: Pillow's `blend` without the GIL."""
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH)).astype(np.float32)
    sharp = np.asarray(image).astype(np.float32)
    sharp -= smooth
    sharp *= np.float32(factor)
    sharp += smooth
    np.clip(sharp, 0, 255, out=sharp)
    return Image.fromarray(sharp.astype(np.uint8))


def _affine(image: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _shift(side: int, magnitude: int) -> int:
    """Whole pixels, at most 150/331 of a side."""
    return 150 * side * magnitude // (331 * MAGNITUDE_MAX)


def _blended_levels(base: int, factor: float) -> list[int]:
    """(256,) base + factor · (level − base), cut off and rounded down as Pillow's `blend` does it."""
    levels = np.float32(base) + np.float32(factor) * (_LEVELS - base).astype(np.float32)
    blended: list[int] = np.clip(levels, 0, 255).astype(np.uint8).tolist()
    return blended
