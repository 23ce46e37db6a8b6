"""One process at a time: an advisory lock on an open file, released when it closes or dies."""

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two runs at once are then the user's to avoid
    fcntl = None  # type: ignore[assignment]


def try_lock(file: IO[Any]) -> bool:
    """Take the lock of an open file; False when another process, or another open, holds it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO[Any]) -> None:
    """Take the lock of an open file as soon as no other open of it holds it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
