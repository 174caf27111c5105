"""The memory of elr: what the network has said of every sample, kept alike on every rank.

Early-Learning Regularization (`robust_losses`) holds each prediction against a running mean of the sample's earlier
ones. The mean's largest values are kept here, on the host; new ones come with the rows that all ranks gather once a
step, so no rank ever knows more than another. It travels in the checkpoint.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_train.errors import CheckpointError

_SMALL_IDS = 1 << 16


def target_dtype(classes: int, top_k: int) -> np.dtype[Any]:
    """Of a sample's row: its k = min(top_k, classes) largest values and their classes, largest first.

    4·k bytes, 6·k with more than 65,536 classes: 16 million samples with k = 10 take 640 MB on each rank, in the
    checkpoint, and in the copy that is written while training goes on. A sample that was never seen has values of 0.
    """
    kept = min(top_k, classes)
    return np.dtype([("class_id", "<u2" if classes <= _SMALL_IDS else "<u4", (kept,)), ("value", "<f2", (kept,))])


class TargetMemory:
    """N rows of `target_dtype`.

    A value is a float16: what a step reads is what was stored, in a run that was stopped and in one that was not. It
    stands still where (1 − β)·|p − t| is less than half a step of float16, 2.4e-4 below 1.
    """

    def __init__(self, samples: int, *, classes: int, top_k: int) -> None:
        self.classes = classes
        self.rows: NDArray[Any] = np.zeros(samples, dtype=target_dtype(classes, top_k))

    def recall(self, ordinals: NDArray[np.int64]) -> Tensor:
        """(n, 2k) float32: k classes (whole numbers), then their k values; of ordinal −1 whatever is there."""
        rows = self.rows.take(np.maximum(ordinals, 0))
        return torch.from_numpy(np.concatenate([rows["class_id"], rows["value"]], axis=1, dtype=np.float32))

    def update(self, ordinals: NDArray[np.int64], targets: NDArray[np.float64]) -> None:
        """Enter (n, 2k) of a global batch, in its order; −1 is passed over, of a sample that is there twice the last
        counts."""
        shown = np.flatnonzero(ordinals >= 0)
        rows = np.empty(len(shown), dtype=self.rows.dtype)
        rows["class_id"], rows["value"] = np.split(targets[shown], 2, axis=1)
        self.rows[ordinals[shown]] = rows

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the rows as bytes (uint8), shared with the memory: whoever keeps them copies them."""
        return {"classes": self.classes, "rows": torch.from_numpy(self.rows.view(np.uint8))}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a copy of what `state` gave. Raises CheckpointError where there is not a row for each sample."""
        data = state["rows"].numpy()
        if (state["classes"], data.nbytes) != (self.classes, self.rows.nbytes):
            raise CheckpointError(
                f"the checkpoint's memory of elr: expected {self.rows.dtype.itemsize} bytes for each of "
                f"{len(self.rows):,} samples and {self.classes:,} classes, found {data.nbytes:,} bytes in all and "
                f"{state['classes']:,} classes; resume from last.pt with the shards that the run began with"
            )
        self.rows = data.view(self.rows.dtype).copy()
