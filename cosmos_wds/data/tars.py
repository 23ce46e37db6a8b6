"""What lies where in a tar, found by reading the heads of its members alone."""

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cosmos_wds.console import warn
from cosmos_wds.data.index import BLOCK
from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import DataError

WINDOW = 16384  # bytes asked for at once: the small members of a sample and the heads around them
SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""A member's path: the sample's key up to the first dot of the base name, and the member's name."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Words in the names of files and folders, and the splits that they mean."""


@dataclass(frozen=True)
class Member:
    """A piece of a tar."""

    tar: str
    offset: int
    size: int

    def read(self, storage: Storage, name: str) -> bytes:
        """Its content. Raises DataError, calling it `name`, when the tar ends before."""
        content = storage.read_range(self.tar, self.offset, self.size)
        if len(content) < self.size:
            raise DataError(f"{name}: {len(content)} bytes of {self.size} are there")
        return content


@dataclass(frozen=True)
class TarSample:
    """Members that follow each other and share a key, by what their names add to it."""

    key: str
    members: Mapping[str, Member] = field(default_factory=dict)
    problem: str = ""
    """Why it cannot be used."""


def find_tars(storage: Storage) -> list[str]:
    """All tars of a folder and of those directly below it, in order."""
    names = storage.list()
    others = [name for name in names if not name.startswith(".") and name[-4:] != ".tar"]
    folders = [name for name in others if storage.has_folder(name)]
    names += [f"{folder}/{name}" for folder in folders for name in storage.list(folder)]
    tars = sorted(name for name in names if name.endswith(".tar"))
    if not tars:
        what = "no tar" if storage.has_folder() else "no such folder"
        raise DataError(f"{storage}: {what}; give the folder that holds them")
    return tars


def split_of(tar: str) -> str:
    """The first word of a path that names a split; `train` when none does."""
    words = re.split(r"[^a-z]+", tar.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def scan(storage: Storage, tar: str) -> Iterator[TarSample]:
    """The samples of a tar in order.

    What is cut off or damaged comes as a sample with a problem, so that it is told and not lost.
    """
    size = storage.size(tar)
    key, members, last, end = "", {}, "", 0
    for info in _heads(storage, tar, size):
        found = SAMPLE.fullmatch(info.name)
        last, end = info.name, info.offset_data + info.size
        if found is None or not info.isreg() or info.issparse():
            continue
        name = found[2].lower()
        if found[1] != key or name in members:
            if members:
                yield TarSample(key.removeprefix("./"), members)
            key, members = found[1], {}
        members[name] = Member(tar, info.offset_data, info.size)
    problem = f"the tar is cut off inside {last}: {size} bytes of {end}" if end > size else ""
    if members:
        yield TarSample(key.removeprefix("./"), members, problem)
    if not problem:
        yield from _rest(storage, tar, -(-end // BLOCK) * BLOCK)


def _heads(storage: Storage, tar: str, size: int) -> Iterator[tarfile.TarInfo]:
    """Heads of members as far as they make sense."""
    window = io.BufferedReader(_Ranges(storage, tar, size), WINDOW)
    try:
        with tarfile.open(fileobj=window, mode="r:") as opened:
            yield from opened
    except (tarfile.TarError, ValueError):
        return  # _rest looks at what is there instead


def _rest(storage: Storage, tar: str, end: int) -> Iterator[TarSample]:
    """A problem when something else than the end mark, zeros, follows the last member."""
    mark = storage.read_range(tar, end, BLOCK)
    if not mark and end:
        warn(f"{storage.name(tar)}: no end mark; samples may be missing after byte {end}")
    elif mark != bytes(BLOCK):
        yield TarSample(f"byte {end}", problem="not a tar from here on: damaged or cut off")


class _Ranges(io.RawIOBase):
    """A stored file to seek in, read by ranges."""

    def __init__(self, storage: Storage, file: str, size: int) -> None:
        self._storage, self._file, self._size, self._at = storage, file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        size = min(len(buffer), max(0, self._size - self._at))
        content = self._storage.read_range(self._file, self._at, size)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
