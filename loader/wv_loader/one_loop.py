"""One loop at a time over a loader: whatever begins, or moves the position, ends the loop that has not been left.

A forgotten iterator thus costs nothing, and one that goes on is told, as it would show batches of another position.
"""

from contextlib import ExitStack

from wv_loader.errors import LoaderError


class OneLoop:
    """Knows the loop that runs, and how to leave it from outside."""

    def __init__(self) -> None:
        self._running: ExitStack | None = None

    def begin(self) -> ExitStack:
        """A new loop, after the other has ended; what it has to leave is to be entered there."""
        self.end()
        loop = ExitStack()
        loop.callback(self._forget)
        self._running = loop
        return loop

    def end(self) -> None:
        """Leave the loop that runs, if one does; its consumer is told when it asks for more."""
        if self._running is not None:
            self._running.close()

    def runs(self, loop: ExitStack) -> bool:
        """Whether it has not been ended."""
        return self._running is loop

    def check(self, loop: ExitStack) -> None:
        """Raise a LoaderError where the loop has been ended from outside."""
        if not self.runs(loop):
            raise LoaderError(
                "this loop over the loader has been ended by another one, set_epoch, load_state_dict or close: "
                "expected one loop at a time; make another Loader for a second one"
            )

    def _forget(self) -> None:
        self._running = None
