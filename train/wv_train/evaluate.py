"""Accuracy on a validation set: top-1 and top-5, per class, per band, and by how many samples a class was learned from.

Sums and counts per class, added over ranks, divided last. Bands and counts are those of the *training* set's classes:
how well the rare ones were learned. What else is measured is `tally`'s business, of what `evaluation`'s.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wv_loader import Batch, Loader
from wv_train.distributed import World
from wv_train.errors import FieldError
from wv_train.models import normalization

TOP_K = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """What a model made of n samples. Arrays are (n,)."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    """Class of the largest probability."""
    confidences: NDArray[np.float64]
    """That probability."""
    in_top5: NDArray[np.bool_]
    """Whether the label is among the five largest."""
    losses: NDArray[np.float64]
    """−log of the label's probability, in nats."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(n,) whether the prediction is the label."""
        return np.asarray(self.predictions == self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class CountGroups:
    """Classes by their training samples, as ImageNet-LT divides them (Liu et al., "Large-Scale Long-Tailed Recognition
    in an Open World", 2019): many, medium, few."""

    many_over: int = 100
    """A class with more training samples than this is one of the many."""
    few_under: int = 20
    """One with fewer than this is one of the few; all others are medium."""

    def __post_init__(self) -> None:
        if self.few_under < 0:
            raise FieldError("few_under", "0 or more", self.few_under)
        if self.many_over < self.few_under - 1:
            raise FieldError(
                "many_over", f"at least {self.few_under - 1}, for few_under is {self.few_under}", self.many_over
            )

    def members(self, counts: NDArray[np.int64]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
        """Name, rule and members, (K,) bool, of each group; `counts` (K,): training samples."""
        many, few = counts > self.many_over, counts < self.few_under
        yield "many", f"more than {self.many_over} training samples", many
        yield "medium", f"{self.few_under} to {self.many_over}", ~many & ~few
        yield "few", f"fewer than {self.few_under}", few


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSums:
    """Sums of each class, (K,) float64: samples, correct at top-1, correct at top-5, cross-entropy."""

    samples: NDArray[np.float64]
    top1: NDArray[np.float64]
    top5: NDArray[np.float64]
    loss: NDArray[np.float64]

    @classmethod
    def zeros(cls, classes: int) -> Self:
        """Nothing seen yet."""
        return cls(**{name: np.zeros(classes) for name in ("samples", "top1", "top5", "loss")})

    def add(self, outcomes: Outcomes) -> None:
        """Count some samples, in place."""
        labels, classes = outcomes.labels, len(self.samples)
        self.samples[:] += np.bincount(labels, minlength=classes)
        self.top1[:] += np.bincount(labels, weights=outcomes.correct, minlength=classes)
        self.top5[:] += np.bincount(labels, weights=outcomes.in_top5, minlength=classes)
        self.loss[:] += np.bincount(labels, weights=outcomes.losses, minlength=classes)

    def total(self, world: World) -> "ClassSums":
        """The sums of all ranks, on every rank."""
        mine = torch.from_numpy(np.stack([self.samples, self.top1, self.top5, self.loss]))  # (4, K)
        samples, top1, top5, loss = world.all_reduce_sum(mine.to(world.device)).cpu().numpy()
        return ClassSums(samples=samples, top1=top1, top5=top5, loss=loss)

    def overall(self) -> dict[str, float | int]:
        """top1, top5, loss over samples; mean_class_top1 and _top5 over classes that have samples; samples."""
        total = max(1.0, float(self.samples.sum()))
        return {
            "top1": float(self.top1.sum()) / total,
            "top5": float(self.top5.sum()) / total,
            "mean_class_top1": self._mean_class(self.top1) or 0.0,
            "mean_class_top5": self._mean_class(self.top5) or 0.0,
            "loss": float(self.loss.sum()) / total,
            "samples": int(self.samples.sum()),
        }

    def by_class(self, names: Sequence[str], counts: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """A row per class; top1 and top5 are None where the class has no sample. `counts` (K,): training samples."""
        rows: list[dict[str, Any]] = []
        for class_id, name in enumerate(names):
            samples = self.samples[class_id]
            row = {
                "class_id": class_id,
                "name": name,
                "samples": int(samples),
                "top1": float(self.top1[class_id] / samples) if samples else None,
                "top5": float(self.top5[class_id] / samples) if samples else None,
            }
            rows.append(row | ({} if counts is None else {"training_samples": int(counts[class_id])}))
        return rows

    def by_band(self, bands: Sequence[int | None]) -> list[dict[str, Any]]:
        """A row per band, rarest first: top1 over the samples of its classes. Classes without one: band None."""
        return [
            {"band": band, **self._of_classes(np.array([other == band for other in bands]))}
            for band in sorted(set(bands), key=lambda band: (band is not None, band))
        ]

    def by_count(self, counts: Sequence[int], groups: CountGroups) -> list[dict[str, Any]]:
        """A row for many, medium and few: how many classes each holds, and how well they were learned.

        Args:
            counts: (K,) training samples.
            groups: the limits.
        """
        rows = []
        for name, rule, members in groups.members(np.asarray(counts, dtype=np.int64)):
            mean_class = self._mean_class(self.top1, members)
            rows.append({"name": name, "rule": rule, **self._of_classes(members), "mean_class_top1": mean_class})
        return rows

    def _of_classes(self, members: NDArray[np.bool_]) -> dict[str, Any]:
        samples = float(self.samples[members].sum())
        top1 = float(self.top1[members].sum()) / samples if samples else None
        return {"classes": int(members.sum()), "samples": int(samples), "top1": top1}

    def _mean_class(self, hits: NDArray[np.float64], members: NDArray[np.bool_] | None = None) -> float | None:
        """Mean of the classes' fractions, over those that have samples; None where none has."""
        has = self.samples > 0 if members is None else members & (self.samples > 0)
        return float((hits[has] / self.samples[has]).mean()) if has.any() else None


def outcomes_of(log_probabilities: Tensor, labels: Tensor) -> Outcomes:
    """From log-probabilities (n, K) and labels (n,) on one device."""
    values, ranked = log_probabilities.topk(min(TOP_K, log_probabilities.shape[1]), dim=1)
    columns = (
        ranked[:, 0],
        values[:, 0].double().exp(),
        (ranked == labels[:, None]).any(dim=1),
        -log_probabilities.gather(1, labels[:, None]).squeeze(1),
        labels,
    )
    rows = torch.stack([column.double() for column in columns]).cpu().numpy()  # (5, n): one copy from the device
    prediction, confidence, in_top5, loss, label = rows
    return Outcomes(
        labels=label.astype(np.int64),
        predictions=prediction.astype(np.int64),
        confidences=confidence,
        in_top5=in_top5.astype(np.bool_),
        losses=loss,
    )


def log_probabilities(model: nn.Module, batch: Batch, wanted: Tensor) -> Tensor:
    """(wanted, K) float32 of the slots of a batch that `wanted`, (n,) bool, names; all on the model's device."""
    mean, std = normalization(model)
    return F.log_softmax(model(batch.normalized(mean, std)).float()[wanted], dim=1)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, running statistics of batch norm; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, loader: Loader, world: World) -> ClassSums:
    """Run `model` over every sample of a loader opened with train=False; same result on every rank.

    Rank 0's running statistics are given to all ranks first; the model's mode is restored.
    """
    world.broadcast_buffers(model)
    sums = ClassSums.zeros(loader.num_classes)
    with evaluation_mode(model):
        loader.set_epoch(0)
        for batch in loader:
            here = batch.to(world.device)
            sums.add(outcomes_of(log_probabilities(model, here, here.valid), here.labels[here.valid]))
    return sums.total(world)
