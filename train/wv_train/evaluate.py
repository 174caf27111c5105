"""Accuracy on a validation set: single centre crop, top-1 and top-5, per class and per band.

Sums and counts per class, added over ranks, divided last. Bands are those of the *training* set's classes: how well the
rare ones were learned. Reading and showing results is the business of `cli_eval`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from wv_loader import Loader
from wv_train.distributed import World
from wv_train.models import normalization

TOP_K = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSums:
    """Sums of each class, (K,) float64: samples, correct at top-1, correct at top-5, cross-entropy."""

    samples: NDArray[np.float64]
    top1: NDArray[np.float64]
    top5: NDArray[np.float64]
    loss: NDArray[np.float64]

    def overall(self) -> dict[str, float | int]:
        """top1, top5, mean_class_top1 (over classes that have samples), loss and samples."""
        total = max(1.0, float(self.samples.sum()))
        has = self.samples > 0
        mean_class = float((self.top1[has] / self.samples[has]).mean()) if has.any() else 0.0
        return {
            "top1": float(self.top1.sum()) / total,
            "top5": float(self.top5.sum()) / total,
            "mean_class_top1": mean_class,
            "loss": float(self.loss.sum()) / total,
            "samples": int(self.samples.sum()),
        }

    def by_class(self, names: list[str]) -> list[dict[str, Any]]:
        """A row per class; top1 is None where the class has no sample."""
        return [
            {
                "class_id": class_id,
                "name": name,
                "samples": int(self.samples[class_id]),
                "top1": float(self.top1[class_id] / self.samples[class_id]) if self.samples[class_id] else None,
            }
            for class_id, name in enumerate(names)
        ]

    def by_band(self, bands: list[int | None]) -> list[dict[str, Any]]:
        """A row per band, rarest first: top1 over the samples of its classes. Classes without one: band None."""
        rows = []
        for band in sorted(set(bands), key=lambda band: (band is not None, band)):
            members = np.array([other == band for other in bands])
            samples = float(self.samples[members].sum())
            top1 = float(self.top1[members].sum()) / samples if samples else None
            rows.append({"band": band, "classes": int(members.sum()), "samples": int(samples), "top1": top1})
        return rows


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, world: World) -> ClassSums:
    """Run `model` over every sample of a loader opened with train=False; same result on every rank.

    Rank 0's running statistics are given to all ranks first; the model's mode is restored.
    """
    was_training = model.training
    world.broadcast_buffers(model)
    model.eval()
    mean, std = normalization(model)
    classes = loader.num_classes
    sums = torch.zeros(4, classes, dtype=torch.float64, device=world.device)
    try:
        loader.set_epoch(0)
        for batch in loader:
            here = batch.to(world.device)
            logits = model(here.normalized(mean, std)).float()[here.valid]  # (valid, K)
            labels = here.labels[here.valid]
            ranked = logits.topk(min(TOP_K, classes), dim=1).indices
            hits = ranked == labels[:, None]
            values = (
                torch.ones_like(labels),
                hits[:, 0],
                hits.any(dim=1),
                F.cross_entropy(logits, labels, reduction="none"),
            )
            for row, value in zip(sums, values, strict=True):
                row.index_add_(0, labels, value.double())
    finally:
        model.train(was_training)
    samples, top1, top5, loss = world.all_reduce_sum(sums).cpu().numpy()
    return ClassSums(samples=samples, top1=top1, top5=top5, loss=loss)
