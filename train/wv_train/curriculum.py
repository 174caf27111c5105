"""Curricula: a phase learns samples of the easier tiers, and weighs tiers differently in the loss.

After Guo et al., "CurriculumNet: Weakly Supervised Learning from Large-Scale Web Images", ECCV 2018: tier 1 first, then
1 and 2, then all, with loss weights 1, 1/2, 1/2. Which sample is of which tier stands in an overlay of kind `tiers`,
that `wv-annotate curriculum` makes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_train.errors import FieldError

TIERS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Which tiers a phase learns. A sample's weight in the loss is its class's times its tier's. It stands in the sum
    and in the denominator, so that a tier of weight 1/2 has half of another's say and no rate shrinks; both are sums
    over the global batch, and gradients do not depend on how many ranks share it."""

    overlay: str = "tiers"
    """Name of an overlay of kind `tiers`, in the folder of `--overlays`: 1 easy, 2 middle, 3 hard. A sample of tier 0
    (unknown) is treated as hard."""
    max_tier: int = TIERS
    """Samples of higher tiers are left out of the phase, and out of its exposures and class weights."""
    weights: tuple[float, ...] = (1.0, 0.5, 0.5)
    """Of tiers 1, 2 and 3 in the loss (CurriculumNet: 1, 1/2, 1/2), beside class weights."""

    def __post_init__(self) -> None:
        if not self.overlay:
            raise FieldError("overlay", "an overlay's name", self.overlay)
        if not 1 <= self.max_tier <= TIERS:
            raise FieldError("max_tier", f"1 to {TIERS}", self.max_tier)
        if len(self.weights) != TIERS or min(self.weights) < 0:
            raise FieldError("weights", f"{TIERS} numbers of 0 or more", self.weights)
        if not any(self.weights[: self.max_tier]):
            raise FieldError("weights", f"one above 0 among tiers 1 to {self.max_tier}", self.weights)

    def left_out(self, tiers: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """(N,) bool: of a tier above `max_tier`."""
        left_out: NDArray[np.bool_] = self._by_tier(range(1, TIERS + 1))[tiers] > self.max_tier
        return left_out

    def weights_of(self, tiers: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n,) float32 of the samples of these tiers, (n,)."""
        weights: NDArray[np.float32] = self._by_tier(self.weights)[tiers].astype(np.float32)
        return weights

    @staticmethod
    def _by_tier(values: "range | tuple[float, ...]") -> NDArray[np.float64]:
        """By tier 0 … 3: an unknown tier is as the last."""
        return np.array([values[-1], *values], dtype=np.float64)
