"""A run's weights, ready to look at images: for `wv-eval` and `wv-predict`. Trains nothing, opens no data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from wv_train.checkpoint import Checkpoint
from wv_train.errors import CheckpointError
from wv_train.models import make_model
from wv_train.recipe import Recipe, recipe_from_table
from wv_train.run_directory import RunDirectory
from wv_train.table import first_difference, to_table

Weights = Literal["auto", "model", "ema"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """One checkpoint of a run, as a model in evaluation mode."""

    run: RunDirectory
    recipe: Recipe
    classes: list[str]
    class_counts: list[int]
    """(K,) samples of the training set."""
    class_bands: list[int | None]
    model: nn.Module
    checkpoint: str
    """"last", "best" or a path."""
    weights: Literal["model", "ema"]
    """Which of the checkpoint's weights these are: the optimiser's, or their moving average."""
    step: int
    """Optimiser steps that they have seen."""

    def facts(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "run": str(self.run.path),
            "checkpoint": self.checkpoint,
            "weights": self.weights,
            "step": self.step,
            "model": self.recipe.model,
            "size_px": self.recipe.size_px,
        }


def load_trained(path: Path, *, checkpoint: str, weights: Weights, device: torch.device) -> Trained:
    """Read a run.

    Args:
        path: folder of the run.
        checkpoint: "last", "best", or the path of a checkpoint file of the run, as seen from here or from its folder of
            checkpoints.
        weights: "auto" takes the moving average where the checkpoint has one.
        device: where the model goes.

    Raises:
        TrainError: no such run or checkpoint, one of another run, or without the weights asked for.
    """
    run = RunDirectory(path)
    info = run.read_info()
    recipe = recipe_from_table(info["recipe"])
    file = _checkpoint_file(run, checkpoint)
    state = Checkpoint.load(file)
    if state.manifest_digest != info["manifest_digest"] or state.classes != info["classes"]:
        raise CheckpointError(f"{file}: a checkpoint of another run than {path}: it was trained on other data")
    if difference := first_difference(to_table(recipe), to_table(recipe_from_table(state.recipe))):
        key, mine, its = difference
        raise CheckpointError(f"{file}: a checkpoint of another run than {path}: {key} is {its!r} there, {mine!r} here")
    at = state.position["phase"]
    if at < len(recipe.phases) and (labels := recipe.phases[at].labels) is not None:
        raise CheckpointError(
            f"{file}: taken in phase {recipe.phases[at].name}, which learns the clusters of {labels} and no classes; "
            "wait for a later phase, or resume the run"
        )
    ema = state.ema
    if weights == "ema" and ema is None:
        raise CheckpointError(f"{file}: has no moving average of the weights; take --weights model")
    taken: Literal["model", "ema"] = "model" if weights == "model" or ema is None else "ema"
    model = make_model(recipe.model, len(state.classes))
    try:
        model.load_state_dict(state.model if taken == "model" or ema is None else {**state.model, **ema})
    except RuntimeError as error:  # other parameters than the recipe's model has
        raise CheckpointError(
            f"{file}: not weights of {recipe.model}, the model of {path}: is it another run's?"
        ) from error
    return Trained(
        run=run,
        recipe=recipe,
        classes=info["classes"],
        class_counts=info["class_counts"],
        class_bands=info["class_bands"],
        model=model.to(device).to(memory_format=torch.channels_last).eval(),  # as the loader's images
        checkpoint=checkpoint,
        weights=taken,
        step=state.position["step"],
    )


def _checkpoint_file(run: RunDirectory, checkpoint: str) -> Path:
    if checkpoint in ("last", "best"):
        return run.last if checkpoint == "last" else run.best
    file = Path(checkpoint)
    beside = run.last.parent / file
    return beside if not file.exists() and beside.exists() else file
