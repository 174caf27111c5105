"""Opens the loaders that a recipe's phases and its validation ask for.

The trainer knows batches, not shards; this is the one file that knows both a recipe and the loader's options.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wv_loader import Exclusion, Loader
from wv_loader.layout import layout_of
from wv_shards import Dataset, Manifest, combine
from wv_train.distributed import World
from wv_train.errors import ClassMismatchError, TrainError
from wv_train.holdout import MAX_FRACTION, held_out
from wv_train.phase_overlays import PhaseOverlays, read_phase_overlays
from wv_train.recipe import Recipe
from wv_train.table import close_matches


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the data lie and how they are read: nothing here changes a weight but `exclude`, `holdout` and what is
    in the overlays."""

    shards: Path
    val: Path | None = None
    exclude: tuple[Path, ...] = ()
    holdout: float | None = None
    """Fraction of the training shards' samples, in (0, 0.5], that are validated on and not trained on; see `holdout`.
    None: none. Not together with `val`."""
    overlays: Path = Path()
    """Folder of the overlays that the recipe's phases name."""
    engine: str = "auto"
    loader_threads: int | None = None
    loader_processes: int = 0
    read_ahead_bytes: int | None = None
    bad_budget: int | float | None = 0.01
    """Failed shows of an epoch that end a run, as `Loader` takes it; for validation too."""
    quarantine: Path | None = None
    """File that names the samples that failed, a JSON line each; there is none while none fails."""

    def __post_init__(self) -> None:
        if self.holdout is not None and not 0.0 < self.holdout <= MAX_FRACTION:
            raise ValueError(f"holdout: expected more than 0 and at most {MAX_FRACTION:g}, found {self.holdout}")
        if self.holdout is not None and self.val is not None:
            raise ValueError("holdout: expected no val beside it: either is the validation set")

    @property
    def validates(self) -> bool:
        """Whether there is a validation set."""
        return self.val is not None or self.holdout is not None

    def exclusions(self) -> tuple[Exclusion, ...]:
        """What a training loader is to exclude. Raises ShardsError."""
        return self.exclude if self.holdout is None else (*self.exclude, self._held_out(self.holdout))

    def validated_on(self) -> tuple[Path, tuple[Exclusion, ...]]:
        """Shards of the validation set, and what its loader is to exclude. Raises ShardsError."""
        if self.val is not None:
            return self.val, ()
        assert self.holdout is not None  # asked for where `validates`
        return self.shards, (*self.exclude, ~self._held_out(self.holdout))

    def _held_out(self, fraction: float) -> NDArray[np.bool_]:
        with Dataset.open(self.shards) as dataset:
            return held_out(dataset, fraction)


def open_phase_overlays(data: DataConfig, recipe: Recipe, phase_index: int) -> PhaseOverlays:
    """What overlays give a phase.

    Raises ShardsError; TrainError where an overlay is not there, does not fit or is damaged.
    """
    return read_phase_overlays(data.overlays, recipe.phases[phase_index], Manifest.load(data.shards))


def open_phase_loader(
    data: DataConfig, recipe: Recipe, phase_index: int, world: World, overlays: PhaseOverlays | None = None
) -> Loader:
    """The training loader of one phase; each phase has an order of its own.

    Args:
        data: where the samples are.
        recipe: of the run.
        phase_index: which phase.
        world: the ranks.
        overlays: of the phase, where they have been read already.

    Raises LoaderError, ShardsError; TrainError where no sample is left to train on.
    """
    phase = recipe.phases[phase_index]
    left_out = (overlays or open_phase_overlays(data, recipe, phase_index)).excluded()
    loader = Loader(
        data.shards,
        batch_size=recipe.batch_size,
        size_px=recipe.size_px,
        seed=int(combine(recipe.seed, phase_index)) >> 32,
        balance=phase.balance,
        engine=data.engine,
        train=True,
        exclude=data.exclusions() if left_out is None else (*data.exclusions(), left_out),
        max_repeat=recipe.max_repeat,
        streams=recipe.resolved_streams,
        augment=recipe.augment,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        threads=data.loader_threads,
        processes=data.loader_processes,
        read_ahead_bytes=data.read_ahead_bytes,
        bad_budget=data.bad_budget,
        quarantine=data.quarantine,
    )
    if len(loader) == 0:
        loader.close()
        raise TrainError(f"{data.shards}: expected samples to train on, found none that is not excluded")
    return loader


