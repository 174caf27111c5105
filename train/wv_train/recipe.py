"""Recipes: what a training run does, as frozen values read from TOML.

A recipe is a model, a batch and a list of named phases. Shipped recipes lie in `recipes/`; a path names one's own. How
a key is turned into tensors is the business of the file that uses it.
"""

import copy
import tomllib
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from wv_loader import Augment
from wv_train.curriculum import CurriculumConfig
from wv_train.errors import FieldError, RecipeError
from wv_train.gate import GateConfig
from wv_train.losses import ClassWeights, LogitPrior
from wv_train.models import own_size_px
from wv_train.robust_losses import LossConfig
from wv_train.table import close_matches, read_table, set_key
from wv_train.teacher import TeacherConfig
from wv_train.toml_lines import key_lines, line_of


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """SGD's settings, the same in all phases."""

    momentum: float = 0.9
    """Share of the last step's direction that is kept, in [0, 1)."""
    nesterov: bool = True
    """Look ahead along the momentum (Nesterov's form) before the gradient is added."""
    weight_decay: float = 5e-4
    """Added to the gradient, times the weight; not to that of biases and normalisation layers."""

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
    """Optimiser steps whose mean loss is compared with the best window's so far."""
    patience_windows: int = 3
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
    """Of the phase, without dots: what `--set phases.NAME.…`, metrics and reports call it."""
    lr: float
    """Peak learning rate, for the global batch: not scaled by the number of ranks."""
    steps: int | None = None
    """Length in optimiser steps. Exactly one of `steps`, `epochs` and `until` is given."""
    epochs: int | None = None
    """Length in multiples of the phase's first epoch, in global batches: a number of steps. Where the gate skips
    samples epochs get shorter, and more of them fit in."""
    until: Literal["plateau"] | None = None
    """End when the loss is stable (see `plateau`), after `max_steps` at the latest."""
    max_steps: int | None = None
    """Optimiser steps after which a phase with `until` ends in any case; schedule and gate are laid over this
    length."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """How the rate falls: not at all, in steps at `milestones`, or along half a cosine to 0 (Loshchilov and Hutter,
    2017)."""
    milestones: tuple[float, ...] = ()
    """`step`: fractions of the phase's length at which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """Factor of the rate at each milestone (Sun et al.: 0.1)."""
    warmup_steps: int = 0
    """Optimiser steps over which the rate rises linearly from lr / warmup_steps (Goyal et al., 2017); it lies over the
    schedule's beginning."""
    backbone_factor: float = 1.0
    """The backbone's rate is lr · backbone_factor; 0 freezes it: no gradient, its normalisation layers as in
    evaluation."""
    head_factor: float = 1.0
    """The head's rate is lr · head_factor. Separate rates for backbone and head: Sun et al., fine-tuning."""
    gate: GateConfig | None = None
    """Table `[phases.gate]`; without it every sample teaches."""
    balance: float = 1.0
    """τ of the sampling: a class of n samples is shown in proportion to n^τ. 1: as collected, 0: all classes alike."""
    class_weights: ClassWeights = "none"
    """Weight of a class in the loss, from its expected exposure E after sampling: `inverse` 1/E, `sqrt` 1/√E,
    `effective` (1−β)/(1−β^E) with β = 0.999 (Cui et al., 2019); `file`: from `class_weights_file`. Their mean over what
    is shown is 1. As they are functions of what sampling leaves, they may stand beside `balance`."""
    class_weights_file: str | None = None
    """Path of a CSV with the columns `class` (name or id) and `weight`, every class once; relative to where the command
    runs."""
    logit_prior: LogitPrior = "none"
    """Adds the logarithm of the class's share of the exposure to the logits in the loss: `adjusted` times
    `logit_prior_strength` (Menon et al., 2021), `balanced_softmax` times 1 (Ren et al., 2020)."""
    logit_prior_strength: float = 1.0
    """Factor of the prior with `adjusted`: τ of Menon et al., no unit."""
    correct_twice: bool = False
    """Allow two corrections of the same imbalance: class weights with a logit prior, or weights from a file (which do
    not know the sampling) with `balance` below 1."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Table `[phases.loss]`: cross-entropy, or a loss that learns less from wrong labels."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, 0 … 0.999 (Szegedy et al., 2016); of cross-entropy
    alone."""
    mixup_alpha: float = 0.0
    """α of the Beta distribution that mixup draws its shares from (Zhang et al., 2018); 0: none. Partners are of the
    same stream. Not beside elr, which remembers what was said of a sample by itself."""
    denominator: Literal["all", "kept"] = "all"
    """What the gated loss is divided by: the weight of the whole batch (the effective rate shrinks with the kept
    fraction) or of the kept samples (it does not)."""
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    """Table `[phases.plateau]`: when the loss counts as stable."""
    curriculum: CurriculumConfig | None = None
    """Table `[phases.curriculum]`: which tiers teach; without it all samples do, alike."""
    teacher: TeacherConfig | None = None
    """Table `[phases.teacher]`: soft labels; without it the labels as given."""
    labels: str | None = None
    """Name of an overlay of kind `clusters`, in the folder of `--overlays`, whose clusters are learned in place of the
    classes (Sun et al.: pre-training on clusters). Samples without one are left out, nothing is validated, and ledger
    and guard begin anew when the labels change. The last phase learns the classes."""
    new_head: bool = False
    """Begin with a newly drawn head, momentum and averaged weights. So does a phase that has other labels than the one
    before it."""

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
        for key in (
            *("lr", "gamma", "backbone_factor", "head_factor", "warmup_steps"),
            *("logit_prior_strength", "mixup_alpha"),
        ):
            if getattr(self, key) < 0:
                raise FieldError(key, "0 or more", getattr(self, key))
        for key, top in (("balance", 1.0), ("label_smoothing", 0.999)):
            if not 0.0 <= getattr(self, key) <= top:
                raise FieldError(key, f"0 to {top:g}", getattr(self, key))
        if (self.schedule == "step") != bool(self.milestones):
            raise FieldError("milestones", 'fractions together with schedule = "step", and only then', self.milestones)
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise FieldError("milestones", "rising fractions of the phase between 0 and 1", self.milestones)
        if (self.class_weights == "file") != (self.class_weights_file is not None):
            raise FieldError(
                "class_weights_file",
                'a path together with class_weights = "file", and only then',
                self.class_weights_file,
            )
        if self.label_smoothing and self.loss.kind != "cross_entropy":
            raise FieldError("label_smoothing", f"0 beside the loss {self.loss.kind}", self.label_smoothing)
        if self.mixup_alpha and self.loss.kind == "elr":
            raise FieldError(
                "mixup_alpha", "0 beside the loss elr, whose memory is of unblended pictures", self.mixup_alpha
            )
        self._check_overlays()
        if self.correct_twice:
            return
        if self.class_weights != "none" and self.logit_prior != "none":
            raise FieldError(
                "logit_prior",
                "none beside class_weights (or correct_twice = true): both correct what sampling left",
                self.logit_prior,
            )
        if self.class_weights == "file" and self.balance < 1.0:
            raise FieldError(
                "balance",
                "1 beside weights from a file, which do not know the sampling (or correct_twice = true)",
                self.balance,
            )

    def _check_overlays(self) -> None:
        if self.teacher is not None and self.loss.kind != "cross_entropy":
            raise FieldError("teacher", f"none beside the loss {self.loss.kind}, which is of hard labels", "one")
        if self.labels == "":
            raise FieldError("labels", "an overlay's name", self.labels)
        if self.labels is None:
            return
        if self.teacher is not None:
            raise FieldError("teacher", "none in a phase with other labels: a teacher's opinion is of classes", "one")
        if self.gate is not None and self.gate.skip_visits:
            raise FieldError("gate.skip_visits", "0 in a phase with other labels", self.gate.skip_visits)
        if self.class_weights == "file":
            raise FieldError("class_weights", "not file in a phase with other labels", self.class_weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a run's weights, but for the data."""

    model: str
    """`wv_resnet_…` or any timm name; see docs/models.md."""
    batch_size: int
    """Global: samples an optimiser step, over all ranks."""
    phases: tuple[Phase, ...]
    """Tables `[[phases]]`, done in their order."""
    size_px: int = 0
    """Side of the square that the model sees, in pixels. 0 or left out: the model's own, which then takes its place."""
    pretrained: str | None = None
    """File of weights to start from; `--pretrained` sets it too."""
    seed: int = 0
    """Of initial weights, order, rebalancing, crops and dropout; `--seed` sets it too."""
    augment: Augment = field(default_factory=Augment)
    """Table `[augment]`: what happens to images, in all phases."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Table `[optimizer]`."""
    max_repeat: float = 16.0
    """No class is shown more often than this many times its size in an epoch."""
    streams: int | None = None
    """Sequences that an epoch is cut into (V of the plan): the number of ranks must divide it, and it the batch.
    Without it the batch's largest divisor up to 64; with mixup up to a quarter of the batch, for partners' sake."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision. auto: on a GPU bf16 where it has that, else fp16; on a CPU float32."""
    sync_batch_norm: bool = False
    """Batch norm's statistics over all ranks' samples; GPUs only."""
    clip_norm: float = 0.0
    """Largest norm of the gradient over all parameters, above which it is scaled down; 0: any."""
    ema_decay: float = 0.0
    """Decay per step of an average of the weights that is evaluated beside them, in [0, 1); 0: none. Less at first."""
    max_nonfinite_steps: int = 3
    """Steps in a row whose loss is NaN or infinite, which end the run; each of them changes nothing."""
    keep_best: int = 1
    """Checkpoints kept of the best validations; 0: none."""
    validate_every_epochs: int = 1
    """Epochs of a phase from one validation to the next; 0: not by epochs. Each phase's end is validated anyway."""
    validate_every_steps: int = 0
    """Optimiser steps from one validation to the next; 0: not by steps."""
    checkpoint_every_steps: int = 0
    """Optimiser steps from one checkpoint to the next; 0: not by steps. Each phase's end is saved anyway."""
    checkpoint_every_minutes: float = 10.0
    """Minutes after which the next step is followed by a checkpoint."""
    log_every_steps: int = 20
    """Optimiser steps per row of metrics.jsonl."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "log_every_steps", "max_nonfinite_steps"):
            if getattr(self, key) < 1:
                raise FieldError(key, "1 or more", getattr(self, key))
        every = ("validate_every_epochs", "validate_every_steps", "checkpoint_every_steps")
        for key in ("seed", "size_px", "keep_best", "clip_norm", *every):
            if getattr(self, key) < 0:
                raise FieldError(key, "0 or more", getattr(self, key))
        if self.seed >= 1 << 63:
            raise FieldError("seed", "less than 2^63", self.seed)
        if not 0.0 <= self.ema_decay < 1.0:
            raise FieldError("ema_decay", "0 <= ema_decay < 1", self.ema_decay)
        if self.streams is not None and (self.streams < 1 or self.batch_size % self.streams):
            raise FieldError("streams", f"a divisor of batch_size ({self.batch_size})", self.streams)
        if self.checkpoint_every_minutes <= 0:
            raise FieldError("checkpoint_every_minutes", "more than 0", self.checkpoint_every_minutes)
        if self.max_repeat < 1:
            raise FieldError("max_repeat", "1 or more", self.max_repeat)
        if not self.phases:
            raise FieldError("phases", "one or more [[phases]]", ())
        names = [phase.name for phase in self.phases]
        if twice := [name for name in names if names.count(name) > 1]:
            raise FieldError("phases", "a name of its own for each phase", twice[0])
        sizes = {phase.loss.elr_top_k for phase in self.phases if phase.loss.kind == "elr"}
        if len(sizes) > 1:
            raise FieldError("phases", "one loss.elr_top_k in all phases with elr: they share a memory", sorted(sizes))
        if (labels := self.phases[-1].labels) is not None:
            raise FieldError("phases", "a last phase that learns the classes", f"labels = {labels!r}")
        mixed = [phase.name for phase in self.phases if phase.mixup_alpha > 0]
        if mixed and self.batch_size // (self.resolved_streams or 1) < 2:
            raise FieldError(
                "streams", f"at most half of batch_size ({self.batch_size}), so that mixup finds partners", self.streams
            )

    @property
    def elr(self) -> LossConfig | None:
        """The loss of its phases with elr, which share a memory; None: there is none."""
        return next((phase.loss for phase in self.phases if phase.loss.kind == "elr"), None)

    def draws_head(self, index: int) -> bool:
        """Whether a phase begins with a newly drawn head: asked to, or because its labels are not those before it."""
        phase = self.phases[index]
        return phase.new_head or (index > 0 and phase.labels != self.phases[index - 1].labels)

    @property
    def resolved_streams(self) -> int | None:
        """What the loader is asked for: `streams`, or with mixup the batch's largest divisor to 64 and its quarter."""
        if self.streams is not None or not any(phase.mixup_alpha > 0 for phase in self.phases):
            return self.streams
        most = max(1, min(64, self.batch_size // 4))
        return max(count for count in range(1, most + 1) if self.batch_size % count == 0)


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("wv_train") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_file: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a shipped recipe by name, or a TOML file by path, and apply `a.b.c=value` overrides.

    Raises RecipeError: `FILE:LINE: KEY: …`, or `--set KEY=VALUE: KEY: …` where an override is to blame.
    """
    where, text = _read_text(name_or_file)
    try:
        table, lines = tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}") from error
    return recipe_from_table(table, overrides, source=RecipeSource(where=where, lines=lines))


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeSource:
    """Where a table comes from, for errors."""

    where: str
    """The file as the user named it, or a shipped recipe's."""
    lines: dict[str, int]
    """Key's path → line."""

    def place(self, key_path: str) -> str:
        """`FILE:LINE: `, without a line that is not known."""
        line = line_of(self.lines, key_path)
        return f"{self.where}: " if line is None else f"{self.where}:{line}: "


def recipe_from_table(
    table: dict[str, Any], overrides: tuple[str, ...] = (), *, source: RecipeSource | None = None
) -> Recipe:
    """The recipe that a TOML table, or a run's saved recipe, says, after `a.b.c=value` overrides.

    Raises RecipeError, which names the override or, where the source is given, file and line; ModelError where the size
    is left out and nobody knows the model.
    """
    changed = copy.deepcopy(table)
    for assignment in overrides:
        set_key(changed, assignment)
    try:
        recipe = read_table(Recipe, changed)
    except RecipeError as error:
        blamed = _blamed_override(table, overrides, error)
        start = f"--set {blamed}: " if blamed else source.place(error.key_path) if source else ""
        raise RecipeError(f"{start}{error}", key_path=error.key_path) from error
    return recipe if recipe.size_px else replace(recipe, size_px=own_size_px(recipe.model))


def _blamed_override(table: dict[str, Any], overrides: tuple[str, ...], error: RecipeError) -> str | None:
    """The override that an error comes from; None where the table is wrong without any.

    The last one that sets the key, something around it or in it; else the last one in the same table; else the last.
    """
    before: RecipeError | None = None
    try:
        read_table(Recipe, table)
    except RecipeError as without:
        before = without
    if not overrides or str(before) == str(error):
        return None
    found = error.key_path
    paths = {assignment: assignment.partition("=")[0].strip() for assignment in overrides}
    touching = [a for a, path in paths.items() if _within(path, found) or _within(found, path)]
    beside = [a for a, path in paths.items() if path.rpartition(".")[0] == found.rpartition(".")[0]]
    if touching or before is None:
        return (touching or beside or list(overrides))[-1]
    return None


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


def _read_text(name_or_file: str) -> tuple[str, str]:
    """What to call it in errors, and its text."""
    path = Path(name_or_file)
    try:
        if path.suffix == ".toml" or path.is_file():
            return name_or_file, path.read_text(encoding="utf-8")
        if name_or_file in recipe_names():
            file = f"{name_or_file}.toml"
            return file, (resources.files("wv_train") / "recipes" / file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{name_or_file}: cannot be read: {reason}") from error
    known = recipe_names()
    hint = close_matches(name_or_file, known) or f"; shipped: {', '.join(known)}"
    raise RecipeError(f"recipe {name_or_file}: neither a shipped recipe nor a file{hint}")
