"""The ledger: what training has seen of every sample, kept alike on every rank.

Updated once a step from the rows that all ranks gathered (`step.GATHERED`), so no rank ever knows more than another. It
travels in the checkpoint, and is written beside it as an overlay of kind "ledger" for other tools.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_shards import Overlay

LEDGER_DTYPE = np.dtype(
    [
        ("seen", "<u2"),
        ("gated", "<u2"),
        ("label_conf", "<f4"),
        ("label_conf_mean", "<f4"),
        ("top1_conf", "<f4"),
        ("prediction", "<i4"),
    ]
)
"""A row per sample: visits and visits under the gate (both stop at 65,535); the label's confidence at the last visit
and averaged over visits; the largest softmax and its class at the last visit (−1: never seen)."""

_MAX_SEEN = np.iinfo(np.uint16).max


class Ledger:
    """N rows of LEDGER_DTYPE in memory."""

    def __init__(self, samples: int) -> None:
        self.rows: NDArray[Any] = np.zeros(samples, dtype=LEDGER_DTYPE)
        self.rows["prediction"] = -1

    def history(self, ordinals: Tensor) -> tuple[Tensor, Tensor]:
        """Of each ordinal (B,): the label's confidence summed over earlier visits, and their number; 0, 0 for −1."""
        rows = self.rows[np.maximum(ordinals.numpy(), 0)]
        seen = np.where(ordinals.numpy() >= 0, rows["seen"], 0).astype(np.float32)
        return torch.from_numpy(rows["label_conf_mean"] * seen), torch.from_numpy(seen)

    def update(
        self,
        ordinals: NDArray[np.int64],
        *,
        label_conf: NDArray[np.float64],
        top1_conf: NDArray[np.float64],
        prediction: NDArray[np.int64],
        kept: NDArray[np.bool_],
    ) -> None:
        """Enter one global batch, in its global order; rows with ordinal −1 are skipped.

        Which rank brought a row makes no difference. A sample that stands in the batch twice is two visits, its later
        row is the last.
        """
        shown = np.flatnonzero(ordinals >= 0)
        while shown.size:
            # First visits first; `np.unique` gives the first place of each ordinal. Mostly there is one round.
            _, first = np.unique(ordinals[shown], return_index=True)
            now = shown[first]
            self._enter(ordinals[now], label_conf[now], top1_conf[now], prediction[now], kept[now])
            shown = np.delete(shown, first)

    def _enter(
        self,
        ordinals: NDArray[np.int64],
        label_conf: NDArray[np.float64],
        top1_conf: NDArray[np.float64],
        prediction: NDArray[np.int64],
        kept: NDArray[np.bool_],
    ) -> None:
        rows = self.rows[ordinals]
        seen = rows["seen"].astype(np.float64)
        rows["label_conf_mean"] = (rows["label_conf_mean"] * seen + label_conf) / (seen + 1)
        rows["seen"] = np.minimum(seen + 1, _MAX_SEEN)
        rows["gated"] = np.minimum(rows["gated"].astype(np.int64) + ~kept, _MAX_SEEN)
        rows["label_conf"], rows["top1_conf"], rows["prediction"] = label_conf, top1_conf, prediction
        self.rows[ordinals] = rows

    def skip(self, ordinals: NDArray[np.int64]) -> None:
        """Note that the gate sent samples away unseen, a visit for each time that one stands here."""
        sample, times = np.unique(ordinals, return_counts=True)
        gated = self.rows["gated"][sample].astype(np.int64) + times
        self.rows["gated"][sample] = np.minimum(gated, _MAX_SEEN)

    def state(self) -> Tensor:
        """The rows as bytes, (N · 20,) uint8: a copy, for a checkpoint."""
        return torch.from_numpy(self.rows.view(np.uint8).copy())

    def load_state(self, state: Tensor) -> None:
        """Take over rows saved by `state`."""
        self.rows = state.numpy().view(LEDGER_DTYPE).copy()

    def save(self, base: Path, manifest_digest: str, *, step: int) -> None:
        """Write `base`.npy and `base`.json."""
        Overlay(
            kind="ledger",
            array=self.rows,
            manifest_digest=manifest_digest,
            info={"step": step},
            neutral={"prediction": -1},
        ).save(base)
