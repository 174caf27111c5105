"""What `wv-eval` measures: one run from one or several crops, or an ensemble of runs with given or fitted weights.

Gives the content of eval.json as plain values (docs/evaluation.md says what each is); shows and writes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_train.crops import CENTRE, crops_result
from wv_train.data import keys_of
from wv_train.distributed import World
from wv_train.ensemble import Fit, fit_weights, in_fitting_half, mixture
from wv_train.errors import ClassMismatchError, TrainError
from wv_train.evaluate import ClassSums, CountGroups, log_probabilities, outcomes_of
from wv_train.gather import gather_rows
from wv_train.lockstep import Lockstep, Showing, ValidationData, View
from wv_train.tally import Tally
from wv_train.trained import Trained

FORMAT_VERSION = 1

Advance = Callable[[int], object]
"""Told how many more samples this rank has seen, padding included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is asked for."""

    data: ValidationData
    positions: tuple[tuple[float, float], ...] = (CENTRE,)
    """Of the crops; the first is the one whose results stand for the run."""
    groups: CountGroups = field(default_factory=CountGroups)
    confused_pairs: int = 20
    """How many of the most confused pairs the result lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """An ensemble with certain weights, evaluated."""

    name: str
    """"given", "equal" or "fitted"."""
    weights: NDArray[np.float64]
    """(M,) sum 1."""
    tally: Tally


def open_lockstep(members: Sequence[Trained], config: EvalConfig, world: World) -> Lockstep:
    """The loaders that some runs and crops need.

    Raises as `Lockstep`; ClassMismatchError where the runs' classes differ.
    """
    first = members[0]
    for other in members[1:]:
        if other.classes != first.classes:
            raise ClassMismatchError(
                f"{other.run.path}: other classes than {first.run.path}: {_difference(other, first)}"
            )
    recipes = [member.recipe for member in members]
    return Lockstep(config.data, recipes, config.positions, world, classes=first.classes)


def evaluate_run(
    trained: Trained, config: EvalConfig, shown: Lockstep, world: World, advance: Advance = lambda _: None
) -> dict[str, Any]:
    """One run; with several positions also each crop, and the mean of their softmaxes. Same result on every rank."""
    classes, positions = len(trained.classes), config.positions
    tally, averaged = Tally.empty(classes), Tally.empty(classes)
    others = [ClassSums.zeros(classes) for _ in positions[1:]]
    with torch.no_grad():
        for showing in shown:
            logs, labels = _logs(trained, showing, positions, showing.valid), showing.labels[showing.valid]
            tally.add(logs[0], labels)
            if others:
                for sums, log in zip(others, logs[1:], strict=True):
                    sums.add(outcomes_of(log, labels))
                averaged.add(_mean(logs), labels)
            advance(len(showing.valid))
    tally = tally.total(world)
    result = _result("run", trained, tally, config, shown, world) | trained.facts()
    if others:
        sums_of_all = [tally.classes, *(sums.total(world) for sums in others)]
        result["crops"] = crops_result(positions, sums_of_all, averaged.total(world))
    return result


