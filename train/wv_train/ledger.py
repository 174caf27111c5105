"""The ledger: what training has seen of every sample, kept alike on every rank.

Updated once a step from the rows that all ranks gathered (`judge.COLUMNS`), so no rank ever knows more than another. It
travels in the checkpoint, and is written beside it as an overlay of kind "ledger" for other tools.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_shards import Overlay
from wv_train.errors import CheckpointError

HISTORY_VISITS = 16
LEDGER_DTYPE = np.dtype(
    [
        ("seen", "<u2"),
        ("gated", "<u2"),
        ("label_conf", "<f4"),
        ("label_conf_mean", "<f4"),
        ("top1_conf", "<f4"),
        ("prediction", "<i4"),
        ("history", "u1", (HISTORY_VISITS,)),
    ]
)
"""A row per sample, 36 bytes.

seen, gated: visits, and times under the gate; both stop at 65,535. A sample that the gate sends away before its
forward pass was gated and not seen.
label_conf, label_conf_mean: the label's confidence at the last visit and averaged over visits.
top1_conf, prediction: the largest softmax and its class at the last visit (−1: never seen).
history: the label's confidence at the last 16 visits, a byte each: visit k (from 0) is at place k % 16 as
1 + round(254 · confidence), 0 where there is none. `history_of` decodes it.
"""

_FORMAT_1 = np.dtype([(name, LEDGER_DTYPE[name]) for name in LEDGER_DTYPE.names or () if name != "history"])
"""Rows of checkpoints of format 1, 20 bytes."""
_ROW = np.dtype(("V", LEDGER_DTYPE.itemsize))
"""A row as bytes without fields, which NumPy copies four times as fast."""
_MAX_COUNT = np.iinfo(np.uint16).max


def history_of(rows: NDArray[Any]) -> NDArray[np.float32]:
    """(N, 16) float32 from (N,) of LEDGER_DTYPE: the label's confidence at up to 16 visits, oldest first, then NaN.

    Exact to 1/508. Visits of a run that began with checkpoints of format 1 are NaN where they were not recorded.
    """
    history: NDArray[np.uint8] = rows["history"]
    seen = rows["seen"].astype(np.int64)
    start = np.where(seen > HISTORY_VISITS, seen % HISTORY_VISITS, 0)
    places = (start[:, None] + np.arange(HISTORY_VISITS)) % HISTORY_VISITS
    codes = np.take_along_axis(history, places, axis=1)  # (N, 16), oldest first
    return np.where(codes > 0, (codes.astype(np.float32) - 1) / 254, np.float32(np.nan))


class Ledger:
    """N rows of LEDGER_DTYPE in memory.

    Rows lie together, not a column each: a step touches a thousand of sixteen million at random, and every one of them
    is one or two lines of the processor's cache instead of seven.
    """

    def __init__(self, samples: int) -> None:
        self.rows: NDArray[Any] = np.zeros(samples, dtype=LEDGER_DTYPE)
        self.rows["prediction"] = -1

    def clear(self) -> None:
        """Forget all, where confidences begin to speak of something else."""
        self.rows.view(np.uint8)[:] = 0
        self.rows["prediction"] = -1

    def history(self, ordinals: Tensor) -> tuple[Tensor, Tensor]:
        """Of each ordinal (B,): the label's confidence summed over earlier visits, and their number; 0, 0 for −1."""
        shown = ordinals.numpy()
        rows = self._taken(np.maximum(shown, 0))
        seen = np.where(shown >= 0, rows["seen"], 0).astype(np.float32)
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
        row is the last. Confidences are finite, in [0, 1].
        """
        valid = ordinals >= 0
        if valid.all() and not _repeats(ordinals):
            self._enter(ordinals, label_conf, top1_conf, prediction, kept)
            return
        shown = np.flatnonzero(valid)
        while shown.size:
            # First visits first; `np.unique` gives the first place of each ordinal. Mostly there is one round.
            _, first = np.unique(ordinals[shown], return_index=True)
            now = shown[first]
            self._enter(ordinals[now], label_conf[now], top1_conf[now], prediction[now], kept[now])
            shown = np.delete(shown, first)

    def skip(self, ordinals: NDArray[np.int64]) -> None:
        """Count samples that the gate sent away before any forward pass; −1 is passed over, twice counts twice."""
        found, times = np.unique(ordinals[ordinals >= 0], return_counts=True)
        gated = self.rows["gated"]
        gated[found] = np.minimum(gated[found] + times, _MAX_COUNT)

    def _enter(
        self,
        ordinals: NDArray[np.int64],
        label_conf: NDArray[np.float64],
        top1_conf: NDArray[np.float64],
        prediction: NDArray[np.int64],
        kept: NDArray[np.bool_],
    ) -> None:
        rows = self._taken(ordinals)
        seen, gated = rows["seen"].copy(), rows["gated"]
        visits = seen.astype(np.float64)
        rows["label_conf_mean"] = (rows["label_conf_mean"] * visits + label_conf) / (visits + 1)
        rows["history"][np.arange(len(rows)), seen % HISTORY_VISITS] = 1 + np.rint(254 * label_conf)
        rows["seen"] = seen + (seen < _MAX_COUNT)
        gated += ~kept & (gated < _MAX_COUNT)
        rows["label_conf"], rows["top1_conf"], rows["prediction"] = label_conf, top1_conf, prediction
        self.rows.view(_ROW)[ordinals] = rows.view(_ROW)

    def _taken(self, ordinals: NDArray[np.int64]) -> NDArray[Any]:
        """A copy of these rows."""
        return self.rows.view(_ROW).take(ordinals).view(LEDGER_DTYPE)

    def state(self) -> Tensor:
        """The rows as bytes, (N · 36,) uint8, for a checkpoint: shared with the ledger, whoever keeps it copies it."""
        return torch.from_numpy(self.rows.view(np.uint8))

    def load_state(self, state: Tensor) -> None:
        """Take over a copy of rows saved by `state`, also of a checkpoint of format 1.

        Those have no history: it is empty, and begins with the next visit. Raises CheckpointError where there is not a
        row for each sample.
        """
        self.rows = rows_of(state, samples=len(self.rows)).copy()

    def save(self, base: Path, manifest_digest: str, *, step: int) -> None:
        """Write `base`.npy and `base`.json."""
        save_overlay(self.rows, base, manifest_digest, step=step)


def rows_of(state: Tensor, *, samples: int) -> NDArray[Any]:
    """(N,) of LEDGER_DTYPE that `Ledger.state` or a checkpoint of format 1 holds; no copy where none is needed.

    Raises CheckpointError: not a row for each of `samples`.
    """
    data = state.numpy()
    if data.nbytes == samples * LEDGER_DTYPE.itemsize:
        return data.view(LEDGER_DTYPE)
    if data.nbytes != samples * _FORMAT_1.itemsize:
        expected = (
            f"expected {LEDGER_DTYPE.itemsize} bytes for each of {samples:,} samples, found {data.nbytes:,} in all"
        )
        raise CheckpointError(
            f"the checkpoint's ledger: {expected}; resume from last.pt with the shards that the run began with"
        )
    rows = np.zeros(samples, dtype=LEDGER_DTYPE)
    old = data.view(_FORMAT_1)
    for name in _FORMAT_1.names or ():
        rows[name] = old[name]
    return rows


def save_overlay(rows: NDArray[Any], base: Path, manifest_digest: str, *, step: int) -> None:
    """Write (N,) of LEDGER_DTYPE as `base`.npy and `base`.json."""
    Overlay(
        kind="ledger",
        array=rows,
        manifest_digest=manifest_digest,
        info={"step": step},
        neutral={"prediction": -1},
    ).save(base)


def _repeats(ordinals: NDArray[np.int64]) -> bool:
    """Whether one stands there twice."""
    ordered = np.sort(ordinals)
    return bool((ordered[1:] == ordered[:-1]).any())
