"""Recipes: what a training run does, as frozen values read from TOML.

A recipe is a model, a batch and a list of named phases. Shipped recipes lie in `recipes/`; a path names one's own. How
a key is turned into tensors is the business of the file that uses it.
"""

import tomllib
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from wv_loader import Augment
from wv_train.errors import FieldError, RecipeError
from wv_train.gate import GateConfig
from wv_train.losses import ClassWeights
from wv_train.models import own_size_px
from wv_train.table import close_matches, read_table, set_key


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """SGD's settings, the same in all phases."""

    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    """Not applied to biases and normalisation layers."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise FieldError("momentum", "0 <= momentum < 1", self.momentum)
        if self.weight_decay < 0:
            raise FieldError("weight_decay", "0 or more", self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise FieldError("nesterov", "false where momentum is 0", self.nesterov)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateauConfig:
    """When the loss counts as stable: see `plateau.PlateauDetector`."""

    window_steps: int = 500
    """Steps whose mean loss is compared with the best window's so far."""
    patience_windows: int = 2
    """Windows in a row without enough progress that end the phase."""
    min_drop_fraction: float = 0.02
    """A window makes progress if its loss is lower than the best by at least this fraction of the best."""

    def __post_init__(self) -> None:
        if self.window_steps < 1:
            raise FieldError("window_steps", "1 or more", self.window_steps)
        if self.patience_windows < 1:
            raise FieldError("patience_windows", "1 or more", self.patience_windows)
        if not 0.0 <= self.min_drop_fraction < 1.0:
            raise FieldError("min_drop_fraction", "a fraction in [0, 1)", self.min_drop_fraction)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One stretch of training with its own loader, learning rate, gate and balance."""

    name: str
    lr: float
    """Peak learning rate for the global batch."""
    steps: int | None = None
    """Length in optimiser steps. Exactly one of `steps`, `epochs` and `until` is given."""
    epochs: int | None = None
    """Length in multiples of the phase's first epoch, in global batches."""
    until: Literal["plateau"] | None = None
    """End when the loss is stable, after `max_steps` at the latest."""
    max_steps: int | None = None
    schedule: Literal["constant", "step", "cosine"] = "constant"
    milestones: tuple[float, ...] = ()
    """`step`: fractions of the phase's length at which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    warmup_steps: int = 0
    """Steps over which the rate rises linearly."""
    backbone_factor: float = 1.0
    """The backbone's rate is lr · backbone_factor; 0 freezes its weights."""
    head_factor: float = 1.0
    gate: GateConfig | None = None
    """None: every sample teaches."""
    balance: float = 1.0
    """τ of the sampling: 1 as collected, 0 all classes alike."""
    class_weights: ClassWeights = "none"
    """Weight of a class from its expected exposure after sampling."""
    label_smoothing: float = 0.0
    denominator: Literal["all", "kept"] = "all"
    """What the gated loss is divided by: the weight of the whole batch (the effective rate shrinks with the kept
    fraction) or of the kept samples (it does not)."""
    plateau: PlateauConfig = field(default_factory=PlateauConfig)

    def __post_init__(self) -> None:
        if not self.name or "." in self.name:
            raise FieldError("name", "a name without dots", self.name)
        given = [key for key in ("steps", "epochs", "until") if getattr(self, key) is not None]
        if len(given) != 1:
            raise FieldError("steps", "exactly one of steps, epochs and until", " and ".join(given) or "none of them")
        if (self.until is None) != (self.max_steps is None):
            raise FieldError("max_steps", 'a length together with until = "plateau", and only then', self.max_steps)
        for key in ("steps", "epochs", "max_steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise FieldError(key, "1 or more", value)
        for key in ("lr", "gamma", "backbone_factor", "head_factor", "warmup_steps"):
            if getattr(self, key) < 0:
                raise FieldError(key, "0 or more", getattr(self, key))
        for key, top in (("balance", 1.0), ("label_smoothing", 0.999)):
            if not 0.0 <= getattr(self, key) <= top:
                raise FieldError(key, f"0 to {top:g}", getattr(self, key))
        if (self.schedule == "step") != bool(self.milestones):
            raise FieldError("milestones", 'fractions together with schedule = "step", and only then', self.milestones)
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise FieldError("milestones", "rising fractions of the phase between 0 and 1", self.milestones)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a run's weights, but for the data."""

    model: str
    """`wv_resnet_…` (see `models`) or any timm name."""
    batch_size: int
    """Global: samples an optimiser step, over all ranks."""
    phases: tuple[Phase, ...]
    size_px: int = 0
    """Side of the square that the model sees. 0 or left out: the model's own, which takes its place when it is read."""
    pretrained: str | None = None
    """File of weights to start from (see `weights`)."""
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_repeat: float = 16.0
    """No class is shown more often than this many times its size in an epoch."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision on a GPU; auto is bf16 where the GPU has it, else fp16. A CPU computes in float32."""
    validate_every_epochs: int = 1
    """0: not by epochs. Each phase's end is validated anyway."""
    validate_every_steps: int = 0
    """0: not by steps."""
    checkpoint_every_steps: int = 0
    """0: not by steps. Each phase's end is saved anyway."""
    checkpoint_every_minutes: float = 10.0
    log_every_steps: int = 20

    def __post_init__(self) -> None:
        for key in ("batch_size", "log_every_steps"):
            if getattr(self, key) < 1:
                raise FieldError(key, "1 or more", getattr(self, key))
        for key in ("seed", "size_px", "validate_every_epochs", "validate_every_steps", "checkpoint_every_steps"):
            if getattr(self, key) < 0:
                raise FieldError(key, "0 or more", getattr(self, key))
        if self.checkpoint_every_minutes <= 0:
            raise FieldError("checkpoint_every_minutes", "more than 0", self.checkpoint_every_minutes)
        if self.max_repeat < 1:
            raise FieldError("max_repeat", "1 or more", self.max_repeat)
        if not self.phases:
            raise FieldError("phases", "one or more [[phases]]", ())
        names = [phase.name for phase in self.phases]
        if twice := [name for name in names if names.count(name) > 1]:
            raise FieldError("phases", "a name of its own for each phase", twice[0])


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("wv_train") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_file: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a shipped recipe by name, or a TOML file by path, and apply `a.b.c=value` overrides.

    Raises RecipeError.
    """
    table = _read_toml(name_or_file)
    for assignment in overrides:
        set_key(table, assignment)
    return recipe_from_table(table)


def recipe_from_table(table: dict[str, Any]) -> Recipe:
    """The recipe that a TOML table, or a run's saved recipe, says, with the size of its images.

    Raises RecipeError; ModelError where the size is left out and nobody knows the model.
    """
    recipe = read_table(Recipe, table)
    return recipe if recipe.size_px else replace(recipe, size_px=own_size_px(recipe.model))


def _read_toml(name_or_file: str) -> dict[str, Any]:
    path = Path(name_or_file)
    try:
        if path.suffix == ".toml" or path.is_file():
            text = path.read_text(encoding="utf-8")
        elif name_or_file in recipe_names():
            text = (resources.files("wv_train") / "recipes" / f"{name_or_file}.toml").read_text(encoding="utf-8")
        else:
            known = recipe_names()
            hint = close_matches(name_or_file, known) or f"; shipped: {', '.join(known)}"
            raise RecipeError(f"recipe {name_or_file}: neither a shipped recipe nor a file{hint}")
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name_or_file}: not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{name_or_file}: cannot be read: {reason}") from error
