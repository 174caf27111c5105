"""Which runs `wv-bench methods` makes: sets × regimes × methods × seeds, each with what decides its result.

A run's folder bears a digest of that, so a changed recipe is another run, and one that is done is never done twice.
Runs nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from wv_bench.methods_data import REGIMES, Regime, is_skewed, planned_images, runs_in
from wv_bench.methods_recipes import CORE, GATES, METHODS, SKEW_CORE, SKEW_GATES, Method
from wv_bench.methods_values import VALUES, Budget, Values

STUDIES = ("batch", "gate")
_BATCHES = (64, 128, 256, 512, 1024)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A method with its numbers under a budget."""

    method: Method
    values: Values = VALUES
    batch_size: int | None = None
    """Instead of the budget's."""

    @property
    def label(self) -> str:
        """What tables and folders call it."""
        parts = [self.method.name, self.values.changed()]
        parts += [f"batch={self.batch_size}"] if self.batch_size else []
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Everything that runs have in common, from the command's options."""

    out: Path
    model: str | None = None
    size_px: int | None = None
    device: str = "cpu"
    holdout: float = 0.0
    """Share of the training samples that are held out and scored on, instead of the clean test set."""
    epochs: int | None = None
    images: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One contestant on one set with one seed."""

    data: str
    """Name of the set."""
    regime: Regime
    contestant: Contestant
    budget: Budget
    seed: int
    setting: Setting
    base: "Run | None" = None
    """The run that has to be done first."""

    @property
    def label(self) -> str:
        """Of the contestant."""
        return self.contestant.label

    @property
    def recipe(self) -> str:
        """Its recipe, TOML."""
        return self.contestant.method.recipe(self.budget, self.contestant.values)

    @property
    def annotate(self) -> tuple[tuple[str, ...], ...]:
        """Arguments of each `wv-annotate` before it, with the contestant's numbers; paths are filled in later."""
        values = self.contestant.values
        numbers = {"{clusters}": str(values.clusters), "{suspects}": str(values.suspects)}
        return tuple(tuple(numbers.get(word, word) for word in words) for words in self.contestant.method.annotate)

    @property
    def digest(self) -> str:
        """Of all that decides the result but the code."""
        facts = {
            "recipe": self.recipe,
            "data": [self.data, self.regime.images, self.budget.images],
            "seed": self.seed,
            "holdout": self.setting.holdout,
            "device": self.setting.device,
            "annotate": self.annotate,
            "base": self.base and self.base.digest,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folder(self) -> Path:
        """Where it is done."""
        kind = "tune" if self.setting.holdout else "runs"
        name = self.label.replace(" ", "+")
        return self.setting.out / kind / self.data / self.regime.name / name / f"seed{self.seed}-{self.digest}"

    @property
    def overlays(self) -> Path:
        """Folder of those that it needs from its base."""
        return self.folder / "overlays"

    @property
    def result_file(self) -> Path:
        """Written when all else is."""
        return self.folder / "result.json"

    @property
    def shows(self) -> int:
        """Images that the training shows, its base's included."""
        mine = self.budget.steps * self.budget.batch_size
        return mine + (self.base.shows if self.base else 0)

    def __str__(self) -> str:
        return f"{self.data} {self.regime.name} {self.label} seed {self.seed}"


def plan_runs(
    setting: Setting,
    sets: Sequence[str],
    regimes: Sequence[str],
    contestants: Callable[[str], Sequence[Contestant]],
    seeds: Sequence[int],
    labels: Callable[[str], NDArray[np.int64]],
) -> list[Run]:
    """All runs in their order: seeds outermost, so that every method has one early; bases before who needs them.

    Args:
        setting: what they have in common.
        sets, regimes, seeds: names and numbers.
        contestants: those of a set.
        labels: noisy labels of CIFAR-10N by name, for the sizes of the skewed sets.
    """
    runs: dict[tuple[object, ...], Run] = {}
    for seed in seeds:
        for data in sets:
            for name in regimes:
                if not runs_in(data, name):
                    continue
                regime = _regime(name, setting)
                budget = _budget(data, regime, setting, labels)
                for contestant in contestants(data):
                    for run in _with_base(data, regime, budget, contestant, seed, setting):
                        runs.setdefault((data, name, run.label, seed), run)
    return list(runs.values())


def _with_base(
    data: str, regime: Regime, budget: Budget, contestant: Contestant, seed: int, setting: Setting
) -> Iterator[Run]:
    """The run, after the one that it starts from."""
    base = None
    if contestant.method.base is not None:
        below = Contestant(method=METHODS[contestant.method.base], batch_size=contestant.batch_size)
        *before, base = _with_base(data, regime, budget, below, seed, setting)
        yield from before
        yield base
    yield Run(
        data=data,
        regime=regime,
        contestant=contestant,
        budget=replace(budget, batch_size=contestant.batch_size or budget.batch_size),
        seed=seed,
        setting=setting,
        base=base,
    )


def _regime(name: str, setting: Setting) -> Regime:
    regime = REGIMES[name]
    return replace(regime, images=setting.images or regime.images, epochs=setting.epochs or regime.epochs)


def _budget(data: str, regime: Regime, setting: Setting, labels: Callable[[str], NDArray[np.int64]]) -> Budget:
    """Of a set in a regime. A set with fewer images than the regime asks for has more epochs: the same shows."""
    images = planned_images(data, regime, labels)
    epochs = regime.epochs
    if is_skewed(data) and data != "demo":
        epochs = round(regime.images * regime.epochs / images)
    budget = Budget(images=round(images * (1.0 - setting.holdout)), epochs=epochs, skewed=is_skewed(data))
    return replace(budget, model=setting.model or budget.model, size_px=setting.size_px or budget.size_px)


def contestants_named(names: Sequence[str]) -> Callable[[str], list[Contestant]]:
    """Those of a set by the words of `--methods`: names, `core` or `all`.

    Raises click's error for a name that is none.
    """
    if unknown := [name for name in names if name not in METHODS and name not in ("core", "all")]:
        raise click.UsageError(f"--methods {unknown[0]}: expected core, all or some of {', '.join(METHODS)}")

    def of(data: str) -> list[Contestant]:
        groups = {
            "core": SKEW_CORE if is_skewed(data) else CORE,
            "all": [name for name, one in METHODS.items() if is_skewed(data) or not one.for_skew],
        }
        wanted = dict.fromkeys(one for name in names for one in groups.get(name, [name]))
        return [Contestant(method=METHODS[name]) for name in METHODS if name in wanted]

    return of


def contestants_of_study(study: str) -> Callable[[str], list[Contestant]]:
    """`batch`: plain training with other batches. `gate`: values of the gates of Sun et al. and of ours."""
    if study == "batch":
        found = [Contestant(method=METHODS["ce"], batch_size=size) for size in _BATCHES]
        return lambda _: [replace(one, batch_size=None) if one.batch_size == 128 else one for one in found]
    shares = [replace(VALUES, gate_start=share, gate_end=share) for share in _SHARES]
    tops = [replace(VALUES, sun_start=value) for value in _THRESHOLDS]
    both = [Contestant(method=METHODS["gate"], values=one) for one in shares]
    both += [Contestant(method=METHODS["sun2018"], values=one) for one in tops]
    return lambda _: [Contestant(method=METHODS["ce"]), *both]


def contestants_to_tune(names: Sequence[str]) -> Callable[[str], list[Contestant]]:
    """Every method named with every value of its grid, and the defaults."""
    named = contestants_named(names)
    return lambda data: [
        Contestant(method=one.method, values=values)
        for one in named(data)
        for values in dict.fromkeys((VALUES, *grid(one.method.name)))
    ]


def grid(name: str) -> list[Values]:
    """Values to try for a method; for the rivals their main number, around what their papers take."""
    if name in (*GATES, *SKEW_GATES):
        kinds = [
            replace(VALUES, gate_kind=kind, gate_start=share, gate_end=share)
            for kind in ("label_average", "label")
            for share in (0.2, 0.3, 0.4)
        ]
        bases = [replace(VALUES, base_fraction=part) for part in (0.25, 0.6)]
        ratios = [replace(VALUES, agreement=value) for value in (0.5, 0.7, 1.0)]
        return ratios if name == "agreement" else [*kinds, *bases]
    numbers: dict[str, tuple[str, tuple[float, ...]]] = {
        "sun2018": ("sun_start", (0.2, 0.3, 0.5)),
        "label_smoothing": ("label_smoothing", (0.2, 0.4, 0.6)),
        "mixup": ("mixup_alpha", (0.5, 1.0, 2.0, 4.0)),
        "gce": ("gce_q", (0.3, 0.5, 0.7)),
        "sce": ("sce_alpha", (0.1, 0.5, 2.0)),
        "elr": ("elr_lambda", (1.0, 3.0, 7.0)),
        "balance": ("balance", (0.0, 0.25, 0.5)),
        "balanced": ("balance", (0.0, 0.25, 0.5)),
        "distill": ("teacher_label_share", (0.2, 0.5, 0.8)),
    }
    if name not in numbers:
        return []
    key, several = numbers[name]
    return [_with(key, value) for value in several]


def _with(key: str, value: float) -> Values:
    assert key in {one.name for one in fields(Values)}
    return replace(VALUES, **{key: value})  # type: ignore[arg-type]  # only numbers are named
