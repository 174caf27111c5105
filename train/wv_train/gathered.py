"""What a step's gather brought: the rows of a global batch with the decision on them, on the device and on the host."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_train.judge import COLUMNS, Decision


@dataclass(frozen=True, kw_only=True, slots=True)
class HostRows:
    """The same on the host."""

    rows: NDArray[np.float64]
    """(B, C) in the global batch's order."""
    keep: NDArray[np.bool_]
    """(B,)"""
    guarded: NDArray[np.bool_]
    """(B,)"""
    headers: NDArray[np.float64]
    """(W, H), a row of each rank."""
    ordinals: NDArray[np.int64]
    """(B,), −1 where invalid; the columns of this name and the next two, ready for use."""
    labels: NDArray[np.int64]
    """(B,)"""
    judged: NDArray[np.bool_]
    """(B,)"""

    @classmethod
    def of(cls, rows: NDArray[np.float64], headers: NDArray[np.float64], keep: Any, guarded: Any) -> Self:
        """With the columns that are read again and again."""
        ordinals, labels, judged = (rows[:, COLUMNS.index(name)] for name in ("ordinal", "label", "judged"))
        return cls(
            rows=rows,
            keep=keep,
            guarded=guarded,
            headers=headers,
            ordinals=ordinals.astype(np.int64),
            labels=labels.astype(np.int64),
            judged=judged > 0,
        )

    def column(self, name: str) -> NDArray[np.float64]:
        """One of COLUMNS, (B,)."""
        found: NDArray[np.float64] = self.rows[:, COLUMNS.index(name)]
        return found

    @property
    def finite(self) -> bool:
        """Whether the loss of every sample with a weight is a number."""
        return bool(np.isfinite(self.column("loss")[self.column("weight") > 0]).all())

    @property
    def moves(self) -> bool:
        """Whether anything is kept that has a weight."""
        return bool((self.column("weight")[self.keep] > 0).any())


class Gathered:
    """Rows (B, C), headers (W, H) and the decision on a device, on their way to the host since this was made."""

    def __init__(self, rows: Tensor, headers: Tensor, decision: Decision) -> None:
        self.decision = decision
        self._copies = [_start_copy(tensor) for tensor in (rows, headers, decision.keep, decision.guarded)]
        self._arrived = None
        if rows.device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._arrived.record()
        self._host: HostRows | None = None

    def on_host(self) -> HostRows:
        """Waits for the copy, and for nothing that the device was given to do after it."""
        if self._host is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._host = HostRows.of(*(copy.numpy() for copy in self._copies))
        return self._host


def _start_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
