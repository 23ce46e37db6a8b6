"""What the C library does with freed memory while large buffers come and go."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # mallopt(3)
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers for the next step, or the next video.

    By default it returns large ones to the system and has them faulted in again, page by page.
    Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
        mallopt(_ARENA_MAX, 1)  # else each thread's heap grows to the most that it ever held
