"""What is read from a file that many episodes share: once per process, not once per episode."""

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import TypeVar

from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import DataError

T = TypeVar("T")
LOCKS = 64  # files that threads may read at the same time


def once_per_file(keep: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate `read(storage, file, ...)`: its last `keep` results are kept, by file and size.

    Threads that ask for the same file wait for the first one instead of reading it again. Raises
    DataError when there is no such file.
    """

    def wrap(read: Callable[..., T]) -> Callable[..., T]:
        @lru_cache(maxsize=keep)
        def kept(_size: int, storage: Storage, file: str, *rest: object) -> T:
            return read(storage, file, *rest)

        locks = [Lock() for _ in range(LOCKS)]

        def ask(storage: Storage, file: str, *rest: object) -> T:
            size = storage.size(file)
            if size < 0:
                raise DataError(f"{file}: no such file")
            with locks[hash(file) % LOCKS]:
                return kept(size, storage, file, *rest)

        return ask

    return wrap
