"""From a ledger to a probability that each label is wrong. Arrays in, arrays out; no truth is needed or used.

Two questions, answered apart. Which labels are more suspicious than others: `suspicion`, a formula in which nothing is
fitted. How many are wrong, and how sure can one be: `mixture`, right and wrong labels as two Gaussians in the log-odds
of the label's mean confidence; Arazo et al., "Unsupervised Label Noise Modeling and Loss Correction", ICML 2019, do so
with losses. The probabilities of the mixture are then handed out in the order of the suspicions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_VISITS = 3
"""A sample that training has seen less often has no probability."""
FACTORS = (0.4, 1.5)
"""Between these multiples of the expected number the true one lay wherever it is known (docs/suspects.md). What the
mixture takes for granted is wrong by much more than the chance in counting."""
_CLASS_PRIOR = 20.0
"""Samples of all classes that a class's own are averaged with: a class of few follows the rest."""
_EM_STEPS = 100
_FIT_SAMPLES = 200_000
"""The mixture is fitted on so many, evenly spread, where there are more."""
_SUREST = (0.02, 0.98)
"""Probabilities are kept between these: a ledger makes no one surer."""
_ORDER = 0.01
"""The ranks spread probabilities by so much: where the mixture is sure of thousands, their order still shows."""
_LEAST = 0.002
"""Confidences are kept so far from 0 (and in log-odds from 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspicions:
    """What is thought of N samples. Arrays are (N,); NaN: unknown."""

    suspicion: NDArray[np.float64]
    """Larger is more suspicious."""
    wrong: NDArray[np.float64]
    """Expected probability that the label is wrong; in the order of `suspicion`."""
    believed: NDArray[np.int64]
    """The class predicted at the last visit; −1: unknown."""
    expected_wrong: float
    """Wrong labels among the samples that have a probability."""
    interval: tuple[float, float]
    """Of that number, by FACTORS."""


def suspicions_of(ledger: NDArray[Any], labels: NDArray[np.int64], classes: int) -> Suspicions:
    """Judge the labels by a ledger: (N,) of LEDGER_DTYPE; labels (N,) class ids below `classes`."""
    known = np.flatnonzero(ledger["seen"] >= MIN_VISITS)
    suspicion = np.full(len(ledger), np.nan)
    wrong = np.full(len(ledger), np.nan)
    if known.size:
        rows, given = ledger[known], labels[known]
        suspicion[known] = suspicion_of(rows, given, classes)
        probability = np.clip(mixture(_log_odds(rows["label_conf_mean"].astype(np.float64))), *_SUREST)
        handed = np.empty(known.size)
        spread = _ORDER * np.linspace(-0.5, 0.5, known.size)  # leaves the expected number as it is
        handed[np.argsort(suspicion[known], kind="stable")] = np.sort(probability) + spread
        wrong[known] = handed
    believed = np.full(len(ledger), -1, dtype=np.int64)
    believed[known] = ledger["prediction"][known]
    expected = float(np.nansum(wrong))
    low, high = (factor * expected for factor in FACTORS)
    return Suspicions(
        suspicion=suspicion,
        wrong=wrong,
        believed=believed,
        expected_wrong=expected,
        interval=(low, min(high, float(known.size))),
    )


def suspicion_of(rows: NDArray[Any], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """(n,) of LEDGER_DTYPE, each seen once or more: how suspicious the labels are; 0 is typical of the class.

    −log(c / m): c the label's confidence averaged over all visits, m the mean of c over the class. Over all visits, for
    the last ones tell least of a label that has been learned by heart; by class, for a hard class is no wrong one.
    """
    confidence = np.maximum(rows["label_conf_mean"].astype(np.float64), _LEAST)
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=confidence, minlength=classes)
    typical = (sums + _CLASS_PRIOR * confidence.mean()) / (counts + _CLASS_PRIOR)  # (K,)
    return np.asarray(np.log(typical[labels] / confidence), dtype=np.float64)


def mixture(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): probability of each value under the lower of two Gaussians that were fitted to all, by EM.

    Begins at quantiles: no random start. Values that are all equal belong to the upper group.
    """
    step = max(1, len(values) // _FIT_SAMPLES)
    sample = np.sort(values)[::step]
    if sample[0] == sample[-1]:
        return np.zeros(len(values))
    floor = 0.05 * sample.std()
    mean = np.quantile(sample, [0.15, 0.75])
    deviation = np.full(2, max(floor, 0.6 * float(sample.std())))
    share = np.array([0.3, 0.7])
    for _ in range(_EM_STEPS):
        belongs = _responsibilities(sample, share, mean, deviation)  # (2, n)
        total = np.maximum(belongs.sum(axis=1), 1e-9)
        share = total / total.sum()
        mean = (belongs * sample).sum(axis=1) / total
        squares = (belongs * (sample - mean[:, None]) ** 2).sum(axis=1) / total
        deviation = np.maximum(np.sqrt(squares), floor)
    lower = int(np.argmin(mean))
    return np.asarray(_responsibilities(values, share, mean, deviation)[lower], dtype=np.float64)


def _responsibilities(
    values: NDArray[np.float64], share: NDArray[np.float64], mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, n): share of each group in the density at each value."""
    distance = (values - mean[:, None]) / deviation[:, None]
    logs = np.log(share / deviation)[:, None] - 0.5 * distance**2  # (2, n)
    weights = np.exp(logs - logs.max(axis=0))
    return np.asarray(weights / weights.sum(axis=0), dtype=np.float64)


def _log_odds(confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    kept = np.clip(confidence, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(kept / (1 - kept)), dtype=np.float64)
