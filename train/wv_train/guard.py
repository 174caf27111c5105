"""Keeps a gate from shutting classes out, which is how a gate that feeds on its own confidence collapses.

For each class a running share of kept visits and a running mean confidence, over about its last 50 visits. A class that
keeps too little is gated by its own mean instead of the threshold: its more confident half passes, until it keeps
enough again. All sums are integers, so every rank comes to the same state whatever the order of its device's sums.
"""

from typing import Any

import torch
from torch import Tensor

_MEMORY_VISITS = 50.0
_UNIT = 2.0**24
"""Confidences are summed in fixed point."""


class ClassGuard:
    """(K,) running figures on the device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._kept_share = torch.ones(classes, dtype=torch.float64, device=device)
        self._mean_held = torch.zeros(classes, dtype=torch.float64, device=device)

    def admits(self, held: Tensor, labels: Tensor, *, min_kept_fraction: float) -> Tensor:
        """Which samples of a global batch the guard lets through, (B,) bool, whatever the threshold says.

        held: (B,) float64 confidences. labels: (B,) int64.
        """
        return (self._kept_share[labels] < min_kept_fraction) & (held >= self._mean_held[labels])

    def update(self, held: Tensor, labels: Tensor, *, judged: Tensor, keep: Tensor) -> None:
        """Take in a global batch: held (B,) float64, labels (B,) int64, judged and keep (B,) bool."""
        classes = len(self._kept_share)
        counts = torch.zeros(3, classes, dtype=torch.int64, device=held.device)
        fixed = (held.nan_to_num(0.0, 0.0, 0.0) * _UNIT).to(torch.int64)
        for row, column in zip(counts, (judged, judged & keep, fixed * judged), strict=True):
            row.index_add_(0, labels, column.to(torch.int64))
        visits, kept, held_sum = counts.double()
        fade = (1.0 - 1.0 / _MEMORY_VISITS) ** visits  # 1 where there is no visit
        some = visits.clamp(min=1.0)
        self._kept_share = fade * self._kept_share + (1.0 - fade) * kept / some
        self._mean_held = fade * self._mean_held + (1.0 - fade) * held_sum / (some * _UNIT)

    def state(self) -> dict[str, Any]:
        """Tensors on the CPU."""
        return {"kept_share": self._kept_share.cpu(), "mean_held": self._mean_held.cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._kept_share.copy_(state["kept_share"])
        self._mean_held.copy_(state["mean_held"])
