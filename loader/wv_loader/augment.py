"""What happens to each image: its region, mirroring, colours, operations; drawn from the plan's randomness.

Every engine is given the same boxes, so all of them show the same region of the same image; what changes pixels after
that is the same code for all (effects.py). It touches no pixels itself.
"""

from dataclasses import dataclass, replace
from decimal import Context, Decimal
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_loader.checks import number, refuse, several, whole
from wv_loader.errors import OptionError
from wv_shards import combine

_TRIES = 10
_TAG = 0x41554747  # keeps these draws apart from the plan's
_RATIO_KNOTS = 257
_ERASE_SCALE = (0.02, 0.33)
_ERASE_RATIO = (0.3, 3.3)
_MOST_RATIO = 1000.0
_MOST_JITTER = 1000.0
_MOST_OPERATIONS = 100
_FACTORS = ("brightness", "contrast", "saturation")
MAGNITUDE_MAX = 30
"""RandAugment's strongest setting."""
CENTRE = (0.5, 0.5)
"""Position of evaluation's single crop: see `eval_crops`."""


class Jitter(IntEnum):
    """Steps of the colour jitter."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3


class Operation(IntEnum):
    """RandAugment's operations: torchvision's list, in its order."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTO_CONTRAST = 12
    EQUALIZE = 13


class _Draw(IntEnum):
    AREA = 0
    RATIO = 1
    X = 2
    Y = 3
    FLIP = 4
    OPERATION = 5
    SIGN = 6
    ORDER = 7
    FACTOR = 8
    ERASE = 9
    ERASE_AREA = 10
    ERASE_RATIO = 11
    ERASE_X = 12
    ERASE_Y = 13


