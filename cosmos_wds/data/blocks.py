"""A folder of blocks that never holds more than its bound, however many write and crash there.

Threads, processes and runs share it. A block is a file: its content, then a checksum of each
`CHUNK` of it, so that reading a part checks that part alone. Every write happens under one lock:
make room, write under a temporary name, rename. So there is at most one temporary file, which
counts as a block does, and a crash leaves nothing that the next write does not find. The lock's
file tells how many bytes there are; it is raised before a block is written and lowered after one
has been removed, so it never tells too few. Blocks that were used least lately go first.

fsspec's caching file systems are not used: they have no bound in bytes, several processes overwrite
each other's list of blocks, and damage on the disk goes unnoticed. diskcache, which has a bound,
removes entries after it has grown beyond it.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.markup import escape

from cosmos_wds.config import first_line
from cosmos_wds.console import warn
from cosmos_wds.data.lock import wait_for_lock
from cosmos_wds.errors import DataError

CHUNK = 64 * 1024
SUFFIX, TEMPORARY, LOCK = ".block", "writing.tmp", "lock"
LEDGER = 20  # bytes of the lock's file: one decimal number
ROOM = 0.05  # of the bound, freed at once, so that not every write has to look through the folder


@dataclass(frozen=True)
class BlockFolder:
    """Blocks by name in `folder`, `limit` bytes of files at most."""

    folder: Path
    limit: int

    def open(self) -> "BlockFolder":
        """Make the folder, count what is in it, sweep what a crash has left.

        Raises DataError when it cannot be written.
        """
        with self._locked() as ledger:
            _note(ledger, self._make_room(0))
        return self

    def get(self, name: str, size: int, low: int, high: int) -> bytes | None:
        """Bytes `low` to `high` of a block of `size` bytes; None when it is not here, or damaged.

        A damaged block is removed.
        """
        path = self.folder / (name + SUFFIX)
        first, last = low // CHUNK, -(-high // CHUNK)
        try:
            with open(path, "rb") as file:
                is_whole = os.fstat(file.fileno()).st_size == size + 4 * -(-size // CHUNK)
                file.seek(size + 4 * first)
                sums = file.read(4 * (last - first))
                file.seek(first * CHUNK)
                content = file.read(min(last * CHUNK, size) - first * CHUNK)
                os.utime(path)
        except OSError:  # removed to make room, perhaps this moment
            return None
        if not is_whole or _checksums(content) != sums:
            warn(f"{escape(str(path))}: damaged on the disk, fetched again")
            path.unlink(missing_ok=True)
            return None
        return content[low - first * CHUNK : high - first * CHUNK]

    def has(self, name: str) -> bool:
        """Whether a block seems to be here."""
        return (self.folder / (name + SUFFIX)).exists()

    def put(self, name: str, content: bytes) -> None:
        """Keep a block, in place of those used least lately. Raises DataError when it cannot be."""
        path, whole = self.folder / (name + SUFFIX), content + _checksums(content)
        if len(whole) + LEDGER > self.limit:
            return
        with self._locked() as ledger:
            if path.exists():
                return
            used = _noted(ledger)
            if used is None or used + len(whole) > self.limit:
                used = self._make_room(len(whole))
            _note(ledger, used + len(whole))
            temporary = self.folder / TEMPORARY
            temporary.write_bytes(whole)
            os.replace(temporary, path)

    def _make_room(self, wanted: int) -> int:
        """Remove blocks until `wanted` bytes fit, if they do not; the bytes that remain."""
        (self.folder / TEMPORARY).unlink(missing_ok=True)
        with os.scandir(self.folder) as entries:
            found = [(e.stat(), e.path) for e in entries if e.name.endswith(SUFFIX)]
        used = LEDGER + sum(stat.st_size for stat, _ in found)
        if used + wanted <= self.limit:
            return used
        enough = self.limit - max(wanted, int(ROOM * self.limit))
        for stat, path in sorted(found, key=lambda f: f[0].st_mtime_ns):
            if used <= enough:
                break
            Path(path).unlink(missing_ok=True)
            used -= stat.st_size
        return used

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The lock's file, held. Refusals of the disk become one line."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / LOCK, "a+b", buffering=0) as ledger:
                wait_for_lock(ledger)
                yield ledger
        except OSError as error:
            raise DataError(
                f"{self.folder}: the cache cannot be written: {error.strerror or first_line(error)}"
                "; choose another [data] cache, or lower [data] cache_gb"
            ) from None


def _noted(ledger: BinaryIO) -> int | None:
    """The bytes that the ledger tells; None when it tells nothing."""
    ledger.seek(0)
    text = ledger.read(LEDGER)
    return int(text) if len(text) == LEDGER and text.isdigit() else None


def _note(ledger: BinaryIO, used: int) -> None:
    ledger.truncate(0)  # it is open for appending
    ledger.write(b"%0*d" % (LEDGER, used))


def _checksums(content: bytes) -> bytes:
    """crc32 of each CHUNK, four bytes each."""
    view = memoryview(content)
    sums = [zlib.crc32(view[at : at + CHUNK]) for at in range(0, len(content), CHUNK)]
    return struct.pack(f"<{len(sums)}I", *sums)
