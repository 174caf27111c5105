"""Several loaders of one validation set that show the same samples at the same time, each in a view of its own.

So that softmaxes of different crops or models can be added sample by sample, and nothing of N × K is ever kept.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from wv_loader import Batch, Loader
from wv_train.data import keys_of, open_validation_loader
from wv_train.distributed import World
from wv_train.errors import TrainError
from wv_train.gather import gather_rows
from wv_train.recipe import Recipe

_READ_AHEAD_BYTES = 128_000_000
"""Of each loader where there are several: they read the same files, one after the other, in order."""
_NAMED = 100
"""Invalid samples that a result names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """How an image is shown."""

    size_px: int
    eval_crop_fraction: float
    position: tuple[float, float]

    @classmethod
    def of(cls, recipe: Recipe, position: tuple[float, float]) -> Self:
        """As a recipe evaluates, but for the position."""
        return cls(size_px=recipe.size_px, eval_crop_fraction=recipe.augment.eval_crop_fraction, position=position)


@dataclass(frozen=True, kw_only=True, slots=True)
class Showing:
    """This rank's slots of one global batch, in every view, on the model's device."""

    batches: Mapping[View, Batch]
    ordinals: Tensor
    """(n,) int64; −1 where padded."""
    labels: Tensor
    """(n,) int64"""
    valid: Tensor
    """(n,) bool: decoded in every view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationData:
    """Which shards, and how they are read; none of it changes a result but for the engine's last levels."""

    shards: Path
    engine: str = "auto"
    loader_threads: int | None = None
    bad_budget: int | float | None = 0.01
    batch_size: int | None = None
    """Global; None: the smallest of the recipes'."""


class Lockstep:
    """Iterates over the whole validation set, as often as wanted; every rank sees its share of each batch."""

    def __init__(
        self,
        data: ValidationData,
        recipes: Sequence[Recipe],
        positions: Sequence[tuple[float, float]],
        world: World,
        *,
        classes: list[str],
    ) -> None:
        """Open a loader for each view that the recipes and positions ask for.

        Raises LoaderError, ShardsError, ClassMismatchError; TrainError where there is no sample.
        """
        self._world, self._data = world, data
        self.batch_size = data.batch_size or min(recipe.batch_size for recipe in recipes)
        views = {View.of(recipe, position): recipe for recipe in recipes for position in positions}
        self._invalid: list[int] = []
        self._cleanup = ExitStack()
        self._loaders: dict[View, Loader] = {}
        threads = data.loader_threads or (_share_of_cores(len(views)) if len(views) > 1 else None)
        with ExitStack() as opened:
            for view, recipe in views.items():
                loader = open_validation_loader(
                    data.shards,
                    replace(recipe, batch_size=self.batch_size),
                    world,
                    classes=classes,
                    engine=data.engine,
                    threads=threads,
                    bad_budget=data.bad_budget,
                    crop_position=view.position,
                    read_ahead_bytes=_READ_AHEAD_BYTES if len(views) > 1 else None,
                )
                self._loaders[view] = opened.enter_context(closing(loader))
            self.first = next(iter(self._loaders.values()))
            """One of the loaders, for what all have in common."""
            if not self.first.epoch_samples:
                raise TrainError(f"{data.shards}: expected samples to evaluate on, found none that is not excluded")
            self._cleanup = opened.pop_all()

    @property
    def slots(self) -> int:
        """Of this rank in one pass, padding included."""
        return len(self.first) * self.batch_size // self._world.size

    def __iter__(self) -> Iterator[Showing]:
        """One pass, in order of the ordinals."""
        self._invalid = []
        for loader in self._loaders.values():
            loader.set_epoch(0)
        for several in zip(*self._loaders.values(), strict=True):
            batches = [batch.to(self._world.device) for batch in several]
            ordinals = batches[0].ordinals
            assert all(torch.equal(batch.ordinals, ordinals) for batch in batches[1:])
            valid = torch.stack([batch.valid for batch in batches]).all(dim=0)
            self._invalid += ordinals[(ordinals >= 0) & ~valid].tolist()
            yield Showing(
                batches=dict(zip(self._loaders, batches, strict=True)),
                ordinals=ordinals,
                labels=batches[0].labels,
                valid=valid,
            )

    def invalid(self) -> dict[str, object]:
        """The samples of the last pass that could not be shown in every view, of all ranks: their number and keys."""
        mine = torch.tensor(self._invalid, dtype=torch.int64)
        ordinals = sorted(gather_rows(self._world, mine).tolist())
        keys = keys_of(self._data.shards, ordinals[:_NAMED]) if ordinals else []
        return {"samples": len(ordinals), "keys": keys}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()


def _share_of_cores(loaders: int) -> int:
    """Decode threads of each of several loaders: the cores of this process, divided by them and the local ranks."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // (loaders * ranks))
