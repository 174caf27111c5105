"""Whether a model's confidence can be taken at its word: reliability by bins, and the expected calibration error.

After Guo et al., "On Calibration of Modern Neural Networks", 2017: 15 bins of equal width over the top-1 confidence.
Sums per bin are kept, so that they add over batches and ranks.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wv_train.distributed import World
from wv_train.evaluate import Outcomes

BINS = 15


def _zeros() -> NDArray[np.float64]:
    return np.zeros(BINS)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSums:
    """Sums of each bin, (BINS,) float64. Bin m holds the confidences in (m/15, (m + 1)/15], the first one 0 as well."""

    samples: NDArray[np.float64] = field(default_factory=_zeros)
    confidence: NDArray[np.float64] = field(default_factory=_zeros)
    correct: NDArray[np.float64] = field(default_factory=_zeros)

    def add(self, outcomes: Outcomes) -> None:
        """Count some samples, in place."""
        bins = np.clip(np.ceil(np.nan_to_num(outcomes.confidences) * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.samples[:] += np.bincount(bins, minlength=BINS)
        self.confidence[:] += np.bincount(bins, weights=outcomes.confidences, minlength=BINS)
        self.correct[:] += np.bincount(bins, weights=outcomes.correct, minlength=BINS)

    def total(self, world: World) -> "CalibrationSums":
        """The sums of all ranks, on every rank."""
        mine = torch.from_numpy(np.stack([self.samples, self.confidence, self.correct]))  # (3, BINS)
        samples, confidence, correct = world.all_reduce_sum(mine.to(world.device)).cpu().numpy()
        return CalibrationSums(samples=samples, confidence=confidence, correct=correct)

    def expected_error(self) -> float:
        """Σ over bins of (share of the samples) · |accuracy − mean confidence|, in [0, 1]; 0 without samples."""
        return float(np.abs(self.correct - self.confidence).sum() / max(1.0, self.samples.sum()))

    def rows(self) -> list[dict[str, Any]]:
        """The reliability diagram: a row per bin; confidence (mean) and top1 are None where it is empty."""
        return [
            {
                "low": m / BINS,
                "high": (m + 1) / BINS,
                "samples": int(self.samples[m]),
                "confidence": float(self.confidence[m] / self.samples[m]) if self.samples[m] else None,
                "top1": float(self.correct[m] / self.samples[m]) if self.samples[m] else None,
            }
            for m in range(BINS)
        ]
