"""Sums and counts over the samples of global batches; whoever shows them divides last."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Totals:
    """Of some steps. Adding two of them adds every field."""

    steps: int = 0
    zero_steps: int = 0
    """Nothing was kept: no weight moved."""
    nonfinite_steps: int = 0
    """The loss was NaN or infinite: no weight moved."""
    guarded_steps: int = 0
    """The guard let samples of a class through that the threshold shut out."""
    two_pass_steps: int = 0
    samples: int = 0
    """Valid ones."""
    judged: int = 0
    """Valid ones that went through the model: all, but for a gate by the past."""
    correct: int = 0
    """Of the judged."""
    kept: int = 0
    weight: float = 0.0
    """Σ class weight of the judged."""
    loss: float = 0.0
    """Σ weight · loss of the judged, kept or not: comparable with and without a gate."""
    shown_known: int = 0
    """Samples whose label is known to be right or wrong; the next three likewise."""
    shown_right: int = 0
    kept_known: int = 0
    kept_right: int = 0
    band_samples: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Samples of each band, in gated steps; empty where there were none."""
    band_kept: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, other: "Totals") -> None:
        """Add another's sums to these."""
        for name in _NAMES:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, np.ndarray) and not (mine.size and theirs.size):
                setattr(self, name, mine if mine.size else theirs)
            else:
                setattr(self, name, mine + theirs)

    @property
    def mean_loss(self) -> float:
        """Weighted mean loss; 0 where nothing was weighed."""
        return self.loss / self.weight if self.weight > 0 else 0.0

    @property
    def kept_fraction(self) -> float:
        """Of the valid samples; 1 where there was none."""
        return self.kept / self.samples if self.samples else 1.0

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Totals":
        """What `state` gave."""
        values: dict[str, Any] = {
            name: np.array(value, dtype=np.int64) if isinstance(value, list) else value for name, value in state.items()
        }
        return cls(**values)


_NAMES = tuple(item.name for item in fields(Totals))


def train_row(totals: Totals, bands: list[int | None]) -> dict[str, object]:
    """What a row of metrics says of some steps; bands: those that `band_samples` counts."""
    row: dict[str, object] = {
        "loss": totals.mean_loss,
        "top1": totals.correct / max(1, totals.judged),
        "kept_fraction": totals.kept / max(1, totals.samples),
        "zero_steps": totals.zero_steps,
        "nonfinite_steps": totals.nonfinite_steps,
        "guarded_steps": totals.guarded_steps,
        "two_pass_steps": totals.two_pass_steps,
    }
    if totals.band_samples.size:
        counts = zip(bands, totals.band_samples.tolist(), totals.band_kept.tolist(), strict=True)
        row["kept_by_band"] = [[band, samples, kept] for band, samples, kept in counts]
    if totals.shown_known:
        row["shown_precision"] = totals.shown_right / totals.shown_known
    if totals.kept_known:
        row["kept_precision"] = totals.kept_right / totals.kept_known
    return row