_CROP_DRAWS = (_Draw.AREA, _Draw.RATIO, _Draw.X, _Draw.Y)
_ERASE_DRAWS = (_Draw.ERASE_AREA, _Draw.ERASE_RATIO, _Draw.ERASE_X, _Draw.ERASE_Y)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Training crops after RandomResizedCrop (Szegedy et al., "Going deeper with convolutions", 2014), effects on the
    cropped image, and the single centre crop of evaluation.

    Effects are off unless asked for; they come in this order: RandAugment, colour jitter, erasing. All of them are of
    training only.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a training crop shows."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a training crop, drawn evenly in its logarithm."""
    flip: float = 0.5
    """Probability of mirroring left and right in training."""
    eval_crop_fraction: float = 0.875
    """Evaluation: the shorter side is resized to size_px / this, then the centre is cut out."""
    brightness: float = 0.0
    """Colour jitter as torchvision's ColorJitter: the factor is drawn from 1 − this … 1 + this, not below 0."""
    contrast: float = 0.0
    """The same for the contrast: how far pixels are from the image's mean grey."""
    saturation: float = 0.0
    """The same for the saturation: how far pixels are from their own grey."""
    hue: float = 0.0
    """Turns of the colour circle, drawn from − this … + this; at most 0.5."""
    randaugment_operations: int = 0
    """Operations on each image (Cubuk et al., "RandAugment", 2019), drawn from torchvision's list of 14."""
    randaugment_magnitude: int = 9
    """Strength of all operations, 0 … 30."""
    erase: float = 0.0
    """Probability of filling a box of 2 … 33% of the area (Zhong et al., "Random Erasing Data Augmentation", 2017)."""
    erase_color: tuple[int, int, int] = (124, 116, 104)
    """What the box is filled with; ImageNet's mean becomes 0 when it is normalised."""

    def __post_init__(self) -> None:
        colors = several(self.erase_color)
        if colors is None or len(colors) != 3:
            raise refuse("erase_color", "three levels 0 … 255", self.erase_color)
        checked = {
            "crop_scale": _range_of("crop_scale", self.crop_scale, 0.0, 1.0),
            "crop_ratio": _range_of("crop_ratio", self.crop_ratio, 0.0, _MOST_RATIO),
            **{name: number(name, getattr(self, name), 0.0, 1.0) for name in ("flip", "eval_crop_fraction", "erase")},
            **{name: number(name, getattr(self, name), 0.0, _MOST_JITTER) for name in _FACTORS},
            "hue": number("hue", self.hue, 0.0, 0.5),
            "randaugment_operations": whole("randaugment_operations", self.randaugment_operations, 0, _MOST_OPERATIONS),
            "randaugment_magnitude": whole("randaugment_magnitude", self.randaugment_magnitude, 0, MAGNITUDE_MAX),
            "erase_color": tuple(whole("erase_color", level, 0, 255) for level in colors),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not self.eval_crop_fraction:
            raise refuse("eval_crop_fraction", "a number above 0", self.eval_crop_fraction)

    @property
    def has_effects(self) -> bool:
        """Whether training images are changed after they were cropped and flipped."""
        return bool(self.randaugment_operations or self.erase or any(self.jitter))

    @property
    def jitter(self) -> tuple[float, float, float, float]:
        """Widths of the four ranges of the colour jitter, in the order of `Jitter`."""
        return self.brightness, self.contrast, self.saturation, self.hue


def _range_of(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    ends = several(value)
    if ends is None or len(ends) != 2:
        raise refuse(name, "two numbers", value)
    first, last = (number(name, end, low, high) for end in ends)
    if not low < first <= last:
        raise OptionError(f"{name} must be {low:g} < low <= high <= {high:g}, got {value}")
    return first, last


@dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """What to show of each image of a batch."""

    boxes: NDArray[np.float64]
    """(n, 4) left, top, right, bottom in pixels of the stored image; right and bottom exclusive."""
    flips: NDArray[np.bool_]
    """(n,) mirror left and right afterwards."""


def train_crops(
    augment: Augment,
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    slots: NDArray[np.int64],
) -> Crops:
    """Random crops.

    Args:
        augment: ranges to draw from.
        widths, heights: (n,) of the stored images.
        seed, epoch: of the plan.
        slots: (n,) place of each sample in the epoch, b·B + slot; decides the draw, alike on every number of ranks.
    """
    boxes, unfit = _drawn_boxes(
        augment.crop_scale, augment.crop_ratio, widths, heights, _CROP_DRAWS, seed=seed, epoch=epoch, slots=slots
    )
    if unfit.any():
        boxes[unfit] = _widest_centre(augment.crop_ratio, widths[unfit], heights[unfit])
    flips = _draw(seed, epoch, slots, _Draw.FLIP)[0] < augment.flip
    return Crops(boxes=boxes, flips=flips)


@dataclass(frozen=True, kw_only=True, slots=True)
class Effects:
    """What to do to the pixels of each image of a batch after it was cropped."""

    operations: NDArray[np.int64]
    """(n, k) RandAugment's, of `Operation`, in this order; k is 0 where it is off."""
    signs: NDArray[np.int64]
    """(n, k) −1 or 1, for the operations that have two directions."""
    magnitude: int
    """0 … MAGNITUDE_MAX, of all operations."""
    jitter_order: NDArray[np.int64]
    """(n, k) of `Jitter`, those that have a range, in the order in which they are done."""
    jitter_factors: NDArray[np.float64]
    """(n, 4) by `Jitter`."""
    erased: NDArray[np.int64]
    """(n, 4) left, top, right, bottom of the box to fill; empty where nothing is."""
    erase_color: tuple[int, int, int]

    def slots(self, wanted: slice) -> "Effects":
        """The same for some of the slots."""
        return replace(
            self,
            operations=self.operations[wanted],
            signs=self.signs[wanted],
            jitter_order=self.jitter_order[wanted],
            jitter_factors=self.jitter_factors[wanted],
            erased=self.erased[wanted],
        )


def train_effects(augment: Augment, size_px: int, *, seed: int, epoch: int, slots: NDArray[np.int64]) -> Effects | None:
    """Random effects; None where the options ask for none. Arguments as of `train_crops`."""
    if not augment.has_effects:
        return None
    count = augment.randaugment_operations
    n = len(slots)
    places = np.arange(count)
    operations = combine(seed, _TAG, epoch, _Draw.OPERATION, places, slots[:, None]) % np.uint64(len(Operation))
    signs = 1 - 2 * (combine(seed, _TAG, epoch, _Draw.SIGN, places, slots[:, None]) >> np.uint64(63)).astype(np.int64)
    steps = np.arange(len(Jitter))
    width = np.array(augment.jitter)
    centre = np.where(steps == Jitter.HUE, 0.0, 1.0)
    low = np.where(steps == Jitter.HUE, -width, np.maximum(centre - width, 0.0))
    factors = low + (centre + width - low) * _unit(combine(seed, _TAG, epoch, _Draw.FACTOR, steps, slots[:, None]))
    # A step without a range is left out: hue there and back is not the same picture.
    asked = np.flatnonzero(width)
    order = asked[np.argsort(combine(seed, _TAG, epoch, _Draw.ORDER, asked, slots[:, None]), axis=1, kind="stable")]
    erased = np.zeros((n, 4), dtype=np.int64)
    if augment.erase:
        sides = np.full(n, size_px, dtype=np.int64)
        boxes, unfit = _drawn_boxes(
            _ERASE_SCALE, _ERASE_RATIO, sides, sides, _ERASE_DRAWS, seed=seed, epoch=epoch, slots=slots
        )
        chosen = ~unfit & (_draw(seed, epoch, slots, _Draw.ERASE)[0] < augment.erase)
        erased[chosen] = boxes[chosen].astype(np.int64)
    return Effects(
        operations=operations.astype(np.int64),
        signs=signs,
        magnitude=augment.randaugment_magnitude,
        jitter_order=order,
        jitter_factors=factors,
        erased=erased,
        erase_color=augment.erase_color,
    )


def eval_crops(
    augment: Augment,
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    size_px: int,
    position: tuple[float, float] = CENTRE,
) -> Crops:
    """The centre crop of evaluation, as torchvision's Resize and CenterCrop define it, as one box per image.

    Args:
        augment: for `eval_crop_fraction`.
        widths, heights: (n,) of the stored images.
        size_px: side of the model's input.
        position: x, y in [0, 1] of the crop within the room that the resized image leaves it: (0, 0) touches the left
            and the upper edge, (1, 1) the right and the lower one. Several of them make a multi-crop evaluation.
    """
    x, y = position
    resized = round(size_px / augment.eval_crop_fraction)
    shorter = np.minimum(widths, heights)
    new_widths = np.where(widths == shorter, resized, resized * widths // shorter)
    new_heights = np.where(heights == shorter, resized, resized * heights // shorter)
    left = np.rint((new_widths - size_px) * x)
    top = np.rint((new_heights - size_px) * y)
    x_scale, y_scale = widths / new_widths, heights / new_heights
    corners = [left * x_scale, top * y_scale, (left + size_px) * x_scale, (top + size_px) * y_scale]
    return Crops(boxes=np.stack(corners, axis=1), flips=np.zeros(len(widths), dtype=np.bool_))


def _draw(seed: int, epoch: int, slots: NDArray[np.int64], what: _Draw) -> NDArray[np.float64]:
    """(tries, n) evenly drawn numbers in [0, 1)."""
    tries = np.arange(_TRIES)[:, None]
    return _unit(combine(seed, _TAG, epoch, what, tries, slots[None, :]))


def _unit(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Evenly drawn numbers in [0, 1)."""
    return np.asarray((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _drawn_boxes(
    scale: tuple[float, float],
    ratios: tuple[float, float],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    draws: tuple[_Draw, _Draw, _Draw, _Draw],
    *,
    seed: int,
    epoch: int,
    slots: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(n, 4) boxes of random area, ratio and place, the first of ten tries that fits; (n,) where none did."""
    of_area, of_ratio, of_x, of_y = draws
    area = widths * heights * _uniform(scale, _draw(seed, epoch, slots, of_area))  # (tries, n)
    ratio = _ratios(ratios)(_draw(seed, epoch, slots, of_ratio))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (height > 0) & (width <= widths) & (height <= heights)
    first = np.argmax(fits, axis=0)  # (n,)
    each = np.arange(len(slots))
    width, height = width[first, each], height[first, each]
    left = np.floor(_draw(seed, epoch, slots, of_x)[first, each] * (widths - width + 1))
    top = np.floor(_draw(seed, epoch, slots, of_y)[first, each] * (heights - height + 1))
    return np.stack([left, top, left + width, top + height], axis=1), np.asarray(~fits.any(axis=0))


def _uniform(bounds: tuple[float, float], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * drawn


class _RatioTable:
    """Aspect ratios even in their logarithm, between correctly rounded knots: alike on every machine."""

    def __init__(self, low: float, high: float) -> None:
        context = Context(prec=30)
        start, stop = context.ln(Decimal(low)), context.ln(Decimal(high))
        step = context.divide(context.subtract(stop, start), Decimal(_RATIO_KNOTS - 1))
        logs = [context.add(start, context.multiply(step, Decimal(i))) for i in range(_RATIO_KNOTS)]
        self._knots = np.array([float(context.exp(log)) for log in logs])

    def __call__(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        place = drawn * (_RATIO_KNOTS - 1)
        knot = place.astype(np.int64)
        low = self._knots[knot]
        return np.asarray(low + (self._knots[knot + 1] - low) * (place - knot))


@lru_cache
def _ratios(bounds: tuple[float, float]) -> _RatioTable:
    return _RatioTable(*bounds)


def _widest_centre(
    bounds: tuple[float, float], widths: NDArray[np.int64], heights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Where no try fits (a panorama): the largest centred box with a ratio within bounds."""
    ratio = np.clip(widths / heights, *bounds)
    width = np.minimum(widths, np.maximum(1, np.rint(heights * ratio)))
    height = np.minimum(heights, np.maximum(1, np.rint(widths / ratio)))
    left, top = (widths - width) // 2, (heights - height) // 2
    return np.stack([left, top, left + width, top + height], axis=1).astype(np.float64)
