"""Keeps a gate from shutting classes out, which is how a gate that feeds on its own confidence collapses.

For each class a running share of kept visits and a running mean confidence, over about its last 50 visits. A class that
keeps too little is gated by its own mean instead of the threshold: its more confident half passes, until it keeps
enough again. Lives on the host, fed with the rows that every rank has, in the global batch's order: alike on all ranks.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_MEMORY_VISITS = 50.0


class ClassGuard:
    """(K,) running figures of the classes."""

    def __init__(self, classes: int) -> None:
        self._kept_share: NDArray[np.float64] = np.ones(classes)
        self._mean_held: NDArray[np.float64] = np.zeros(classes)
        self.shown_share: NDArray[np.float64] = np.ones(classes)
        """(K,) of each class's visits; the loader leaves the others out, which counts as not kept. Not in the state."""

    def limits(self, min_kept_fraction: float) -> NDArray[np.float64] | None:
        """Confidence from which each class passes whatever the threshold says, (K,), infinite where the guard does
        nothing; None where it does nothing for any."""
        short = self._kept_share * self.shown_share < min_kept_fraction
        return np.where(short, self._mean_held, np.inf) if short.any() else None

    def update(self, labels: NDArray[np.int64], held: NDArray[np.float64], keep: NDArray[np.bool_]) -> None:
        """Take in the judged samples of a global batch, (n,) each, in its order."""
        counts = np.bincount(labels)
        classes = counts.nonzero()[0]
        visits = counts[classes]
        fade = (1.0 - 1.0 / _MEMORY_VISITS) ** visits
        for running, column in ((self._kept_share, keep), (self._mean_held, held)):
            mean = np.bincount(labels, weights=column)[classes] / visits
            running[classes] = fade * running[classes] + (1.0 - fade) * mean

    def state(self) -> dict[str, Any]:
        """Two tensors, for a checkpoint."""
        return {
            "kept_share": torch.from_numpy(self._kept_share.copy()),
            "mean_held": torch.from_numpy(self._mean_held.copy()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._kept_share, self._mean_held = state["kept_share"].numpy().copy(), state["mean_held"].numpy().copy()
