"""The bars that the methods are held against, computed from results. Pure: results in, verdicts out.

Accuracies are of the last epoch on clean test images; differences are made seed by seed. "Not worse" means: by no more
than one standard error of the difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wv_bench.methods_data import is_skewed
from wv_bench.methods_recipes import RIVALS
from wv_bench.methods_results import REFERENCE, Estimate, paired, rare_kept

COLLAPSE = 0.5
"""A run with less than this share of cross-entropy's accuracy, same seed, has collapsed."""
RARE_KEPT = 0.5
"""Rare classes are gated away where less of their visits pass than this share of what passes of all classes."""
_REGIMES = ("memorise", "short")
_WEIGHTS = ("model", "ema")

BySeed = dict[int, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A bar and what was found."""

    bar: str
    data: str
    """Set, regime and kind of weights."""
    expected: str
    found: str
    passed: bool | None
    """None: runs are missing."""

    @property
    def word(self) -> str:
        """PASS, MISSED or missing."""
        return "missing" if self.passed is None else "PASS" if self.passed else "MISSED"


class Results:
    """Results by set, regime and label."""

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        self._groups: dict[tuple[str, str, str], BySeed] = {}
        for one in results:
            self._groups.setdefault((one["set"], one["regime"], one["label"]), {})[one["seed"]] = one

    def of(self, data: str, regime: str, label: str) -> BySeed:
        """By seed; empty where nothing was run."""
        return self._groups.get((data, regime, label), {})

    def sets(self) -> list[tuple[str, str]]:
        """Every set and regime that there are."""
        return list(dict.fromkeys((data, regime) for data, regime, _ in self._groups))


def judge(
    results: Sequence[dict[str, Any]], ensembles: Sequence[Mapping[str, Any]], *, best_gate: str
) -> list[Verdict]:
    """All bars but that of the suspects, which `wv-bench suspects` judges.

    Args:
        results: of runs with the contestants' own values.
        ensembles: documents of `methods_ensemble`.
        best_gate: label of the gate that is held against the others; chosen beforehand, not by these results.
    """
    found = Results(results)
    verdicts = [_memorising(found, best_gate), _short(found, best_gate)]
    verdicts += [_sun(found, regime) for regime in _REGIMES]
    for data, regime in found.sets():
        if not is_skewed(data):
            verdicts += [_rivals(found, data, regime, weights, best_gate) for weights in _WEIGHTS]
    skewed = [one for one in found.sets() if one[0].endswith("-skewed")] or [("worse-skewed", one) for one in _REGIMES]
    verdicts += [_rebalancing(found, data, regime) for data, regime in skewed]
    verdicts += [_together(found, data, regime) for data, regime in skewed]
    return verdicts + [_ensemble(one) for one in ensembles]


def _memorising(found: Results, gate: str) -> Verdict:
    data, regime = "worse", "memorise"
    over = paired(found.of(data, regime, gate), found.of(data, regime, REFERENCE), "model", "top1")
    passed = None if over is None else over.mean >= 0.06 and over.error is not None and over.mean > 3 * over.error
    return Verdict(
        bar=f"{gate} over cross-entropy",
        data=f"{data} {regime}, model",
        expected="+6.0 or more, above 3 standard errors",
        found=_text(over),
        passed=passed,
    )


def _short(found: Results, gate: str) -> Verdict:
    data, regime = "worse", "short"
    mine, plain = found.of(data, regime, gate), found.of(data, regime, REFERENCE)
    over, collapsed = paired(mine, plain, "model", "top1"), _collapsed(mine, plain)
    told = f"; collapsed: seeds {', '.join(map(str, collapsed))}" if collapsed else "; no collapse"
    return Verdict(
        bar=f"{gate} not worse than cross-entropy, no collapse",
        data=f"{data} {regime}, model",
        expected="by no more than 1 standard error",
        found=_text(over) + ("" if over is None else told),
        passed=None if over is None else _not_worse(over) and not collapsed,
    )


def _sun(found: Results, regime: str) -> Verdict:
    over = paired(found.of("worse", regime, "sun2018"), found.of("worse", regime, REFERENCE), "model", "top1")
    return Verdict(
        bar="Sun et al.'s gate as written not worse than cross-entropy",
        data=f"worse {regime}, model",
        expected="by no more than 1 standard error",
        found=_text(over),
        passed=None if over is None else _not_worse(over),
    )


def _rivals(found: Results, data: str, regime: str, weights: str, gate: str) -> Verdict:
    """Against the rival of the highest mean, chosen with hindsight: the strictest of comparisons."""
    mine = found.of(data, regime, gate)
    over = {name: paired(mine, found.of(data, regime, name), weights, "top1") for name in RIVALS}
    missing = [name for name, one in over.items() if one is None]
    known = {name: one for name, one in over.items() if one is not None}
    best = min(known, key=lambda name: known[name].mean, default=None)
    told = "–" if best is None else f"{_text(known[best])} over {best}"
    told += f"; no {', '.join(missing)} yet" if missing else ""
    return Verdict(
        bar=f"{gate} not worse than the best rival",
        data=f"{data} {regime}, {weights}",
        expected="by no more than 1 standard error",
        found=told,
        passed=None if missing or best is None else _not_worse(known[best]),
    )


def _rebalancing(found: Results, data: str, regime: str) -> Verdict:
    over = paired(found.of(data, regime, "balanced"), found.of(data, regime, REFERENCE), "model", "mean_class_top1")
    return Verdict(
        bar="sampling and class weights over neither, mean per class",
        data=f"{data} {regime}, model",
        expected="+4.0 or more",
        found=_text(over),
        passed=None if over is None else over.mean >= 0.04,
    )


def _together(found: Results, data: str, regime: str) -> Verdict:
    gate = "gate"  # the one that is in `balanced_gate`
    both = found.of(data, regime, "balanced_gate")
    over = {name: paired(both, found.of(data, regime, name), "model", "mean_class_top1") for name in ("balanced", gate)}
    kept = [(rare, one["gate"]["kept_fraction"]) for one in both.values() if (rare := rare_kept(one)) is not None]
    told = ", ".join(f"{_text(one)} over {name}" for name, one in over.items())
    passed = None
    if kept and all(one is not None for one in over.values()):
        rare, every = (float(np.mean(column)) for column in zip(*kept, strict=True))
        told += f"; of the rare third {rare:.0%} kept, of a batch {every:.0%}"
        passed = all(one is not None and one.mean > 0 for one in over.values()) and rare >= RARE_KEPT * every
    return Verdict(
        bar="gate and rebalancing better than either alone, mean per class",
        data=f"{data} {regime}, model",
        expected="above 0 over both, rare classes not gated away",
        found=told,
        passed=passed,
    )


def _ensemble(one: Mapping[str, Any]) -> Verdict:
    best = max(one["members"])
    return Verdict(
        bar=f"weighted ensemble of {one['label']} over its best member",
        data=f"{one['set']} {one['regime']}, {one['weights']}",
        expected="better",
        found=f"{100 * one['fitted']:.1f} and {100 * best:.1f}, on the half that the weights were not fitted on",
        passed=one["fitted"] > best,
    )


def _not_worse(over: Estimate) -> bool:
    return over.mean >= -(over.error or 0.0)


def _collapsed(mine: BySeed, plain: BySeed) -> list[int]:
    """Seeds that have."""
    both = sorted(mine.keys() & plain.keys())
    return [seed for seed in both if mine[seed]["model"]["top1"] < COLLAPSE * plain[seed]["model"]["top1"]]


def _text(over: Estimate | None) -> str:
    if over is None:
        return "–"
    error = "" if over.error is None else f" ± {100 * over.error:.1f}"
    return f"{100 * over.mean:+.1f}{error} (n = {over.seeds})"
