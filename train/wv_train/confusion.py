"""Which classes a model takes for which: mistakes counted by (label, prediction), only those that occur."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wv_train.distributed import World
from wv_train.evaluate import Outcomes
from wv_train.gather import gather_rows

_COMPACT_AT = 1 << 20
"""Mistakes that are kept as a list before they are counted."""


class ConfusionCounts:
    """Counts of mistakes. Memory grows with the pairs that occur, not with K·K: 25 million for 5,000 classes."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._pairs = np.zeros(0, dtype=np.int64)  # label · K + prediction, rising
        self._counts = np.zeros(0, dtype=np.int64)
        self._waiting: list[NDArray[np.int64]] = []
        self._waiting_size = 0

    def add(self, outcomes: Outcomes) -> None:
        """Count the mistakes among some samples."""
        wrong = ~outcomes.correct
        self._waiting.append(outcomes.labels[wrong] * self._classes + outcomes.predictions[wrong])
        self._waiting_size += len(self._waiting[-1])
        if self._waiting_size > _COMPACT_AT:
            self._compact()

    def total(self, world: World) -> "ConfusionCounts":
        """The counts of all ranks, on every rank."""
        self._compact()
        mine = torch.from_numpy(np.stack([self._pairs, self._counts], axis=1))  # (pairs, 2)
        joined = gather_rows(world, mine).numpy()
        whole = ConfusionCounts(self._classes)
        whole._merge(joined[:, 0], joined[:, 1])
        return whole

    def mistakes(self) -> int:
        """Samples whose prediction is not their label."""
        return int(self._counts.sum()) + self._waiting_size

    def most(self, number: int, names: Sequence[str], samples: NDArray[np.float64]) -> list[dict[str, Any]]:
        """The pairs that occur most often, by count, then by share.

        Args:
            number: of pairs, at most.
            names: (K,) of the classes.
            samples: (K,) of each class, as a label; `label_fraction` is a share of these.
        """
        self._compact()
        labels, predictions = np.divmod(self._pairs, self._classes)
        fractions = self._counts / np.maximum(samples[labels], 1)
        order = np.lexsort((self._pairs, -fractions, -self._counts))[:number]
        return [
            {
                "label": int(labels[i]),
                "label_name": names[labels[i]],
                "prediction": int(predictions[i]),
                "prediction_name": names[predictions[i]],
                "samples": int(self._counts[i]),
                "label_fraction": float(fractions[i]),
            }
            for i in order
        ]

    def _compact(self) -> None:
        waiting, self._waiting, self._waiting_size = self._waiting, [], 0
        if waiting:
            pairs = np.concatenate(waiting)
            self._merge(pairs, np.ones(len(pairs), dtype=np.int64))

    def _merge(self, pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        all_counts = np.concatenate([self._counts, counts])
        self._pairs, place = np.unique(np.concatenate([self._pairs, pairs]), return_inverse=True)
        self._counts = np.zeros(len(self._pairs), dtype=np.int64)
        np.add.at(self._counts, place, all_counts)
