"""One loop at a time over a loader: whatever begins, or moves the position, ends the loop that has not been left.

A forgotten iterator thus costs nothing, and one that goes on is told, as it would show batches of another position.
"""

import os
from contextlib import ExitStack
from types import TracebackType

from wv_loader.errors import LoaderError


class OneLoop:
    """Knows the loop that runs, and how to leave it from outside."""

    def __init__(self) -> None:
        self._running: Loop | None = None

    def begin(self) -> "Loop":
        """A new loop, after the other has ended; what it has to leave is to be entered there."""
        self.end()
        loop = Loop()
        loop.callback(self._forget)
        self._running = loop
        return loop

    def end(self) -> None:
        """Leave the loop that runs, if one does; its consumer is told when it asks for more."""
        if self._running is not None:
            self._running.close()
            self._forget()

    def runs(self, loop: "Loop") -> bool:
        """Whether it has not been ended."""
        return self._running is loop

    def check(self, loop: "Loop") -> None:
        """Raise a LoaderError where the loop has been ended from outside, or belongs to another process."""
        if loop.elsewhere:
            raise LoaderError(
                "this loop over the loader began in another process, and its threads are there; make the Loader in the "
                "new process"
            )
        if not self.runs(loop):
            raise LoaderError(
                "this loop over the loader has been ended by another one, set_epoch, load_state_dict or close: "
                "expected one loop at a time; make another Loader for a second one"
            )

    def _forget(self) -> None:
        self._running = None


class Loop(ExitStack):
    """Leaves nothing in a process that was forked off: its threads are not there, and nobody would give back a lock."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    @property
    def elsewhere(self) -> bool:
        """Whether this process was forked off while the loop ran."""
        return self._process != os.getpid()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        if self.elsewhere:
            self.pop_all()
        return super().__exit__(kind, error, trace)
