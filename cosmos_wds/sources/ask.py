"""Asking a server for bytes, patiently: one request, what its answer says, when to try again."""

import errno
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cosmos_wds import __version__
from cosmos_wds.errors import DownloadError

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between tries that brought nothing new
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
RESERVE = 64 << 20  # bytes that stay free on the disk
OUR_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


class Broken(Exception):
    """The connection or the server failed in a way that may pass; try again."""


class OutOfRange(Exception):
    """The server has no such bytes; `total` is the size that it names, or 0."""

    def __init__(self, total: int) -> None:
        super().__init__("the server has no such bytes")
        self.total = total


@contextmanager
def ask(
    url: str, headers: Mapping[str, str], *, begin: int = 0, end: int = 0, tag: str = ""
) -> Iterator[http.client.HTTPResponse]:
    """One request for the bytes from `begin` up to `end` (0: all the rest) of the version `tag`.

    `headers` (a token) go to the address itself, and nowhere that it redirects to. Raises Broken,
    OutOfRange, or DownloadError for what trying again does not mend.
    """
    asked = {"User-Agent": f"cosmos-wds/{__version__}", "Accept-Encoding": "identity"}
    if begin or end:
        asked["Range"] = f"bytes={begin}-{end - 1 if end else ''}"
    if tag:
        asked["If-Range"] = tag
    try:
        request = urllib.request.Request(url, headers=asked)
        for name, value in headers.items():
            request.add_unredirected_header(name, value)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise OutOfRange(range_total(error.headers.get("Content-Range", ""))) from None
        what = f"the server answers {error.code} {error.reason}"
        if error.code in TRY_AGAIN:
            raise Broken(what) from None
        raise DownloadError(f"{url}: {what}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise DownloadError(f"{url}: not an address: {error}") from None


class Patience:
    """Growing pauses between tries, until nothing new has come for too long."""

    def __init__(self, url: str, tell: Callable[[str], None] | None = None) -> None:
        self.url, self.tell = url, tell
        self.fruitless, self.best = 0, 0

    def wait(self, error: Exception, have: int) -> None:
        """After a try that failed and left `have` bytes: wait. Raises DownloadError at the end."""
        if isinstance(error, OSError) and error.errno in OUR_ERRORS:
            raise error
        self.fruitless = 0 if have > self.best else self.fruitless + 1
        self.best = max(self.best, have)
        if self.fruitless > len(PAUSES):
            raise DownloadError(
                f"{self.url}: {reason(error)}; what came is kept, run again to go on"
            ) from None
        pause = PAUSES[max(0, self.fruitless - 1)]
        if self.tell:
            self.tell(f"{reason(error)}; again in {pause:g} s")
        time.sleep(pause)


PASSING = (Broken, http.client.HTTPException, OSError)
"""What may be gone at the next try."""


def check_disk(folder: Path, wanted: int) -> None:
    """Raise DownloadError when `wanted` bytes do not fit the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if wanted > 0 and wanted + RESERVE > free:
        raise DownloadError(
            f"{folder}: {wanted / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free; make "
            "room, or give a folder on another disk"
        )


def strong_tag(response: http.client.HTTPResponse) -> str:
    """What tells this version of the file from others; empty where the server names nothing."""
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return "" if tag.startswith("W/") else tag


def range_begin(content_range: str) -> int:
    """The first byte that a `Content-Range` names; -1 when it names none."""
    begin = re.match(r"bytes (\d+)-", content_range)
    return int(begin[1]) if begin else -1


def range_total(content_range: str) -> int:
    """The size of the whole file that a `Content-Range` names; 0 when it names none."""
    total = content_range.rpartition("/")[2]
    return int(total) if total.isdecimal() else 0


def reason(error: Exception) -> str:
    """What went wrong, in words."""
    return str(getattr(error, "reason", "") or error) or type(error).__name__