def class_counts(data: DataConfig) -> NDArray[np.int64]:
    """(K,) samples that may be trained on, whatever single phases leave out. Raises LoaderError, ShardsError."""
    with Dataset.open(data.shards) as dataset:
        layout = layout_of(dataset, data.exclusions())
    shown = layout.labels if layout.excluded is None else layout.labels[~layout.excluded]
    return np.bincount(shown, minlength=layout.num_classes)


def open_validation_loader(
    directory: Path,
    recipe: Recipe,
    world: World,
    *,
    classes: list[str],
    exclude: Sequence[Exclusion] = (),
    engine: str = "auto",
    threads: int | None = None,
    bad_budget: int | float | None = 0.01,
    crop_position: tuple[float, float] = (0.5, 0.5),
    read_ahead_bytes: int | None = None,
) -> Loader:
    """Every sample that is not excluded once, cropped in the centre or at `crop_position`.

    Raises ClassMismatchError where the classes are not the training set's.
    """
    loader = Loader(
        directory,
        batch_size=recipe.batch_size,
        size_px=recipe.size_px,
        engine=engine,
        train=False,
        exclude=exclude,
        augment=recipe.augment,
        crop_position=crop_position,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        threads=threads,
        read_ahead_bytes=read_ahead_bytes,
        bad_budget=bad_budget,
    )
    try:
        check_classes(str(directory), classes, loader.class_names)
    except Exception:
        loader.close()
        raise
    return loader


def check_classes(who: str, trained: list[str], found: list[str]) -> None:
    """Raises ClassMismatchError naming the first class that differs."""
    if trained == found:
        return
    if len(trained) != len(found):
        detail = f"{len(trained)} classes in training, {len(found)} here"
    else:
        class_id = next(i for i, (one, other) in enumerate(zip(trained, found, strict=True)) if one != other)
        detail = f"class {class_id} is {trained[class_id]!r} in training, {found[class_id]!r} here"
    raise ClassMismatchError(f"{who}: other classes: {detail}; build the data with --classes-from the training shards")


def read_class_weights(path: Path, classes: list[str]) -> NDArray[np.float64]:
    """Weight of each class, (K,) float64, by class id, from a CSV with the header `class,weight`.

    A class goes by its name or, where no class is called so, by its id; every class stands there once. Weights are
    finite, 0 or more, and not all 0.

    Raises TrainError, with the line where it is one line's fault.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            lines = [(rows.line_num, row) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a CSV in UTF-8"
        raise TrainError(f"class_weights_file {path}: cannot be read: {reason}") from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    if header != ["class", "weight"]:
        raise TrainError(f"{path}:1: expected the header class,weight, found {','.join(header) or 'nothing'}")
    by_id = {str(class_id): class_id for class_id in range(len(classes))}
    class_ids = by_id | {name: class_id for class_id, name in enumerate(classes)}
    weights = np.full(len(classes), np.nan)
    first_lines: dict[int, int] = {}
    for line, row in lines[1:]:
        where = f"{path}:{line}"
        if len(row) != 2:
            raise TrainError(f"{where}: expected a class and its weight, found {len(row)} columns")
        name, text = row[0].strip(), row[1].strip()
        if name not in class_ids:
            hint = close_matches(name, classes) or f"; names and ids 0 to {len(classes) - 1} are known"
            raise TrainError(f"{where}: {name!r} is no class of the training data{hint}")
        class_id = class_ids[name]
        if class_id in first_lines:
            raise TrainError(f"{where}: class {name!r} stands in line {first_lines[class_id]} already; leave one out")
        first_lines[class_id], weights[class_id] = line, _weight(where, text)
    if missing := [name for class_id, name in enumerate(classes) if class_id not in first_lines]:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise TrainError(f"{path}: no weight for class {missing[0]!r}{more}: expected every class once")
    if not weights.any():
        raise TrainError(f"{path}: all weights are 0: expected one or more above")
    return weights


def _weight(where: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.0 <= weight < math.inf:
        raise TrainError(f"{where}: expected a weight of 0 or more, found {text!r}")
    return weight


def keys_of(directory: Path, ordinals: list[int]) -> list[str]:
    """The samples' keys, in the order asked for."""
    with Dataset.open(directory) as dataset:
        return dataset.keys(ordinals)
