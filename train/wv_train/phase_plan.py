"""A recipe's phase with what the data make of it: its length, and what each class weighs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_loader import Loader
from wv_train.losses import class_weights, logit_prior
from wv_train.recipe import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasePlan:
    """A phase with what its loader says about it."""

    phase: Phase
    steps: int
    """Optimiser steps, at most where it ends at a plateau."""
    exposure: NDArray[np.float64]
    """(K,) expected shows of each class in an epoch."""
    streams: int
    """Of this rank."""
    weights: NDArray[np.float32]
    """(K,) of the classes in the loss."""
    prior: NDArray[np.float32] | None
    """(K,) added to the logits in the loss."""


def plan_phase(phase: Phase, loader: Loader, given: NDArray[np.float64] | None = None) -> PhasePlan:
    """Length, exposures and class weights of a phase, from its fresh loader; `given`: (K,) weights of a file."""
    exposure = loader.expected_exposure()
    return PhasePlan(
        phase=phase,
        steps=phase.steps or phase.max_steps or (phase.epochs or 0) * len(loader),
        exposure=exposure,
        streams=loader.options.resolved_streams // loader.world_size,
        weights=class_weights(phase.class_weights, exposure, given),
        prior=logit_prior(phase.logit_prior, exposure, phase.logit_prior_strength),
    )
