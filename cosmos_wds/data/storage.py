"""Where files lie: a folder of this machine, or what fsspec opens (s3://, gs://, hf://, http://).

A file is named by its path below the root, with slashes. Whatever is written appears whole under
its name or not at all: here through a temporary name, fsync and rename, elsewhere because an object
is put in one piece.
"""

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cosmos_wds.config import write_bytes
from cosmos_wds.data.lock import try_lock
from cosmos_wds.errors import DataError

TEMPORARY = ".tmp"
FLUSH_SECONDS = 0.25


class Storage(Protocol):
    """Files below one root; as text, the root. Storages travel to worker processes."""

    @property
    def free(self) -> int | None:
        """Bytes that may still be written; None where nobody knows."""
        ...

    def name(self, file: str) -> str:
        """How a file is called in errors."""
        ...

    def read(self, file: str) -> bytes:
        """All of a file. Raises DataError naming it."""
        ...

    def read_range(self, file: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends. Raises DataError naming it."""
        ...

    def size(self, file: str) -> int:
        """Bytes of a file; -1 when there is no such file."""
        ...

    def list(self, folder: str = "") -> list[str]:
        """Names directly in a folder, sorted; none when there is no such folder."""
        ...

    def is_inside(self, file: str) -> bool:
        """Whether a file lies below the root when links are followed; see LocalStorage."""
        ...

    def has_folder(self, folder: str = "") -> bool:
        """Whether there is such a folder (or a file of such a prefix)."""
        ...

    @contextmanager
    def writing(self, file: str) -> Iterator[BinaryIO]:
        """Open a new file that gets its name when the block ends well."""
        ...

    def write(self, file: str, content: bytes) -> None:
        """Write a small file."""
        ...

    def move(self, old: str, new: str) -> None:
        """Rename a file."""
        ...

    def remove(self, file: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing when it is not there."""
        ...

    @contextmanager
    def claimed(self, folder: str) -> Iterator[None]:
        """Hold a folder against other runs, cleared of the temporary files of killed ones."""
        ...


def storage(place: str | Path) -> Storage:
    """The storage of a path or URL. Raises ConfigError for an unknown kind of URL."""
    text = str(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return LocalStorage(Path(text))
    from cosmos_wds.data.remote import RemoteStorage, file_system

    file_system(text)
    return RemoteStorage(text.rstrip("/"))


@dataclass(frozen=True)
class LocalStorage:
    """A folder of this machine."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    @property
    def free(self) -> int | None:
        place = next(p for p in (self.root, *self.root.absolute().parents) if p.exists())
        return shutil.disk_usage(place).free

    def name(self, file: str) -> str:
        return str(self.root / file)

    def read(self, file: str) -> bytes:
        try:
            with open(os.path.join(self.root, file), "rb", buffering=0) as opened:
                return opened.readall()
        except OSError as error:
            raise DataError(f"{self.name(file)}: cannot be read: {error.strerror}") from None

    def read_range(self, file: str, offset: int, size: int) -> bytes:
        try:
            with open(os.path.join(self.root, file), "rb") as opened:
                opened.seek(offset)
                return opened.read(size)
        except OSError as error:
            raise DataError(f"{self.name(file)}: cannot be read: {error.strerror}") from None

    def size(self, file: str) -> int:
        try:
            found = os.stat(os.path.join(self.root, file))
        except (OSError, ValueError):
            return -1
        return found.st_size if stat.S_ISREG(found.st_mode) else -1

    def list(self, folder: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DataError(f"{self.name(folder)}: cannot be read: {error.strerror}") from None

    def is_inside(self, file: str) -> bool:
        """The user may link a folder at the root to another disk; links deeper must stay inside."""
        parts = file.split("/")
        at = f"{self.root}/{parts[0]}"
        is_plain = len(parts) > 1 or not os.path.islink(at)
        for part in parts[1:]:
            at = f"{at}/{part}"
            is_plain = is_plain and not os.path.islink(at)
        if is_plain and ".." not in parts:
            return True
        real = os.path.realpath(self.root / file)
        top = self.root / parts[0]
        homes = (os.path.join(os.path.realpath(place), "") for place in (self.root, top))
        return any(real.startswith(home) for home in homes)

    def has_folder(self, folder: str = "") -> bool:
        return (self.root / folder).is_dir()

    @contextmanager
    def writing(self, file: str) -> Iterator[BinaryIO]:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
        try:
            with open(temporary, "wb") as opened:
                with _flushed_meanwhile(opened):
                    yield opened
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, file: str, content: bytes) -> None:
        write_bytes(self.root / file, content)

    def move(self, old: str, new: str) -> None:
        os.replace(self.root / old, self.root / new)

    def remove(self, file: str) -> None:
        path = self.root / file
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self, folder: str) -> Iterator[None]:
        work = self.root / folder
        lock = work / "lock"
        while True:
            work.mkdir(parents=True, exist_ok=True)
            with open(lock, "a+b") as file:
                if not try_lock(file):
                    raise DataError(f"{self.root}: another run is writing it; wait for its end")
                is_same = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
                if not is_same:
                    continue  # the run that held it has just finished, and removed it
                self._sweep(work)  # what killed runs have left
                yield
                self._sweep(work)  # and lost workers of this one
                return

    def _sweep(self, work: Path) -> None:
        for leftover in [*work.glob(f".*{TEMPORARY}"), *self.root.glob(f".*{TEMPORARY}")]:
            leftover.unlink()


@contextmanager
def _flushed_meanwhile(file: BinaryIO) -> Iterator[None]:
    """Have the disk write while more is coming, so that the last fsync has little to wait for."""
    ended = threading.Event()

    def flush() -> None:
        while not ended.wait(FLUSH_SECONDS):
            os.fdatasync(file.fileno())

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
