"""Tells when the loss has become stable, which ends a phase with `until = "plateau"`.

The rule: the mean loss of each window of steps is compared with the best window's so far. `patience_windows` windows
in a row that are not lower by `min_drop_fraction` of the best are a plateau. The loss is the global batch's, alike on
all ranks, so all ranks leave the phase at the same step.
"""

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
        """Take in one step's loss."""
        self.loss_sum += loss
        self.steps += 1
        if self.steps < self.config.window_steps:
            return
        mean = self.loss_sum / self.steps
        self.loss_sum, self.steps = 0.0, 0
        if self.best is None or mean < self.best * (1.0 - self.config.min_drop_fraction):
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
