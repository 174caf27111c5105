"""Tells when the loss has become stable, which ends a phase with `until = "plateau"`.

The rule: steps are cut into windows of `window_steps`, and the mean loss of each is held against the best one's. A
window makes progress if it is lower by at least `min_drop_fraction` of the best; it is then the best. The phase ends
after `patience_windows` windows in a row without progress. So the loss is stable when it has fallen by less than
min_drop_fraction over window_steps · patience_windows steps: small steps down add up, as the best stays where it was.
Where a loss is below 0, as elr's can be, the fraction is of its size.

Chosen on recorded runs (tests/train/curves): the defaults don't fire where the loss still falls by 1% every 500 steps,
and do where it falls by 0.3%. A window has to be long enough for its mean to be known better than min_drop_fraction: to
0.1–0.7% of the loss there, for 500 steps of 64 or 128 samples.

The loss is the global batch's, alike on all ranks, so all ranks leave the phase at the same step. A step whose loss is
not finite does not count.
"""

import math
from dataclasses import dataclass
from typing import Any

from wv_train.recipe import PlateauConfig


@dataclass(slots=True)
class PlateauDetector:
    """Feed it each step's loss; small state, saved with the checkpoint."""

    config: PlateauConfig
    loss_sum: float = 0.0
    steps: int = 0
    best: float | None = None
    windows_without_drop: int = 0

    @property
    def reached(self) -> bool:
        """Whether the loss is stable."""
        return self.windows_without_drop >= self.config.patience_windows

    def update(self, loss: float) -> None:
        """Take in one step's loss; what is not finite is passed over."""
        if not math.isfinite(loss):
            return
        self.loss_sum += loss
        self.steps += 1
        if self.steps < self.config.window_steps:
            return
        mean = self.loss_sum / self.steps
        self.loss_sum, self.steps = 0.0, 0
        if self.best is None or mean < self.best - self.config.min_drop_fraction * abs(self.best):
            self.best, self.windows_without_drop = mean, 0
        else:
            self.windows_without_drop += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything but the configuration, JSON-able."""
        return {
            "loss_sum": self.loss_sum,
            "steps": self.steps,
            "best": self.best,
            "windows_without_drop": self.windows_without_drop,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.loss_sum, self.steps = state["loss_sum"], state["steps"]
        self.best, self.windows_without_drop = state["best"], state["windows_without_drop"]