def evaluate_ensemble(
    members: Sequence[Trained],
    weights: NDArray[np.float64] | None,
    config: EvalConfig,
    shown: Lockstep,
    world: World,
    *,
    fit: bool,
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Several runs and the mean of their softmaxes; where there are several crops, each run's is the mean of theirs.

    Args:
        members: M runs of the same classes.
        weights: (M,) as given; None: equal ones.
        config, shown, world: as of `evaluate_run`.
        fit: fit weights on one half of the samples and test everything on the other, in a second pass.
        advance: called once per pass and batch.
    """
    classes, equal = len(members[0].classes), np.full(len(members), 1 / len(members))
    asked = {"given": weights} if weights is not None else {}
    asked |= {"equal": equal} if weights is None or fit else {}
    fitting = in_fitting_half(keys_of(config.data.shards, list(range(shown.first.num_samples)))) if fit else None
    singles, tallies = [Tally.empty(classes) for _ in members], {name: Tally.empty(classes) for name in asked}
    label_logs: list[Tensor] = []

    def first_look(logs: Tensor, labels: Tensor, tested: Tensor) -> None:
        label_logs.append(logs[:, ~tested].gather(2, labels[~tested].expand(len(members), -1)[:, :, None])[:, :, 0].T)
        for tally, log in zip(singles, logs, strict=True):
            tally.add(log[tested], labels[tested])
        for name, some in asked.items():
            tallies[name].add(mixture(logs[:, tested], some), labels[tested])

    _pass(members, config, shown, fitting, first_look, advance)
    mixtures = [Mixture(name=name, weights=asked[name], tally=tallies[name].total(world)) for name in asked]
    fitted = None
    if fitting is not None:
        fitted = fit_weights(gather_rows(world, torch.cat(label_logs).double()).numpy())
        mixtures = [_look_again(members, fitted, config, shown, fitting, world, advance), *mixtures]
        _check_halves(fitted, mixtures[0].tally, config)
    chosen = mixtures[0]
    rows = [
        {**member.facts(), "weight": float(weight), **tally.total(world).numbers()}
        for member, weight, tally in zip(members, chosen.weights, singles, strict=True)
    ]
    return _result("ensemble", members[0], chosen.tally, config, shown, world) | {
        "weights_from": chosen.name,
        "members": rows,
        "mixtures": [
            {"weights_from": one.name, "weights": one.weights.tolist(), **one.tally.numbers()} for one in mixtures
        ],
        "fit": None if fitted is None else _fit_result(fitted),
        "crop_positions": [list(position) for position in config.positions],
    }


def _pass(
    members: Sequence[Trained],
    config: EvalConfig,
    shown: Lockstep,
    fitting: NDArray[np.bool_] | None,
    look: Callable[[Tensor, Tensor, Tensor], None],
    advance: Advance,
    *,
    only_tested: bool = False,
) -> None:
    """Show every valid sample to all members; `look` gets (M, n, K) log-probabilities, (n,) labels, (n,) tested."""
    with torch.no_grad():
        for showing in shown:
            tested = torch.ones_like(showing.valid)
            if fitting is not None:
                fits = torch.from_numpy(fitting[showing.ordinals.clamp(min=0).cpu().numpy()])
                tested = ~fits.to(showing.valid.device)
            wanted = showing.valid & tested if only_tested else showing.valid
            logs = [_mean(_logs(member, showing, config.positions, wanted)) for member in members]
            look(torch.stack(logs), showing.labels[wanted], tested[wanted])
            advance(len(showing.valid))


def _look_again(
    members: Sequence[Trained],
    fitted: Fit,
    config: EvalConfig,
    shown: Lockstep,
    fitting: NDArray[np.bool_],
    world: World,
    advance: Advance,
) -> Mixture:
    """The fitted mixture on the half that it was not fitted on."""
    tally = Tally.empty(len(members[0].classes))

    def look(logs: Tensor, labels: Tensor, _tested: Tensor) -> None:
        tally.add(mixture(logs, fitted.weights), labels)

    _pass(members, config, shown, fitting, look, advance, only_tested=True)
    return Mixture(name="fitted", weights=fitted.weights, tally=tally.total(world))


def _logs(trained: Trained, showing: Showing, positions: Sequence[tuple[float, float]], wanted: Tensor) -> Tensor:
    """(P, n, K) log-probabilities of a run for the slots wanted, from each position."""
    views = [View.of(trained.recipe, position) for position in positions]
    return torch.stack([log_probabilities(trained.model, showing.batches[view], wanted) for view in views])


def _mean(logs: Tensor) -> Tensor:
    """Log of the mean probability: (P, n, K) → (n, K)."""
    return logs[0] if len(logs) == 1 else torch.logsumexp(logs, dim=0) - np.log(len(logs))


def _result(
    kind: str, trained: Trained, tally: Tally, config: EvalConfig, shown: Lockstep, world: World
) -> dict[str, Any]:
    """What a run's and an ensemble's results have in common; classes are named, counted and banded as `trained`'s."""
    numbers = tally.numbers()
    if not np.isfinite(numbers["loss"]):
        raise TrainError(
            f"{trained.run.path}: the outputs of checkpoint {trained.checkpoint} are NaN or infinite; "
            "evaluate an earlier one with --checkpoint"
        )
    counts, groups, sums = trained.class_counts, config.groups, tally.classes
    return {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        **numbers,
        "calibration": tally.calibration.rows(),
        "count_groups": sums.by_count(counts, groups),
        "most_confused": tally.confusions.most(config.confused_pairs, trained.classes, sums.samples),
        "mistakes": tally.confusions.mistakes(),
        "invalid": shown.invalid(),
        "per_class": sums.by_class(trained.classes, counts),
        "per_band": sums.by_band(trained.class_bands),
        "shards": str(config.data.shards),
        "engine": shown.first.engine.name,
        "world_size": world.size,
    }


def _fit_result(fitted: Fit) -> dict[str, Any]:
    return {
        "samples": fitted.samples,
        "iterations": fitted.iterations,
        "mean_log_likelihood": fitted.mean_log_likelihood,
        "gap": fitted.gap,
    }


def _check_halves(fitted: Fit, tested: Tally, config: EvalConfig) -> None:
    if not fitted.samples or not tested.classes.samples.sum():
        raise TrainError(
            f"{config.data.shards}: expected samples in both halves, found {fitted.samples:,} to fit on and "
            f"{int(tested.classes.samples.sum()):,} to test on; fit on a larger set"
        )


def _difference(one: Trained, other: Trained) -> str:
    if len(one.classes) != len(other.classes):
        return f"{len(one.classes)} and {len(other.classes)}"
    class_id = next(i for i, (a, b) in enumerate(zip(one.classes, other.classes, strict=True)) if a != b)
    return f"class {class_id} is {one.classes[class_id]!r} in the one, {other.classes[class_id]!r} in the other"
