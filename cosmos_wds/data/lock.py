"""One process at a time: an advisory lock on an open file, released when it closes or dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def holding(path: Path) -> Iterator[str | None]:
    """Hold a file, which is made, and say in it which process does; a killed one gives it up.

    Yields None, or, without the lock, what the process that holds it wrote. Raises OSError.
    """
    with open(path, "a+", encoding="utf-8") as file:
        if not try_lock(file):
            file.seek(0)
            yield file.read().strip()
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield None
