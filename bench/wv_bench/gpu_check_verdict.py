"""What `wv-bench gpu-check` holds against its bars. Pure: figures in, verdicts out.

Both bars are ratios of turns of one run of `wv-bench train`, the loader's against the synthetic batch's, so that the
same GPU in the same minutes stands on both sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wv_bench.train_report import ALONE, SYNTHETIC, TRAINED

MOST_CORES = 8
"""Processor cores that everything is held to."""
LOADER_OVER_CONSUMPTION = 1.15
"""Least rate of the loader alone over that of training on a synthetic batch."""
TRAINED_OVER_SYNTHETIC = 0.98
"""Least rate of training with the loader over that of training on a synthetic batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A bar, and what was found."""

    data: str
    """Name of the data set."""
    bar: str
    least: float
    found: float | None
    """Median over rounds; None where it was not measured."""
    figures: str
    """What it was made of, or why there is nothing."""

    @property
    def passed(self) -> bool:
        """Whether the bar was reached."""
        return self.found is not None and self.found >= self.least

    @property
    def word(self) -> str:
        """PASS or MISSED."""
        return "PASS" if self.passed else "MISSED"

    def __str__(self) -> str:
        """One line for a person."""
        found = "nothing" if self.found is None else f"{self.found:.3f}"
        return f"{self.word}  {self.data}: {self.bar}: {found}, expected at least {self.least}; {self.figures}"


def judge(data: str, trained: Mapping[str, Any] | None, reason: str = "") -> list[Verdict]:
    """Hold a run of `wv-bench train` against both bars.

    Args:
        data: name of its data set.
        trained: its document; None: it failed.
        reason: why it failed.
    """
    rows = {} if trained is None else {row["name"]: row for row in trained["rows"]}
    cores = MOST_CORES if trained is None else trained["machine"]["cores"]
    if cores > MOST_CORES:
        reason, rows = f"{cores} cores were used, the bar allows {MOST_CORES}", {}

    def held(bar: str, name: str, least: float) -> Verdict:
        if not {name, SYNTHETIC} <= rows.keys():
            return Verdict(data=data, bar=bar, least=least, found=None, figures=reason or f"no row {name!r}")
        row, synthetic = rows[name], rows[SYNTHETIC]
        return Verdict(
            data=data,
            bar=bar,
            least=least,
            found=row["over_synthetic"]["median"],
            figures=f"{row['rate_median']:,.0f} over {synthetic['rate_median']:,.0f} images/s, {cores} cores, worst "
            f"round {row['over_synthetic']['min']:.3f}",
        )

    return [
        held("loader alone over what the model consumes", ALONE, LOADER_OVER_CONSUMPTION),
        held("training with the loader over training on a synthetic batch", TRAINED, TRAINED_OVER_SYNTHETIC),
    ]
