"""Has the C library keep the memory that a step frees, for the next step.

glibc gives freed memory back to the system as soon as a few megabytes of it lie at the end, and takes large blocks from
there each time. A step on a CPU then begins with thousands of page faults, a tenth of its time on small images.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEEP_BYTES = 256 << 20
_MMAP_BYTES = 32 << 20
"""glibc's own limit for what may lie on its heap."""


def keep_freed_memory() -> bool:
    """Keep up to 256 MiB of freed memory, and blocks of up to 32 MiB on the heap; tells whether the library took it.

    Of the whole process and for good. Does nothing but on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
