"""Ranges of remote files: asked for again when a request fails, and held to the file first seen.

A store that answers badly is asked `ATTEMPTS` times, with pauses that double, and no request may
take longer than `REQUEST_SECONDS`. What fails for good (no such file, no right to read) is not
asked again.

That a file was replaced is noticed by its `Stamp`. s3:// and http(s):// are told with each range
which version is meant (If-Match), and refuse another. Other stores have no such words: there the
stamp is asked for again with a range when it is older than `LOOK_AGAIN_SECONDS`.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.markup import escape

from cosmos_wds.config import first_line
from cosmos_wds.console import warn
from cosmos_wds.data.remote import file_system
from cosmos_wds.errors import DataError, UserError

T = TypeVar("T")

ATTEMPTS = 7
FIRST_PAUSE = 0.25  # seconds; 16 in all
REQUEST_SECONDS = 30.0
LOOK_AGAIN_SECONDS = 60.0
TELL_AT = 3  # failures of one request before it is said that there is a problem

S3 = {"s3", "s3a"}
HTTP_CONDITIONS = {"ETag": "If-Match", "Last-Modified": "If-Unmodified-Since"}
VERSIONS = (
    *("ETag", "etag", "generation", "blob_id", "Last-Modified", "LastModified"),
    *("last_modified", "updated", "mtime", "created"),
)
"""What file systems call that by which versions of a file differ; the first one told is taken."""
HOPELESS = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, UserError)
"""Errors that asking again does not mend; NotImplementedError: of what a store cannot do."""


@dataclass(frozen=True)
class Stamp:
    """Which version of a file: its bytes, and what the store says besides (`kind`), if anything."""

    size: int
    kind: str = ""
    version: str = ""

    def __str__(self) -> str:
        told = f", {self.kind} {self.version}" if self.kind else ""
        return f"{self.size} bytes{told}"


def stamp(url: str) -> Stamp:
    """The version that a file has now. Raises FileNotFoundError, or DataError naming it."""
    return _persistently(url, lambda: _ask_stamp(url))


def read_range(url: str, offset: int, size: int, seen: Stamp) -> bytes:
    """`size` bytes, which must be there, from `offset` of the version `seen`.

    Raises DataError naming the file: it cannot be read, or another version is there now.
    """

    def ask() -> bytes:
        content = _ask_range(url, offset, size, seen)
        if len(content) > size:
            raise DataError(
                f"{url}: the server sends whole files where parts are asked for; put the set on "
                "one that answers ranges, or copy it to this machine"
            )
        if len(content) < size:
            raise OSError(f"{len(content)} of {size} bytes came")
        return content

    try:
        return _persistently(url, ask, between=lambda: check_same(url, seen))
    except FileNotFoundError:
        raise DataError(f"{url}: no such file") from None


def check_same(url: str, seen: Stamp) -> None:
    """Raise DataError when there is another version now; what cannot be asked is not judged."""
    try:
        now = _ask_stamp(url)
    except FileNotFoundError:
        raise DataError(f"{url}: was removed while it was being read; put it back") from None
    except Exception:  # noqa: BLE001  (the store answers badly: the range itself tells)
        return
    if now != seen:
        raise DataError(
            f"{url}: was replaced while it was being read: {seen} before, {now} now; put back what "
            "the run began with, or start another run with the new shards"
        )


def _persistently(url: str, ask: Callable[[], T], between: Callable[[], None] = lambda: None) -> T:
    """The answer to a request, asked again after failures that may pass."""
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # noqa: BLE001  each library has its own, without a common base
            said = _words(error)
            if attempt == ATTEMPTS or not _may_pass(error):
                break
        between()
        if attempt == TELL_AT:
            warn(f"{escape(url)}: failed {attempt} times, trying on: {escape(said)}")
        time.sleep(pause)
        pause *= 2
    times = f" {attempt} times" if attempt > 1 else ""
    raise DataError(
        f"{url}: cannot be read: asked{times}, {said}; see that the store can be reached and the "
        "right to read is there"
    )


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no answer in {REQUEST_SECONDS:g} s"
    return first_line(error) or type(error).__name__


def _may_pass(error: Exception) -> bool:
    """Whether asking again can help: not where a server has understood and refused."""
    status = getattr(error, "status", None)
    is_refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 412, 429)
    return not is_refused and not isinstance(error, HOPELESS)


def _ask_stamp(url: str) -> Stamp:
    system = file_system(url)
    system.invalidate_cache()
    try:
        info = system.info(system._strip_protocol(url), **_patience(system))
    except FileNotFoundError as error:  # which http:// also says of a server that fails
        if isinstance(error.__cause__, Exception) and _may_pass(error.__cause__):
            raise error.__cause__ from None
        raise
    if info["type"] != "file":
        raise FileNotFoundError(url)
    if info["size"] is None:
        raise DataError(f"{url}: the server does not say how large it is; it must answer ranges")
    kind = next((key for key in VERSIONS if info.get(key)), "")
    return Stamp(int(info["size"]), kind, str(info.get(kind, "")))


def _ask_range(url: str, offset: int, size: int, seen: Stamp) -> bytes:
    system, end = file_system(url), offset + size
    path, patience = system._strip_protocol(url), _patience(system)
    scheme = url.partition("://")[0]
    if scheme in S3 and seen.kind == "ETag":
        from fsspec.asyn import sync

        return sync(system.loop, _s3_range, system, path, offset, end, seen.version, **patience)
    condition = HTTP_CONDITIONS.get(seen.kind) if scheme in ("http", "https") else None
    if condition and not seen.version.startswith("W/"):  # a weak one matches nothing
        patience["headers"] = {condition: seen.version}
    content: bytes = system.cat_file(path, start=offset, end=end, **patience)
    return content


async def _s3_range(system: Any, path: str, offset: int, end: int, version: str) -> bytes:
    """s3fs's `cat_file` cannot pass a condition on."""
    bucket, key, _ = system.split_path(path)
    reply = await system._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={offset}-{end - 1}", IfMatch=version
    )
    async with reply["Body"] as body:
        content: bytes = await body.read()
        return content


def _patience(system: Any) -> dict[str, Any]:
    """How long a request may take; file systems that are not asynchronous have limits of theirs."""
    return {"timeout": REQUEST_SECONDS} if getattr(system, "async_impl", False) else {}
