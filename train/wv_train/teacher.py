"""Soft labels: a sample learns its own label and what a teacher believes of it.

After Li et al., "Learning from Noisy Labels with Distillation", ICCV 2017: the target is ŷ = λ·y + (1 − λ)·s with y the
sample's label and s the teacher's softmax. The overlay of kind `teacher` keeps the k largest of it; what they leave is
spread evenly over all other classes. A sample that the teacher says nothing of (class −1 first) has s = y.

A target is kept sparse: ŷ_c = rest + the shares of the places that name c.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_train.errors import FieldError


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """Where a phase's soft labels come from."""

    overlay: str = "teacher"
    """Name of an overlay of kind `teacher`, in the folder of `--overlays`; `wv-annotate teacher` makes it."""
    label_share: float = 0.5
    """λ: share of the sample's own label in its target, 0 to 1; the rest is the teacher's."""

    def __post_init__(self) -> None:
        if not self.overlay:
            raise FieldError("overlay", "an overlay's name", self.overlay)
        if not 0.0 <= self.label_share <= 1.0:
            raise FieldError("label_share", "0 to 1", self.label_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftTargets:
    """Of n samples, on their device."""

    ids: Tensor
    """(n, k + 1) int64 class of each place; the last is the sample's own label. Classes may stand there twice."""
    shares: Tensor
    """(n, k + 1) float32 that the place adds to its class."""
    rest: Tensor
    """(n,) float32 of every class."""

    @classmethod
    def of(cls, rows: NDArray[Any], labels: NDArray[np.int64], *, label_share: float, classes: int) -> Self:
        """From (n,) rows of the overlay and the samples' labels, (n,); on the host."""
        ids = rows["class_id"].astype(np.int64)  # (n, k)
        said = ids >= 0
        probabilities = np.where(said, rows["probability"], 0).astype(np.float64)
        total, others = probabilities.sum(axis=1), classes - said.sum(axis=1)
        # Float16 may sum to a little more than 1; where all classes are said nothing is left over.
        scale = np.where((total > 1.0) | ((others == 0) & (total > 0)), 1.0 / np.where(total > 0, total, 1.0), 1.0)
        probabilities *= scale[:, None]
        rest = np.where(others > 0, np.maximum(1.0 - probabilities.sum(axis=1), 0.0) / np.maximum(others, 1), 0.0)
        silent = ~said[:, 0]
        own = np.where(silent, 1.0, label_share)
        rest = rest * (1.0 - own)
        shares = np.where(said, probabilities * (1.0 - own)[:, None] - rest[:, None], 0.0)
        return cls(
            ids=torch.from_numpy(np.concatenate([np.maximum(ids, 0), labels[:, None]], axis=1)),
            shares=torch.from_numpy(np.concatenate([shares, own[:, None]], axis=1).astype(np.float32)),
            rest=torch.from_numpy(rest.astype(np.float32)),
        )

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return type(self)(
            ids=self.ids.to(device, non_blocking=True),
            shares=self.shares.to(device, non_blocking=True),
            rest=self.rest.to(device, non_blocking=True),
        )

    def __getitem__(self, places: slice | Tensor) -> Self:
        """Of some of the samples."""
        return type(self)(ids=self.ids[places], shares=self.shares[places], rest=self.rest[places])


def soft_cross_entropy(logits: Tensor, targets: SoftTargets, *, label_smoothing: float = 0.0) -> Tensor:
    """(n,) with gradient: −Σ_c ŷ_c·log softmax_c of logits (n, K), after smoothing ŷ' = (1 − ε)·ŷ + ε/K."""
    logs = logits.log_softmax(dim=1)
    losses = -(logs.gather(1, targets.ids) * targets.shares).sum(dim=1) - targets.rest * logs.sum(dim=1)
    return losses if not label_smoothing else torch.lerp(losses, -logs.mean(dim=1), label_smoothing)
