"""Which region of each image is shown, and whether mirrored: drawn from the plan's randomness, not from an engine's.

Every engine is given the same boxes, so all of them show the same region of the same image. It touches no pixels.
"""

from dataclasses import dataclass
from decimal import Context, Decimal
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wv_shards import combine

_TRIES = 10
_TAG = 0x41554747  # keeps these draws apart from the plan's
_RATIO_KNOTS = 257


class _Draw(IntEnum):
    AREA = 0
    RATIO = 1
    X = 2
    Y = 3
    FLIP = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Training crops after RandomResizedCrop (Szegedy et al., "Going deeper with convolutions", 2014), and the
    single centre crop of evaluation."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a training crop shows."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a training crop, drawn evenly in its logarithm."""
    flip: float = 0.5
    """Probability of mirroring left and right in training."""
    eval_crop_fraction: float = 0.875
    """Evaluation: the shorter side is resized to size_px / this, then the centre is cut out."""

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0:
            raise ValueError(f"crop_scale must be 0 < low <= high <= 1, got {self.crop_scale}")
        if not 0.0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be 0 < low <= high, got {self.crop_ratio}")
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip must be a probability, got {self.flip}")
        if not 0.0 < self.eval_crop_fraction <= 1.0:
            raise ValueError(f"eval_crop_fraction must be 0 < fraction <= 1, got {self.eval_crop_fraction}")


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
    area = widths * heights * _uniform(augment.crop_scale, _draw(seed, epoch, slots, _Draw.AREA))  # (tries, n)
    ratio = _ratios(augment.crop_ratio)(_draw(seed, epoch, slots, _Draw.RATIO))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (height > 0) & (width <= widths) & (height <= heights)
    first = np.argmax(fits, axis=0)  # (n,)
    each = np.arange(len(slots))
    width, height = width[first, each], height[first, each]
    left = np.floor(_draw(seed, epoch, slots, _Draw.X)[first, each] * (widths - width + 1))
    top = np.floor(_draw(seed, epoch, slots, _Draw.Y)[first, each] * (heights - height + 1))
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    unfit = ~fits.any(axis=0)
    if unfit.any():
        boxes[unfit] = _widest_centre(augment.crop_ratio, widths[unfit], heights[unfit])
    flips = _draw(seed, epoch, slots, _Draw.FLIP)[0] < augment.flip
    return Crops(boxes=boxes, flips=flips)


def eval_crops(augment: Augment, widths: NDArray[np.int64], heights: NDArray[np.int64], size_px: int) -> Crops:
    """The centre crop of evaluation, as torchvision's Resize and CenterCrop define it, as one box per image.

    Args:
        augment: for `eval_crop_fraction`.
        widths, heights: (n,) of the stored images.
        size_px: side of the model's input.
    """
    resized = round(size_px / augment.eval_crop_fraction)
    shorter = np.minimum(widths, heights)
    new_widths = np.where(widths == shorter, resized, resized * widths // shorter)
    new_heights = np.where(heights == shorter, resized, resized * heights // shorter)
    left = np.rint((new_widths - size_px) / 2.0)
    top = np.rint((new_heights - size_px) / 2.0)
    x_scale, y_scale = widths / new_widths, heights / new_heights
    corners = [left * x_scale, top * y_scale, (left + size_px) * x_scale, (top + size_px) * y_scale]
    return Crops(boxes=np.stack(corners, axis=1), flips=np.zeros(len(widths), dtype=np.bool_))


def _draw(seed: int, epoch: int, slots: NDArray[np.int64], what: _Draw) -> NDArray[np.float64]:
    """(tries, n) evenly drawn numbers in [0, 1)."""
    tries = np.arange(_TRIES)[:, None]
    drawn = combine(seed, _TAG, epoch, what, tries, slots[None, :]) >> np.uint64(11)
    return drawn.astype(np.float64) * 2.0**-53


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
