"""Options of a `Loader` that do not decide its plan, checked once, before anything is opened.

Those that decide the plan are plan.py's, those of crops and effects augment.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wv_loader.augment import Augment
from wv_loader.checks import number, one_path, plain, refuse, several, truth, whole, whole_or_none
from wv_loader.dali_options import DaliOptions
from wv_loader.deliver import Transform

MAX_SIZE_PX = 16_384
_MAX_THREADS = 4096
_MAX_BYTES = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderOptions:
    """As of `Loader`, which says what they mean.

    Raises:
        OptionError: one of them can't be.
    """

    size_px: int
    train: bool
    augment: Augment | None
    crop_position: tuple[float, float]
    transform: Transform | None
    rank: int | None
    world_size: int | None
    threads: int | None
    processes: int
    prefetch: int
    read_ahead_batches: int
    read_ahead_bytes: int | None
    bad_budget: int | float | None
    dali: DaliOptions | None

    def __post_init__(self) -> None:
        if not isinstance(self.augment, Augment | None):
            raise refuse("augment", "an Augment or None", self.augment)
        if not (self.transform is None or callable(self.transform)):
            raise refuse("transform", "a function or None", self.transform)
        if not isinstance(self.dali, DaliOptions | None):
            raise refuse("dali", "DaliOptions or None", self.dali)
        place = several(self.crop_position)
        if place is None or len(place) != 2:
            raise refuse("crop_position", "two numbers, x and y", self.crop_position)
        checked = {
            "crop_position": tuple(number("crop_position", one, 0.0, 1.0) for one in place),
            "size_px": whole("size_px", self.size_px, 1, MAX_SIZE_PX),
            "train": truth("train", self.train),
            "rank": whole_or_none("rank", self.rank, 0),
            "world_size": whole_or_none("world_size", self.world_size, 1),
            "threads": whole_or_none("threads", self.threads, 1, _MAX_THREADS),
            "processes": whole("processes", self.processes, 0, _MAX_THREADS),
            "prefetch": whole("prefetch", self.prefetch, 1),
            "read_ahead_batches": whole("read_ahead_batches", self.read_ahead_batches, 0),
            "read_ahead_bytes": whole_or_none("read_ahead_bytes", self.read_ahead_bytes, 0, _MAX_BYTES),
            "bad_budget": _budget(self.bad_budget),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


Exclusion = Path | str | NDArray[np.bool_]
"""An overlay of kind `exclude` by its path, or (N,) bool: True where a sample is not to be shown."""


def exclusions(exclude: Sequence[Exclusion] | Exclusion) -> list[Path | NDArray[np.bool_]]:
    """What `exclude` names; one alone is one.

    Raises:
        OptionError: neither paths nor arrays of bool.
    """
    if isinstance(exclude, str | Path | np.ndarray):
        exclude = [exclude]
    found = several(exclude)
    if found is None:
        raise refuse("exclude", "paths", exclude)
    return [_mask(one) if isinstance(one, np.ndarray) else one_path("exclude", one) for one in found]


def _mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if mask.dtype != np.bool_ or mask.ndim != 1:
        raise refuse("exclude", "an array of bool, (N,)", f"{mask.dtype} of shape {mask.shape}")
    return mask


def balance_of(balance: float | Sequence[float]) -> tuple[float, ...]:
    """τ per epoch; `PlanOptions` looks at the numbers.

    Raises:
        OptionError: neither a number nor several.
    """
    taus = several(balance)
    if taus is not None:
        return tuple(taus)
    one = plain(balance)
    if isinstance(one, bool) or not isinstance(one, int | float):
        raise refuse("balance", "a number from 0 to 1, or one per epoch", balance)
    return (float(one),)


def _budget(budget: int | float | None) -> int | float | None:
    value = plain(budget)
    if value is None or (type(value) is int and value >= 0) or (isinstance(value, float) and 0 <= value <= 1):
        return value
    raise refuse("bad_budget", "a count, a fraction from 0.0 to 1.0, or None", budget)
