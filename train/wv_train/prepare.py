"""Opens every loader of a run once and makes its model: all that can be refused is, before anything is written."""

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wv_loader import Loader, engine_line
from wv_shards import Dataset
from wv_train.checkpoint import Checkpoint
from wv_train.data import (
    DataConfig,
    class_counts,
    open_phase_loader,
    open_phase_overlays,
    open_validation_loader,
    read_class_weights,
)
from wv_train.distributed import World
from wv_train.holdout import HeldOut
from wv_train.learner import with_synchronized_batch_norm
from wv_train.models import check_model, make_model
from wv_train.new_head import draw_head
from wv_train.phase_plan import PhasePlan, plan_phase
from wv_train.recipe import Recipe
from wv_train.truth import read_truth
from wv_train.weights import load_weights, read_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the training shards are, read once through the first phase's loader."""

    samples: int
    classes: list[str]
    class_counts: list[int]
    class_bands: list[int | None]
    manifest_digest: str
    engine: str
    engine_description: str
    """Name and version of what decodes, for a person."""
    engine_line: str
    """The same with the reason for it."""
    right: NDArray[np.int8] | None = None
    """(N,) as `read_truth` gives it, on rank 0 alone, which writes the metrics; None without a truth."""
    pretrained_digest: str | None = None
    """Of the file of weights that the model started from."""
    pretrained_line: str = ""
    """What was taken from it, for a person."""
    held_out: HeldOut | None = None
    """Where a part of the training shards is the validation set."""
    overlays: dict[str, str] = field(default_factory=dict)
    """Name of each overlay that a phase asks for → its checksum."""


def prepare(
    recipe: Recipe,
    data: DataConfig,
    world: World,
    *,
    truth: Path | None = None,
    checkpoint: Checkpoint | None = None,
    saved_at: Path | None = None,
) -> tuple[nn.Module, list[PhasePlan], Facts]:
    """The model, what its phases do, and what the data is.

    Args:
        recipe: what to do.
        data: with what.
        world: this process among the ranks.
        truth: what is known of the labels; read on rank 0.
        checkpoint: where to go on; None at a run's begin.
        saved_at: its file, for messages.

    Raises TrainError, LoaderError or ShardsError where something does not fit, as shards that are not the checkpoint's.
    """
    plans = []
    facts: Facts | None = None
    data = replace(data, quarantine=None)  # its folder is not there yet
    checksums: dict[str, str] = {}
    for index, phase in enumerate(recipe.phases):
        overlays = open_phase_overlays(data, recipe, index)
        checksums |= overlays.checksums
        with closing(open_phase_loader(data, recipe, index, world, overlays)) as loader:
            facts = facts or _facts(loader, data)
            path = phase.class_weights_file
            given = read_class_weights(Path(path), facts.classes) if path else None
            new_head = recipe.draws_head(index)
            plans.append(plan_phase(phase, loader, given, overlays=overlays, new_head=new_head))
        del overlays  # of millions of samples
    assert facts is not None  # a recipe has a phase
    facts = replace(facts, overlays=checksums)
    if checkpoint is not None:
        assert saved_at is not None
        checkpoint.check_data(saved_at, manifest_digest=facts.manifest_digest, classes=facts.classes)
    if truth is not None and world.is_main:
        with Dataset.open(data.shards) as dataset:
            facts = replace(facts, right=read_truth(truth, dataset))
    if data.validates:
        with closing(open_validation(recipe, data, world, facts.classes)) as validation:
            if data.holdout is not None:
                facts = replace(facts, held_out=HeldOut.of(data.holdout, facts.class_counts, validation))
    torch.manual_seed(recipe.seed)
    first = min(checkpoint.position["phase"], len(plans) - 1) if checkpoint is not None else 0
    outputs, names = plans[first].outputs, facts.classes
    if recipe.phases[first].labels is not None:
        names = [f"cluster {number}" for number in range(outputs)]  # no file has a head of these
    model = make_model(recipe.model, outputs)
    if recipe.pretrained and checkpoint is None:  # which holds all weights
        weights = read_weights(Path(recipe.pretrained))
        line = load_weights(model, weights, names)
        facts = replace(facts, pretrained_digest=weights.digest, pretrained_line=line)
    if plans[0].new_head and checkpoint is None:
        draw_head(model, recipe.model, outputs, seed=recipe.seed, phase_index=0)
    model = model.to(world.device).to(memory_format=torch.channels_last)  # as the loader's images
    if recipe.sync_batch_norm:
        model = with_synchronized_batch_norm(model, world)
    check_model(model, recipe.model, size_px=recipe.size_px, classes=outputs, device=world.device)
    return model, plans, facts


def open_validation(recipe: Recipe, data: DataConfig, world: World, classes: list[str]) -> Loader:
    """Of the validation set, or of the part of the training shards that is held out."""
    shards, exclude = data.validated_on()
    return open_validation_loader(
        shards,
        recipe,
        world,
        classes=classes,
        exclude=exclude,
        engine=data.engine,
        threads=data.loader_threads,
        bad_budget=data.bad_budget,
    )


def _facts(loader: Loader, data: DataConfig) -> Facts:
    return Facts(
        samples=loader.num_samples,
        classes=list(loader.class_names),
        class_counts=class_counts(data).tolist(),
        class_bands=list(loader.class_bands),
        manifest_digest=loader.manifest_digest,
        engine=loader.engine.name,
        engine_description=loader.engine.description,
        engine_line=engine_line(loader.engine),
    )
