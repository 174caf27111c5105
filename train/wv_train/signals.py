"""Ctrl-C and SIGTERM as a wish that the training loop grants after its step, instead of an interruption anywhere."""

import os
import signal
from types import FrameType
from typing import Any, Self


class Stopped(Exception):  # noqa: N818  # not an error: the run was asked to stop and did
    """The run has saved itself and stopped because of a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number


class StopSignals:
    """While entered, remembers the first SIGINT or SIGTERM; a second Ctrl-C interrupts at once, as usual.

    A signal after that ends the process without cleaning up: a thread may stand in a read that never returns, from a
    file server that is gone, and everything orderly waits for it.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal, 0 for none yet."""
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._interrupted:
            os._exit(128 + number)
        if self.received and number == signal.SIGINT:
            self._interrupted = True
            raise KeyboardInterrupt
        self.received = number
