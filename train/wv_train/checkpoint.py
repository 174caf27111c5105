"""Checkpoints: one file that holds all that a run needs to go on, whole or absent.

Loads with `torch.load(weights_only=True)`: tensors and plain values only. There is no generator's state in it: every
draw follows from (seed, step, rank).
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from wv_shards import atomic_file
from wv_train.errors import CheckpointError

FORMAT_VERSION = 1


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
    ema: dict[str, Tensor] | None = None
    """The averaged weights."""
    trainer: dict[str, Any]
    """The trainer's own counters."""
    loader: dict[str, Any] | None
    """The phase's loader, None at a phase's first step."""
    ledger: Tensor
    """`Ledger.state`."""
    totals: dict[str, Any]
    """Sums since the last logged row."""
    plateau: dict[str, Any]
    metrics_bytes: int
    """Length of metrics.jsonl at this point; what lies beyond is cut on resume."""
    best_top1: float | None
    torch_threads: int
    world_size: int
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
            raise CheckpointError(f"{path}: not saved: {reason}; the checkpoint before it is still whole") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint onto the CPU. Raises CheckpointError: missing, damaged, or of a newer format."""
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
        names = {item.name for item in fields(cls)}
        if names != set(state):
            raise CheckpointError(f"{path}: damaged: expected {sorted(names)}, found {sorted(state)}")
        return cls(**state)

    def check_data(self, path: Path, *, manifest_digest: str) -> None:
        """Raises CheckpointError if the checkpoint was made on other data; the digest covers the classes too."""
        if self.manifest_digest != manifest_digest:
            raise CheckpointError(
                f"{path}: trained on the data set {self.manifest_digest}, these shards are {manifest_digest}; "
                "give the shards that the run began with, or start a new run"
            )
