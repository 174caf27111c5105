"""What C libraries write to the process's stderr while they work: caught, so that it can be counted and not be shown.

It takes file descriptor 2 away from the whole process, so it is for the pool's workers, which say what they have to
say by their pipe.
"""

import os


class Chatter:
    """Catches from its making to the end of the process."""

    def __init__(self) -> None:
        self._caught = os.memfd_create("chatter", os.MFD_CLOEXEC)
        os.dup2(self._caught, 2)

    def happened(self) -> bool:
        """Whether anything was written since the last call; it is thrown away."""
        if not os.fstat(self._caught).st_size:
            return False
        os.ftruncate(self._caught, 0)
        os.lseek(self._caught, 0, os.SEEK_SET)  # descriptor 2 shares the position
        return True
