"""Suspicions held against a known truth: how well an order of the samples brings wrong labels to the front.

Pure arithmetic on arrays; `wv-annotate suspects --truth` and `wv-bench suspects` say what it finds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP_FRACTIONS = (0.01, 0.1)
BINS = 10
"""Of the reliability table, of equal width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One order judged. None: nothing to compare, all labels are right or all wrong."""

    samples: int
    wrong: int
    auroc: float | None
    """Chance that a wrong label is more suspicious than a right one, ties counted half."""
    average_precision: float | None
    """Area under precision over recall, by steps (no interpolation)."""
    precision_at_1: float
    precision_at_10: float
    """Share of wrong labels among the most suspicious 1% and 10%, at least one sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Samples whose probability lies in one bin."""

    low: float
    high: float
    samples: int
    expected: float
    """Mean probability that the label is wrong."""
    found: float
    """Share of wrong labels."""


def judge_order(suspicion: NDArray[np.floating], wrong: NDArray[np.bool_]) -> Judged:
    """Judge (n,) suspicions, larger is more suspicious, by (n,) whether the label is wrong; n is 1 or more."""
    order = np.argsort(-suspicion, kind="stable")
    found = wrong[order]
    at_1, at_10 = (float(found[: max(1, round(share * len(found)))].mean()) for share in TOP_FRACTIONS)
    both = bool(wrong.any()) and not bool(wrong.all())
    return Judged(
        samples=len(wrong),
        wrong=int(wrong.sum()),
        auroc=_auroc(suspicion, wrong) if both else None,
        average_precision=_average_precision(suspicion[order], found) if both else None,
        precision_at_1=at_1,
        precision_at_10=at_10,
    )


def reliability(probability: NDArray[np.floating], wrong: NDArray[np.bool_]) -> tuple[Reliability, ...]:
    """The bins that hold samples; (n,) probabilities in [0, 1] and whether the label is wrong."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    return tuple(
        Reliability(
            low=number / BINS,
            high=(number + 1) / BINS,
            samples=int(members.sum()),
            expected=float(probability[members].mean(dtype=np.float64)),
            found=float(wrong[members].mean()),
        )
        for number in range(BINS)
        if (members := bins == number).any()
    )


def calibration_error(table: tuple[Reliability, ...]) -> float:
    """Mean distance of what was expected from what was found, weighted by samples (ECE)."""
    total = sum(row.samples for row in table)
    return sum(row.samples * abs(row.expected - row.found) for row in table) / max(1, total)


def _auroc(suspicion: NDArray[np.floating], wrong: NDArray[np.bool_]) -> float:
    """Mann and Whitney's U as a share of all pairs."""
    _, place, count = np.unique(suspicion, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2  # of equal values, from 1
    positives = int(wrong.sum())
    ranks = mean_rank[place][wrong].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(wrong) - positives)))


def _average_precision(suspicion: NDArray[np.floating], found: NDArray[np.bool_]) -> float:
    """Of samples in descending order; equal suspicions come in together."""
    last = np.append(suspicion[1:] != suspicion[:-1], True)
    hits = np.cumsum(found)[last]
    precision = hits / (np.flatnonzero(last) + 1)
    recall = hits / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())
