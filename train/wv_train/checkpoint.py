"""Checkpoints: one file that holds all that a run needs to go on, whole or absent.

Which file is written when, and in which thread, is `keeper`'s business. It loads with `torch.load(weights_only=True)`:
tensors and plain values only. There is no generator's state in it: every draw follows from (seed, step, rank).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from wv_shards import atomic_file
from wv_train.errors import CheckpointError

FORMAT_VERSION = 2
"""2: `ema` and `trainer`, rows of the ledger with their history. 1 is read too, those are then empty."""
_SINCE_FORMAT_2 = {"ema", "trainer"}


@dataclass(slots=True)
class Position:
    """Where a run stands: after `step` optimiser steps, before the next."""

    phase: int = 0
    phase_step: int = 0
    epoch: int = 0
    """Epoch of the phase's own loader."""
    epoch_step: int = 0
    """Global batches of that epoch that are done."""
    step: int = 0
    """Optimiser steps of the whole run, zero steps included."""
    samples: int = 0
    """Valid samples shown in the whole run."""


@dataclass(kw_only=True, slots=True)
class Checkpoint:
    """All of a run's state."""

    manifest_digest: str
    classes: list[str]
    recipe: dict[str, Any]
    position: dict[str, int]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    loader: dict[str, Any] | None
    """The phase's loader, None at a phase's first step."""
    ledger: Tensor
    """`Ledger.state`; empty in a best checkpoint, from which no run goes on."""
    totals: dict[str, Any]
    """Sums since the last logged row."""
    plateau: dict[str, Any]
    metrics_bytes: int
    """Length of metrics.jsonl at this point; what lies beyond is cut on resume."""
    best_top1: float | None
    torch_threads: int
    world_size: int
    ema: dict[str, Tensor] | None = None
    """Averaged weights and buffers, named as in `model`; None where none are kept."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """The trainer's own counters, plain values; the keeper's `best` among them."""
    format_version: int = field(default=FORMAT_VERSION)

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all. Raises CheckpointError (no space, no permission)."""
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch's writer turns a failed write into a RuntimeError
            reason = error.strerror if isinstance(error, OSError) else "the write failed, is the disk full?"
            before = "the checkpoint before it is still whole" if path.exists() else "there is no checkpoint before it"
            raise CheckpointError(f"{path}: not saved: {reason}; {before}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint onto the CPU, as one of today's format.

        Raises CheckpointError: missing, damaged, or of a newer format.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such checkpoint") from error
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
            raise CheckpointError(f"{path}: not a checkpoint of wv-train, or damaged") from error
        version = state.get("format_version") if isinstance(state, dict) else None
        if not isinstance(version, int):
            raise CheckpointError(f"{path}: not a checkpoint of wv-train: it has no format_version")
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: checkpoint format {version}, this wv-toolkit reads up to {FORMAT_VERSION}; upgrade wv-toolkit"
            )
        names = {item.name for item in fields(cls)} - (_SINCE_FORMAT_2 if version == 1 else set())
        if names != set(state):
            raise CheckpointError(f"{path}: damaged: expected {sorted(names)}, found {sorted(state)}")
        return cls(**{**state, "format_version": FORMAT_VERSION})

    def check_data(self, path: Path, *, manifest_digest: str, classes: Sequence[str] | None = None) -> None:
        """Raises CheckpointError if the checkpoint was made on other data or classes.

        The digest covers the classes; with `classes` the message names the first that differs.
        """
        if classes is not None and list(classes) != self.classes:
            raise CheckpointError(
                f"{path}: {_first_difference(self.classes, classes)}; "
                "give the shards that the run began with, or start a new run"
            )
        if self.manifest_digest != manifest_digest:
            raise CheckpointError(
                f"{path}: trained on the data set {self.manifest_digest}, these shards are {manifest_digest}; "
                "give the shards that the run began with, or start a new run"
            )


def _first_difference(saved: Sequence[str], found: Sequence[str]) -> str:
    if len(saved) != len(found):
        return f"trained on {len(saved):,} classes, these shards have {len(found):,}"
    class_id = next(k for k, pair in enumerate(zip(saved, found, strict=True)) if pair[0] != pair[1])
    return f"class {class_id} is {saved[class_id]!r} in the checkpoint, {found[class_id]!r} in these shards"
