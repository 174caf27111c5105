"""All that `wv-eval` counts of one set of predictions: classes, calibration, mistakes. Adds over batches and ranks."""

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from wv_train.calibration import CalibrationSums
from wv_train.confusion import ConfusionCounts
from wv_train.distributed import World
from wv_train.evaluate import ClassSums, outcomes_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Sums and counts; nothing is divided in here."""

    classes: ClassSums
    calibration: CalibrationSums
    confusions: ConfusionCounts

    @classmethod
    def empty(cls, classes: int) -> Self:
        """Nothing seen yet."""
        return cls(classes=ClassSums.zeros(classes), calibration=CalibrationSums(), confusions=ConfusionCounts(classes))

    def add(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Count some samples, in place: (n, K) and (n,)."""
        outcomes = outcomes_of(log_probabilities, labels)
        self.classes.add(outcomes)
        self.calibration.add(outcomes)
        self.confusions.add(outcomes)

    def total(self, world: World) -> "Tally":
        """The sums of all ranks, on every rank."""
        return Tally(
            classes=self.classes.total(world),
            calibration=self.calibration.total(world),
            confusions=self.confusions.total(world),
        )

    def numbers(self) -> dict[str, Any]:
        """`ClassSums.overall` and the expected calibration error."""
        return {**self.classes.overall(), "expected_calibration_error": self.calibration.expected_error()}
