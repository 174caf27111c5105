"""Opens the loaders that a recipe's phases and its validation ask for.

The trainer knows batches, not shards; this is the one file that knows both a recipe and the loader's options.
"""

from dataclasses import dataclass
from pathlib import Path

from wv_loader import Loader
from wv_shards import Dataset, combine
from wv_train.distributed import World
from wv_train.errors import ClassMismatchError, TrainError
from wv_train.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the data lie and how they are read: nothing here changes a weight but `exclude`."""

    shards: Path
    val: Path | None = None
    exclude: tuple[Path, ...] = ()
    engine: str = "auto"
    loader_threads: int | None = None
    loader_processes: int = 0
    read_ahead_bytes: int | None = None
    bad_budget: int | float | None = 0.01
    """Failed shows of an epoch that end a run, as `Loader` takes it; for validation too."""
    quarantine: Path | None = None
    """File that names the samples that failed, a JSON line each; there is none while none fails."""


def open_phase_loader(data: DataConfig, recipe: Recipe, phase_index: int, world: World) -> Loader:
    """The training loader of one phase; each phase has an order of its own.

    Raises LoaderError, ShardsError; TrainError where no sample is left to train on.
    """
    phase = recipe.phases[phase_index]
    loader = Loader(
        data.shards,
        batch_size=recipe.batch_size,
        size_px=recipe.size_px,
        seed=int(combine(recipe.seed, phase_index)) >> 32,
        balance=phase.balance,
        engine=data.engine,
        train=True,
        exclude=data.exclude,
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


def open_validation_loader(
    directory: Path,
    recipe: Recipe,
    world: World,
    *,
    classes: list[str],
    engine: str = "auto",
    threads: int | None = None,
    bad_budget: int | float | None = 0.01,
    crop_position: tuple[float, float] = (0.5, 0.5),
    read_ahead_bytes: int | None = None,
) -> Loader:
    """Every sample once, cropped in the centre or at `crop_position`.

    Raises ClassMismatchError where the classes are not the training set's.
    """
    loader = Loader(
        directory,
        batch_size=recipe.batch_size,
        size_px=recipe.size_px,
        engine=engine,
        train=False,
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


def keys_of(directory: Path, ordinals: list[int]) -> list[str]:
    """The samples' keys, in the order asked for."""
    with Dataset.open(directory) as dataset:
        return dataset.keys(ordinals)
