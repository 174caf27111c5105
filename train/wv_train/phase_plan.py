"""A recipe's phase with what the data make of it: its length, and what each class weighs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_loader import Loader
from wv_train.losses import class_weights, logit_prior
from wv_train.phase_overlays import PhaseOverlays
from wv_train.recipe import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasePlan:
    """A phase with what its loader says about it."""

    phase: Phase
    steps: int
    """Optimiser steps, at most where it ends at a plateau."""
    exposure: NDArray[np.float64]
    """(K,) expected shows of each class in an epoch, whatever is learned."""
    streams: int
    """Of this rank."""
    weights: NDArray[np.float32]
    """(K,) of the classes in the loss, or of the clusters in their place."""
    prior: NDArray[np.float32] | None
    """(K,) added to the logits in the loss."""
    new_head: bool = False
    """Whether it begins with a newly drawn head."""

    @property
    def outputs(self) -> int:
        """Of the head: K, or the clusters that are learned in the classes' place; so many weights there are."""
        return len(self.weights)


def plan_phase(
    phase: Phase,
    loader: Loader,
    given: NDArray[np.float64] | None = None,
    *,
    overlays: PhaseOverlays | None = None,
    new_head: bool = False,
) -> PhasePlan:
    """Length, exposures and class weights of a phase, from its fresh loader; `given`: (K,) weights of a file."""
    exposure = loader.expected_exposure()
    learned = exposure
    if overlays is not None and overlays.labels is not None:
        learned = _exposure_of(overlays.labels, overlays.outputs, loader, exposure)
    return PhasePlan(
        phase=phase,
        steps=phase.steps or phase.max_steps or (phase.epochs or 0) * len(loader),
        exposure=exposure,
        streams=loader.options.resolved_streams // loader.world_size,
        weights=class_weights(phase.class_weights, learned, given),
        prior=logit_prior(phase.logit_prior, learned, phase.logit_prior_strength),
        new_head=new_head,
    )


def _exposure_of(
    labels: NDArray[np.int32], outputs: int, loader: Loader, exposure: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(outputs,) expected shows an epoch of each other label: of its samples, each as often as its class's are."""
    shows = exposure / np.maximum(loader.class_counts, 1)  # (K,) of one sample
    excluded = loader.plan.layout.excluded
    shown = labels >= 0 if excluded is None else ~excluded & (labels >= 0)
    exposures = np.bincount(labels[shown], weights=shows[loader.labels[shown]], minlength=outputs)
    return exposures.astype(np.float64, copy=False)
