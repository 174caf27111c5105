"""What a gated phase does not even read: samples far under the gate at several visits in a row, some of them apart.

    each step        rows of the global batch  →  a sample's visits far under the gate in a row; where the gate cuts
    an epoch begins  these, and the ledger     →  a mask (N,), which holds until the epoch ends

Everything here follows from what all ranks have and the checkpoint holds, so the mask is alike on all ranks and the
same after a resume. Leaving samples out is the loader's business (`Loader.set_epoch`), gating those that are read
`gate`'s.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wv_shards import EXCLUDE, Overlay, combine
from wv_train.errors import CheckpointError
from wv_train.gate import GateConfig, GateKind
from wv_train.ledger import Ledger

_REVISIT_SALT = 0x736B6970  # "skip"
_MEMORY = 0.9
"""Of where a gate that is a share cuts, from step to step."""
_MAX_STREAK = np.iinfo(np.uint8).max


class Skipping:
    """A byte per sample, and the mask of the current epoch."""

    def __init__(self, samples: int, seed: int) -> None:
        """seed: of what is shown all the same."""
        self._seed = seed
        self._streaks: NDArray[np.uint8] = np.zeros(samples, dtype=np.uint8)
        self._cut = 0.0
        self.mask: NDArray[np.bool_] | None = None
        """(N,) what the current epoch leaves out; None: it has not been chosen."""
        self.skipped_fraction = 0.0
        """Of the current epoch's visits."""

    def begin_phase(self) -> None:
        """Forget the verdicts of another gate."""
        self._streaks[:] = 0
        self._cut, self.mask, self.skipped_fraction = 0.0, None, 0.0

    def threshold(self, gate: GateConfig, threshold: float) -> float:
        """The gate's threshold over what is left to see: what is skipped is a part of the share that it gates."""
        if gate.unit == "confidence":
            return threshold
        left = 1.0 - self.skipped_fraction
        return max(0.0, threshold - self.skipped_fraction) / left if left > 0 else 0.0

    def note(
        self,
        ordinals: NDArray[np.int64],
        held: NDArray[np.float64],
        keep: NDArray[np.bool_],
        *,
        gate: GateConfig,
        threshold: float,
    ) -> None:
        """Take in a global batch in its order, (B,) each: −1 where invalid; threshold: as the step had it."""
        valid = ordinals >= 0
        if not gate.skip_visits or not valid.any():
            return
        cut = threshold
        if gate.unit == "share":
            ranked = np.sort(held[valid])
            cut = float(ranked[min(int(len(ranked) * threshold), len(ranked) - 1)])
            self._cut = cut if self._cut == 0.0 else _MEMORY * self._cut + (1.0 - _MEMORY) * cut
        far = ~keep[valid] & (held[valid] < gate.skip_margin * cut)
        shown = ordinals[valid]
        before = self._streaks[shown]
        self._streaks[shown] = np.where(far, before + (before < _MAX_STREAK), 0)  # of one shown twice the later holds

    def choose(
        self,
        ledger: Ledger,
        gate: GateConfig,
        *,
        threshold: float,
        labels: NDArray[np.int32],
        class_counts: NDArray[np.int64],
        phase: int,
        epoch: int,
    ) -> NDArray[np.bool_]:
        """The mask of an epoch that begins, (N,).

        A sample is left out if it was far under the gate at its last `skip_visits` visits, has been through the model
        as often, would be far under it now, and is not drawn to be shown all the same. In a class the least confident
        go first, at most 1 − `min_kept_fraction` of it.

        Args:
            ledger: of all samples.
            gate: with skip_visits.
            threshold: the gate's by its schedule, at the epoch's first step.
            labels: (N,)
            class_counts: (K,) samples that are not excluded.
            phase, epoch: for the draw.
        """
        found = np.flatnonzero(self._streaks >= gate.skip_visits)
        rows = ledger.rows[found]
        held = held_by_ledger(rows, gate.kind)
        cut = self._cut if gate.unit == "share" else threshold
        far = (rows["seen"] >= gate.skip_visits) & (held < gate.skip_margin * cut)
        found, held = found[far], held[far]
        classes = labels[found]
        order = np.lexsort((found, held, classes))
        found, classes = found[order], classes[order]
        place = np.arange(len(found)) - np.searchsorted(classes, classes)  # within its class
        found = found[place < np.floor((1.0 - gate.min_kept_fraction) * class_counts)[classes]]
        draw = combine(self._seed, _REVISIT_SALT, phase, epoch, found)
        found = found[draw >= np.uint64(gate.skip_revisit_fraction * 2**64)]
        self.mask = np.zeros(len(self._streaks), dtype=np.bool_)
        self.mask[found] = True
        return self.mask

    def shown_share(self, labels: NDArray[np.int32], class_counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """(K,) share of each class that the current epoch shows."""
        assert self.mask is not None
        gone = np.bincount(labels[self.mask], minlength=len(class_counts))
        return 1.0 - gone / np.maximum(class_counts, 1)

    def opened(self, left_out: NDArray[np.int64], shown: int, right: NDArray[np.int8] | None) -> dict[str, object]:
        """Take in how much the loader leaves out of the current epoch; what a row of metrics says of it.

        Args:
            left_out: (n,) ordinals, a sample as often as it would have been shown.
            shown: visits of the epoch.
            right: (N,) 1: the label is right, 0: wrong, −1: not known.
        """
        assert self.mask is not None
        self.skipped_fraction = len(left_out) / max(1, len(left_out) + shown)
        row: dict[str, object] = {
            "skipped": len(left_out),
            "skipped_samples": int(np.count_nonzero(self.mask)),
            "skipped_fraction": self.skipped_fraction,
        }
        if right is not None and (known := int((right[left_out] >= 0).sum())):
            row["skipped_wrong_fraction"] = int((right[left_out] == 0).sum()) / known
        return row

    def save(self, base: Path, manifest_digest: str, info: dict[str, object]) -> None:
        """Write the mask as an overlay of kind `exclude`, `base`.npy and `base`.json. Raises CheckpointError."""
        assert self.mask is not None
        try:
            Overlay(kind=EXCLUDE, array=self.mask, manifest_digest=manifest_digest, info=info).save(base)
        except OSError as error:
            raise CheckpointError(f"{base}.npy: not saved: {error.strerror or error}") from error

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint; the streaks are shared, whoever keeps them copies them."""
        packed = None if self.mask is None else torch.from_numpy(np.packbits(self.mask))
        return {"streaks": torch.from_numpy(self._streaks), "cut": self._cut, "mask": packed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._streaks, self._cut = state["streaks"].numpy().copy(), state["cut"]
        packed = state["mask"]
        bits = None if packed is None else np.unpackbits(packed.numpy(), count=len(self._streaks))
        self.mask = None if bits is None else bits.astype(np.bool_)


def held_by_ledger(rows: NDArray[Any], kind: GateKind) -> NDArray[np.float32]:
    """(n,) the confidence that a gate held at the samples' last visits, from (n,) of LEDGER_DTYPE."""
    if kind == "top1":
        held = rows["top1_conf"]
    elif kind == "label":
        held = rows["label_conf"]
    elif kind == "agreement":
        held = rows["label_conf"] / np.maximum(rows["top1_conf"], np.finfo(np.float32).tiny)
    else:
        held = rows["label_conf_mean"]
    return np.asarray(held, dtype=np.float32)
