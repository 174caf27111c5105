"""Whether a gate picks its samples in a forward pass of its own: cheaper where it keeps little.

A pass forward costs about half of a pass backward, so two passes cost 1 + 3k against 3 where k is the kept fraction:
less below two thirds.
"""

from typing import Any

from wv_train.gate import GateConfig
from wv_train.totals import Totals

_BELOW = 2 / 3
_ABOVE = 0.72
"""Back to one pass only here, so that it does not change to and fro."""
_MEMORY = 0.9


class PassChoice:
    """Follows the kept fraction of a phase's steps; a function of what every rank knows."""

    def __init__(self) -> None:
        self._kept: float | None = None
        self._two = False

    def two(self, gate: GateConfig | None) -> bool:
        """Whether the next step shall have two passes."""
        if gate is None or gate.kind == "label_past":  # the past is known without a pass
            return False
        return self._two if gate.passes == "auto" else gate.passes == "two"

    def update(self, totals: Totals) -> None:
        """Take in a step."""
        now = totals.kept_fraction
        self._kept = now if self._kept is None else _MEMORY * self._kept + (1.0 - _MEMORY) * now
        self._two = self._kept < (_ABOVE if self._two else _BELOW)

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"kept": self._kept, "two": self._two}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._kept, self._two = state["kept"], state["two"]
