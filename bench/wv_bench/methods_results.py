"""What the runs of `wv-bench methods` say together: means, standard errors, differences to cross-entropy by seed. Pure.

A difference is made seed by seed (the same images, initial weights and order on both sides) before it is averaged.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = "ce"
"""What the others are held against."""
MEASURES = ("top1", "mean_class_top1", "few_top1", "memorised_fraction", "train_true_top1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    error: float | None
    """Standard error of the mean; None of a single seed."""
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Of one value per seed; None of none."""
        if not values:
            return None
        error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        return cls(mean=float(np.mean(values)), error=error, seeds=len(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contestant on one set in one regime, with one kind of weights."""

    data: str
    regime: str
    label: str
    method: str
    weights: str
    """"model" or "ema"."""
    measures: dict[str, Estimate | None]
    """By name, of MEASURES."""
    over_ce: Estimate | None
    """Difference of the top-1 to cross-entropy's with the same kind of weights."""
    mean_class_over_ce: Estimate | None
    kept_fraction: Estimate | None
    kept_precision: Estimate | None
    rare_kept_fraction: Estimate | None
    """Of the rarest third of the classes, over all visits."""
    wall_ratio: Estimate | None
    """Seconds over cross-entropy's, seed by seed."""
    cpu_ratio: Estimate | None
    steps: float
    lowest_top1_of_ce: float | None
    """Smallest ratio of the top-1 to cross-entropy's of the same seed: tells a collapse."""


def read_results(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The results that are there."""
    return [json.loads(file.read_text()) for file in files if file.exists()]


def summarise(results: Sequence[dict[str, Any]]) -> list[Row]:
    """A row per set, regime, contestant and kind of weights, in the order of the results."""
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for one in results:
        groups.setdefault((one["set"], one["regime"], one["label"]), {})[one["seed"]] = one
    rows = []
    for (data, regime, label), mine in groups.items():
        reference = groups.get((data, regime, REFERENCE), {})
        rows += [
            _row(data, regime, label, weights, mine, reference)
            for weights in ("model", "ema")
            if any(one[weights] for one in mine.values())
        ]
    return rows


def tables_of(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Set, regime and rows of each table, in the order of the rows."""
    for data, regime in dict.fromkeys((row.data, row.regime) for row in rows):
        yield data, regime, [row for row in rows if (row.data, row.regime) == (data, regime)]


def _row(
    data: str,
    regime: str,
    label: str,
    weights: str,
    mine: dict[int, dict[str, Any]],
    reference: dict[int, dict[str, Any]],
) -> Row:
    both = sorted(mine.keys() & reference.keys())
    ratios = [
        mine[seed][weights]["top1"] / max(1e-9, reference[seed][weights]["top1"])
        for seed in both
        if mine[seed][weights] and reference[seed][weights]
    ]
    ordered = [mine[seed] for seed in sorted(mine)]
    return Row(
        data=data,
        regime=regime,
        label=label,
        method=ordered[0]["method"],
        weights=weights,
        measures={name: Estimate.of(_values(ordered, weights, name)) for name in MEASURES},
        over_ce=paired(mine, reference, weights, "top1"),
        mean_class_over_ce=paired(mine, reference, weights, "mean_class_top1"),
        kept_fraction=Estimate.of(_values(ordered, "gate", "kept_fraction")),
        kept_precision=Estimate.of(_values(ordered, "gate", "kept_precision")),
        rare_kept_fraction=Estimate.of([kept for one in ordered if (kept := rare_kept(one)) is not None]),
        wall_ratio=Estimate.of(_cost_ratios(mine, reference, "wall_s")),
        cpu_ratio=Estimate.of(_cost_ratios(mine, reference, "cpu_s")),
        steps=float(np.mean([one["steps"] for one in ordered])),
        lowest_top1_of_ce=min(ratios, default=None),
    )


def paired(
    mine: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], weights: str, measure: str
) -> Estimate | None:
    """Mean of the differences mine − other over the seeds that both have; results by seed."""
    pairs = [
        (mine[seed][weights].get(measure), other[seed][weights].get(measure))
        for seed in sorted(mine.keys() & other.keys())
        if mine[seed][weights] and other[seed][weights]
    ]
    return Estimate.of([one - two for one, two in pairs if one is not None and two is not None])


def _values(results: Sequence[dict[str, Any]], part: str, name: str) -> list[float]:
    found = [one[part].get(name) for one in results if one[part]]
    return [value for value in found if value is not None]


def _cost_ratios(mine: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], key: str) -> list[float]:
    pairs = [(mine[seed]["cost"][key], other[seed]["cost"][key]) for seed in sorted(mine.keys() & other.keys())]
    return [one / two for one, two in pairs if one is not None and two]


def rare_kept(result: dict[str, Any]) -> float | None:
    """Mean kept fraction of the rarest third of the classes, where there was a gate."""
    if not result["gate"] or not result["kept_by_class"]:
        return None
    return mean_of_rarest(result["kept_by_class"], "kept_fraction", samples="samples")


def mean_of_rarest(classes: Sequence[dict[str, Any]], name: str, *, samples: str) -> float | None:
    """Mean of what is known over the rarest third of the classes, by their `samples`; None: nothing is."""
    rows = sorted(classes, key=lambda row: int(row[samples]))
    known = [row[name] for row in rows[: max(1, len(rows) // 3)] if row[name] is not None]
    return float(np.mean(known)) if known else None


def document(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]
