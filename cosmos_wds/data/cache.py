"""Shards far away, read through a bounded folder of this machine.

What is read of a shard is fetched in aligned blocks, and neighbours that are missing in one
request. An episode is some hundred kB in one piece, read once in an epoch, and those beside it in
the tar are wanted at any other time of it (plan.py). So blocks are large, to save requests, where
the cache can hold the whole set; every byte is then fetched once. Where it cannot, a block will be
gone before its other episodes are wanted, and blocks are small, to fetch little that is not read.
Whole shards would multiply the traffic a hundredfold there.

A shard is what it was at its first use in the run, and as large as index.json says; ranges.py
notices another one. Blocks are kept under the name of that version, so that an older run's serve
this one, and those of a shard that was made anew are never taken for it.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cosmos_wds.data import ranges
from cosmos_wds.data.blocks import BlockFolder
from cosmos_wds.data.index import INDEX_NAME, ShardFile, ShardIndex
from cosmos_wds.data.ranges import Stamp
from cosmos_wds.data.remote import RemoteStorage
from cosmos_wds.data.storage import Storage, storage
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import DataSettings

BLOCK, SMALL_BLOCK = 2**20, 2**18
RUN = 2**23  # bytes that one request brings at most
THREADS, WAITING = 4, 256  # that prefetch; parts that may wait for them


def open_shards(place: str | Path, data: DataSettings) -> Storage:
    """Where shards are read from: a folder as it is, a URL through the cache of `data`.

    Raises ConfigError for an unknown kind of URL, DataError for a cache that cannot be written.
    """
    where = storage(place)
    if not isinstance(where, RemoteStorage):
        return where
    limit = int(data.cache_gb * 1e9)
    if not limit:
        return CachedStorage(where.url)
    return CachedStorage(
        where.url, BlockFolder(Path(data.cache).expanduser() / "blocks", limit).open()
    )


def prefetch(where: Storage, file: str, parts: Iterable[tuple[int, int]]) -> None:
    """Begin to fetch (offset, size) parts of a shard that will be read soon, if it is far away."""
    if isinstance(where, CachedStorage):
        where.prefetch(file, parts)


@dataclass
class Traffic:
    """What a storage has asked for so far, in this process."""

    requests: int = 0
    """Ranges asked of the store."""
    fetched: int = 0
    """Bytes that came."""
    read: int = 0
    """Bytes that were wanted of it, from the store or from the cache."""


@dataclass
class _Live:
    """What changes while a storage is read; a copy in another process begins anew with the stamps.

    stamps    the version of each file, and when it was last looked at
    flying    blocks that some thread is fetching
    waiting   (file, offset, size) to prefetch;  threads  how many threads do so now
    lock      of all these;  looking  of the first look at index.json
    """

    stamps: dict[str, tuple[Stamp, float]] = field(default_factory=dict)
    shards: dict[str, ShardFile] | None = None
    flying: dict[tuple[str, int], "Future[bytes]"] = field(default_factory=dict)
    waiting: "deque[tuple[str, int, int]]" = field(default_factory=lambda: deque(maxlen=WAITING))
    threads: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    looking: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[type["_Live"], tuple[dict[str, tuple[Stamp, float]]]]:
        return _Live, (dict(self.stamps),)


@dataclass(frozen=True)
class CachedStorage(RemoteStorage):
    """A remote set for reading; `blocks` keeps what was fetched, None keeps nothing."""

    blocks: BlockFolder | None = None
    _live: _Live = field(default_factory=_Live, compare=False, repr=False)

    @property
    def traffic(self) -> Traffic:
        """What was asked for so far."""
        return self._live.traffic

    def size(self, file: str) -> int:
        try:
            return ranges.stamp(self.name(file)).size
        except FileNotFoundError:
            return -1

    def read(self, file: str) -> bytes:
        """All of a file as it is now; the cache holds none of it."""
        seen = self._look(file)
        starts = range(0, seen.size, RUN)
        return b"".join(self._ask(file, at, min(RUN, seen.size - at), seen) for at in starts)

    def read_range(self, file: str, offset: int, size: int) -> bytes:
        seen = self._stamp(file)
        end = min(offset + size, seen.size)
        if end <= offset:
            return b""
        with self._live.lock:
            self._live.traffic.read += end - offset
        if self.blocks is None:
            return self._ask(file, offset, end - offset, seen)
        step = self._step
        parts: dict[int, bytes | None] = {}
        for number in range(offset // step, -(-end // step)):
            length = min(step, seen.size - number * step)  # a file's last block is shorter
            low, high = max(0, offset - number * step), min(length, end - number * step)
            parts[number] = self.blocks.get(self._block(file, number, seen), length, low, high)
        missing = [number for number, part in parts.items() if part is None]
        for number, whole in self._fetch(file, missing, seen).items():
            parts[number] = whole.result()[max(0, offset - number * step) : end - number * step]
        return b"".join(part for part in parts.values() if part is not None)

    def prefetch(self, file: str, parts: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch (offset, size) parts in the background.

        What fails there fails again, and is told, when it is read. When too many wait, those that
        have waited longest are left to the reader.
        """
        if self.blocks is None:
            return
        with self._live.lock:
            self._live.waiting.extend((file, *part) for part in parts)
            begin = min(THREADS - self._live.threads, len(self._live.waiting))
            self._live.threads += begin
        for _ in range(begin):
            threading.Thread(target=self._fetch_waiting, daemon=True).start()

    def _fetch_waiting(self) -> None:
        """Fetch what waits until nothing does: what one of the threads of prefetch does."""
        assert self.blocks is not None
        while True:
            with self._live.lock:
                if not self._live.waiting:
                    self._live.threads -= 1
                    return
                file, offset, size = self._live.waiting.popleft()
            with suppress(DataError):
                seen, step = self._stamp(file), self._step
                numbers = range(offset // step, -(-min(offset + size, seen.size) // step))
                names = {number: self._block(file, number, seen) for number in numbers}
                self._fetch(file, [n for n in names if not self.blocks.has(names[n])], seen)

    def _fetch(self, file: str, numbers: Sequence[int], seen: Stamp) -> dict[int, "Future[bytes]"]:
        """Blocks of a shard, fetched and kept here, or by the thread that is fetching them."""
        live, wanted, mine = self._live, {}, []
        with live.lock:
            for number in numbers:
                if (file, number) not in live.flying:
                    live.flying[file, number] = Future()
                    mine.append(number)
                wanted[number] = live.flying[file, number]
        try:
            for run in _runs(mine, RUN // self._step):
                for number, content in self._ask_run(file, run, seen):
                    wanted[number].set_result(content)
        except BaseException as error:
            for number in mine:
                if not wanted[number].done():
                    wanted[number].set_exception(error)
            raise
        finally:
            with live.lock:
                for number in mine:
                    del live.flying[file, number]
        return wanted

    def _ask_run(self, file: str, run: range, seen: Stamp) -> Iterator[tuple[int, bytes]]:
        """Neighbouring blocks by one request, kept in the cache."""
        assert self.blocks is not None
        step = self._step
        start, end = run.start * step, min(run.stop * step, seen.size)
        content = self._ask(file, start, end - start, seen)
        for number in run:
            at = (number - run.start) * step
            block = content[at : at + step]
            self.blocks.put(self._block(file, number, seen), block)
            yield number, block

    def _ask(self, file: str, offset: int, size: int, seen: Stamp) -> bytes:
        content = ranges.read_range(self.name(file), offset, size, seen)
        with self._live.lock:
            self._live.traffic.requests += 1
            self._live.traffic.fetched += size
        looked = self._live.stamps.get(file)
        if looked and time.monotonic() - looked[1] > ranges.LOOK_AGAIN_SECONDS:
            ranges.check_same(self.name(file), seen)
            self._live.stamps[file] = seen, time.monotonic()
        return content

    def _look(self, file: str) -> Stamp:
        try:
            return ranges.stamp(self.name(file))
        except FileNotFoundError:
            raise DataError(f"{self.name(file)}: no such file") from None

    def _stamp(self, file: str) -> Stamp:
        """The version of a shard that this run reads. DataError when it is not index.json's."""
        found = self._live.stamps.get(file)
        if found is None:
            seen, said = self._look(file), self._shards().get(file)
            if said and seen.size != said.bytes:
                raise DataError(
                    f"{self.name(file)}: {seen.size} bytes, and index.json says {said.bytes}: it "
                    "was replaced or is not whole; put the set there again"
                )
            found = self._live.stamps.setdefault(file, (seen, time.monotonic()))
        return found[0]

    def _shards(self) -> dict[str, ShardFile]:
        """What index.json says of each shard; nothing where there is none."""
        live = self._live
        with live.looking:
            if live.shards is None:
                there = self.size(INDEX_NAME) >= 0
                splits = ShardIndex.read(self).splits.values() if there else ()
                live.shards = {shard.name: shard for split in splits for shard in split}
        return live.shards

    @cached_property
    def _step(self) -> int:
        """Bytes of a block."""
        assert self.blocks is not None
        whole = sum(shard.bytes for shard in self._shards().values())
        return BLOCK if whole <= self.blocks.limit else SMALL_BLOCK

    def _block(self, file: str, number: int, seen: Stamp) -> str:
        """The name of a block in the cache: it says which version of which shard it is of."""
        said = self._shards().get(file)
        version = f"{self.name(file)}\n{seen}\n{said.sha256 if said else ''}\n{self._step}"
        return f"{hashlib.sha256(version.encode()).hexdigest()[:24]}-{number}"


def _runs(numbers: Sequence[int], most: int) -> Iterator[range]:
    """Ascending numbers as ranges of at most `most` neighbours."""
    start = 0
    for at in range(1, len(numbers) + 1):
        is_next = at < len(numbers) and numbers[at] == numbers[at - 1] + 1 and at - start < most
        if not is_next:
            yield range(numbers[start], numbers[at - 1] + 1)
            start = at
