"""An archive as its bytes come: one file or several parts, on a server or on this disk.

A server's file is read by ranges, several connections side by side and a few blocks ahead, which
stay in memory: nothing of the archive is written to the disk. Bytes leave here in order, as many as
promised, and of one version of the file. A part with a published checksum is compared with it when
it has been read from its start; `verified` says up to where bytes can be trusted, or need not be
doubted because nobody has published anything to compare them with.
"""

import hashlib
import http.client
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.ask import (
    CHUNK,
    PASSING,
    Broken,
    OutOfRange,
    Patience,
    ask,
    range_begin,
    range_total,
    strong_tag,
)

BLOCK = 16 << 20  # bytes asked for at once
CONNECTIONS = 8


class Part(Protocol):
    """Some of an archive's bytes."""

    name: str
    size: int
    sha256: str
    """As published; empty when it is not."""
    tag: str
    """Tells versions of it apart, besides size and checksum."""

    def read(self, begin: int) -> Iterator[bytes]:
        """Yield its bytes from `begin` to its end."""


@dataclass(frozen=True)
class LocalPart:
    """A file on this disk."""

    path: Path
    size: int
    sha256: str = ""
    tag: str = ""

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self, begin: int) -> Iterator[bytes]:
        """Yield its bytes from `begin` to its end."""
        with open(self.path, "rb") as file:
            file.seek(begin)
            while chunk := file.read(CHUNK):
                yield chunk


@dataclass(frozen=True)
class RemotePart:
    """A file on a server. Raises DownloadError when it does not come, or changes meanwhile."""

    name: str
    """Its address."""
    size: int
    sha256: str = ""
    tag: str = ""
    has_ranges: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    def read(self, begin: int) -> Iterator[bytes]:
        """Yield its bytes from `begin` to its end."""
        if not self.has_ranges:
            yield from self._read_straight(begin)
            return
        blocks = (_start(self._fetch, at) for at in range(begin, self.size, BLOCK))
        coming = deque(islice(blocks, CONNECTIONS))
        while coming:
            block = coming.popleft().result()
            coming.extend(islice(blocks, 1))
            yield block

    def _fetch(self, begin: int) -> bytes:
        """One block, in as many requests as it takes."""
        wanted, block = min(BLOCK, self.size - begin), bytearray()
        patience = Patience(self.name)
        while len(block) < wanted:
            at, end = begin + len(block), begin + wanted
            try:
                with ask(self.name, self.headers, begin=at, end=end, tag=self.tag) as response:
                    self._check_version(response, range_total(_range(response)))
                    if range_begin(_range(response)) != at:
                        raise Broken(f"the server sent {_range(response) or 'all'!r}, not a range")
                    while len(block) < wanted and (chunk := response.read1(CHUNK)):
                        block += chunk
                if len(block) < wanted:
                    raise Broken("the connection broke off")
            except OutOfRange as error:
                raise self._changed(f"now has {error.total} bytes, had {self.size}") from None
            except PASSING as error:
                patience.wait(error, len(block))
        return bytes(block[:wanted])

    def _read_straight(self, begin: int) -> Iterator[bytes]:
        """From a server without ranges: each time from the start, passing over what is known."""
        known, patience = begin, Patience(self.name)
        while known < self.size:
            at = 0
            try:
                with ask(self.name, self.headers) as response:
                    self._check_version(response, int(response.headers["Content-Length"] or 0))
                    while at < self.size and (chunk := response.read1(CHUNK)):
                        at += len(chunk)
                        if at > known:
                            new, known = chunk[known - at :], at
                            yield new
                if known < self.size:
                    raise Broken("the connection broke off")
            except PASSING as error:
                patience.wait(error, at)

    def _check_version(self, response: http.client.HTTPResponse, total: int) -> None:
        tag = strong_tag(response)
        if self.tag and tag != self.tag:
            raise self._changed(f"its tag is {tag or 'gone'}, was {self.tag}")
        if total not in (0, self.size):
            raise self._changed(f"now has {total} bytes, had {self.size}")

    def _changed(self, how: str) -> DownloadError:
        return DownloadError(
            f"{self.name}: changed at the server meanwhile ({how}); run again to begin with the "
            "new one"
        )


def look_at(url: str, *, headers: Mapping[str, str], sha256: str = "") -> RemotePart:
    """Ask a server how large a file is, which version, and whether it can be read by ranges."""
    patience = Patience(url)
    while True:
        try:
            with ask(url, headers, end=1) as response:
                has_ranges = response.status == 206
                length = response.headers.get("Content-Length") or ""
                size = range_total(_range(response)) if has_ranges else int(length or 0)
                if not size:
                    raise DownloadError(f"{url}: the server does not say how large it is")
                return RemotePart(url, size, sha256, strong_tag(response), has_ranges, headers)
        except OutOfRange:
            raise DownloadError(f"{url}: is empty") from None
        except PASSING as error:
            patience.wait(error, 0)


def _start(work: Callable[[int], bytes], begin: int) -> "Future[bytes]":
    """Run `work` beside us. Unlike a pool's, its thread keeps nobody from leaving."""
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(work(begin))
        except BaseException as error:  # noqa: BLE001  raised again where the result is taken
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _range(response: http.client.HTTPResponse) -> str:
    return response.headers.get("Content-Range", "")


@dataclass
class Archive:
    """Parts in their order, read as one."""

    name: str
    """As files are named: NAME.tar.gz."""
    address: str
    """Where it was looked for."""
    parts: list[Part]
    verified: int = 0
    """Up to here nothing is left to compare."""
    position: int = 0
    sha256: str = ""
    """Of all its bytes, when they were read in one go."""

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def identity(self) -> list[object]:
        """Equal for the same bytes in the same parts."""
        return [self.name, *([part.size, part.sha256, part.tag] for part in self.parts)]

    def read(self, begin: int = 0) -> Iterator[bytes]:
        """Yield all bytes from `begin`. Raises DownloadError for parts that are not as published.

        Where reading begins within a part, that part is taken as verified: nobody has a reason to
        begin at a place that was not.
        """
        whole = hashlib.sha256() if begin == 0 else None
        self.verified = self.position = begin
        start = 0
        for part in self.parts:
            inside = max(0, begin - start)
            if inside < part.size:
                for chunk in self._read_part(part, inside):
                    if whole:
                        whole.update(chunk)
                    self.position += len(chunk)
                    if not part.sha256 or inside:
                        self.verified = self.position
                    yield chunk
                self.verified = self.position
            start += part.size
        self.sha256 = whole.hexdigest() if whole else ""

    def _read_part(self, part: Part, begin: int) -> Iterator[bytes]:
        """A part's bytes, as many as promised, compared with its checksum."""
        digest, count = hashlib.sha256(), begin
        for chunk in part.read(begin):
            count += len(chunk)
            if part.sha256 and not begin:
                digest.update(chunk)
            yield chunk
        if count != part.size:
            raise DownloadError(f"{part.name}: {count} bytes instead of {part.size}; run again")
        if part.sha256 and not begin and digest.hexdigest() != part.sha256:
            raise DownloadError(
                f"{part.name}: checksum {digest.hexdigest()} instead of {part.sha256}; run again, "
                "and if it stays so, the file was changed by its publisher or on the way"
            )
