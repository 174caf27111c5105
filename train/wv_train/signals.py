"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 as a wish that the training loop grants after its step, not anywhere.

All four mean the same: save and stop, with exit code 128 + number. Slurm's `--signal` announces the end of a job's time
by whatever signal one names there; PyTorch Lightning and submitit made SIGUSR1 and later SIGUSR2 the custom, and both
save, stop and queue the job again. So neither means "save and go on" here: who sends the other of the two, or has it
sent by a cluster's template, must not lose a run, and without a handler both end a process on the spot. Saving without
stopping is `checkpoint_every_minutes` in the recipe.

`torchrun` passes on SIGTERM, SIGINT, SIGHUP and SIGQUIT, and is itself ended by SIGUSR1, unless it was started with
`--signals-to-handle SIGTERM,SIGINT,SIGUSR1`; see docs/training.md.
"""

import os
import signal
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):  # noqa: N818  # not an error: the run was asked to stop and did
    """The run has saved itself and stopped because of a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number


class StopSignals:
    """While entered, remembers the last of STOP_SIGNALS; a Ctrl-C after another signal interrupts at once, as usual.

    A signal after that ends the process without cleaning up: a thread may stand in a read that never returns, from a
    file server that is gone, and everything orderly waits for it.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal, 0 for none yet."""
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
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
