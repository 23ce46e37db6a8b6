"""Fetching one file over http(s), verified, and continued where it broke off.

NAME          the whole, verified file; never anything else
NAME.sha256   its checksum, as `sha256sum -c` reads it: the publisher's, or the one first seen
NAME.part     what has come so far;  NAME.part.tag  which version of the file that is

Weights are fetched so. Archives of recordings are not kept as files: see parts.py and archive.py.
"""

import hashlib
import http.client
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from rich.markup import escape
from rich.progress import Progress, TaskID

from cosmos_wds.config import write_text
from cosmos_wds.console import progress_bar, say
from cosmos_wds.data.lock import try_lock
from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.ask import (
    CHUNK,
    PASSING,
    RESERVE,
    Broken,
    OutOfRange,
    Patience,
    ask,
    check_disk,
    range_begin,
    range_total,
    strong_tag,
)

__all__ = ["RESERVE", "download"]


@dataclass
class _Fetch:
    """One running download: the open `.part`, how far it is, what the server said of the file."""

    url: str
    file: BinaryIO
    tag_file: Path
    expected: int
    progress: Progress
    task: TaskID
    headers: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def have(self) -> int:
        return self.file.tell()

    def restart(self) -> None:
        """Throw away what has come: it belongs to another version, or cannot be continued."""
        self.file.seek(0)
        self.file.truncate()
        self.hash = hashlib.sha256()
        self.tag_file.unlink(missing_ok=True)

    def read_tag(self) -> tuple[int, str]:
        """Total size and tag of the version that has come so far; (0, "") when unknown."""
        if not self.tag_file.exists():
            return 0, ""
        total, tag, *_ = [*self.tag_file.read_text().splitlines(), "", ""]
        return int(total) if total.isdecimal() else 0, tag


def download(
    url: str,
    dest: Path,
    *,
    expected_bytes: int = 0,
    sha256: str = "",
    headers: Mapping[str, str] | None = None,
) -> Path:
    """Fetch `url` to the file `dest`, which is whole and verified or not there.

    A broken download goes on where it stopped, in this call or the next; a file that is there and
    verified is left alone. Without a `sha256` the one seen is recorded in `NAME.sha256`. `headers`
    (a token) go to the address itself, and nowhere that it redirects to.
    """
    dest, sha256 = Path(dest), sha256.lower()
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url!r}: not an http(s) address; set download.url in the pipeline")
    if dest.exists():
        _check_existing(dest, expected_bytes, sha256)
        say(f"{escape(str(dest))}: already downloaded and verified")
        return dest
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        _fetch_part(url, dest, expected_bytes, sha256, headers or {})
    except OSError as error:
        raise DownloadError(f"{dest}: cannot be written: {error.strerror or error}") from None
    return dest


def _fetch_part(
    url: str, dest: Path, expected_bytes: int, sha256: str, headers: Mapping[str, str]
) -> None:
    part, tag_file = (dest.with_name(dest.name + end) for end in (".part", ".part.tag"))
    with _locked(part) as file, progress_bar() as progress:
        task = progress.add_task(f"{escape(dest.name)} (MB)", total=None, note="")
        fetch = _Fetch(url, file, tag_file, expected_bytes, progress, task, headers)
        _hash_present(fetch)
        _persist(fetch)
        file.flush()
        os.fsync(file.fileno())
        digest = fetch.hash.hexdigest()
        if sha256 and digest != sha256:
            part.unlink()
            tag_file.unlink(missing_ok=True)
            raise DownloadError(
                f"{url}: checksum {digest} instead of {sha256}; what came was deleted. Run again; "
                "if it stays so, the file was changed by its publisher or on the way"
            )
        _record(dest, digest)
        os.replace(part, dest)
        tag_file.unlink(missing_ok=True)
    say(f"{escape(str(dest))}: {fetch.total / 1e6:.1f} MB, sha256 {digest}")


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open the `.part` for going on, refusing a second download into it."""
    with open(part, "ab+") as file:
        if not try_lock(file):
            raise DownloadError(f"{part}: another download is writing it; wait for it")
        yield file


def _hash_present(fetch: _Fetch) -> None:
    """Take the bytes of an earlier run into the checksum, and stand behind them."""
    fetch.file.seek(0)
    while chunk := fetch.file.read(CHUNK):
        fetch.hash.update(chunk)


def _persist(fetch: _Fetch) -> None:
    """Ask again, with growing pauses, until all is there or nothing new comes any more."""
    patience = Patience(
        fetch.url, lambda note: fetch.progress.update(fetch.task, note=escape(note))
    )
    patience.best = fetch.have
    while True:
        try:
            _ask_once(fetch)
            return
        except PASSING as error:
            patience.wait(error, fetch.have)


def _ask_once(fetch: _Fetch) -> None:
    """One request: the rest of the file, or all of it."""
    tag = fetch.read_tag()[1] if fetch.have else ""
    try:
        with ask(fetch.url, fetch.headers, begin=fetch.have, tag=tag) as response:
            _accept(fetch, response)
            _receive(fetch, response)
    except OutOfRange as error:
        if fetch.have and error.total == fetch.have:
            fetch.total = fetch.have  # an earlier run had it all, and was stopped right then
            return
        fetch.restart()
        raise Broken("the server holds another version of the file") from None


def _accept(fetch: _Fetch, response: http.client.HTTPResponse) -> None:
    """Judge an answer's head: which bytes come, and of which version; start over where it differs.

    Only strong tags and the total size tell versions apart; the checksum has the last word.
    """
    length = int(response.headers.get("Content-Length") or 0)
    tag = strong_tag(response)
    if response.status == 206:
        sent = response.headers.get("Content-Range", "")
        if range_begin(sent) != fetch.have:
            fetch.restart()
            raise Broken(f"the server sent the range {sent!r}, which was not asked for")
        total = range_total(sent) or fetch.have + length
        if fetch.read_tag() not in ((0, ""), (total, tag)):
            fetch.restart()
            raise Broken("the server holds another version of the file")
    else:
        fetch.restart()
        total = length
    if fetch.expected and total not in (0, fetch.expected):
        raise DownloadError(
            f"{fetch.url}: {total} bytes at the server, {fetch.expected} expected (download.bytes "
            "in the pipeline)"
        )
    fetch.total = total or fetch.expected
    write_text(fetch.tag_file, f"{total}\n{tag}\n")
    check_disk(Path(fetch.file.name).parent, fetch.total - fetch.have)
    fetch.progress.update(fetch.task, total=fetch.total // 10**6 or None)


def _receive(fetch: _Fetch, response: http.client.HTTPResponse) -> None:
    while chunk := response.read1(CHUNK):
        fetch.file.write(chunk)
        fetch.hash.update(chunk)
        fetch.progress.update(fetch.task, completed=fetch.have // 10**6, note="")
    if fetch.have < max(fetch.total, 1):
        raise Broken("the connection broke off" if fetch.have else "the server sent nothing")
    if fetch.total and fetch.have > fetch.total:
        promised = fetch.total
        fetch.restart()
        raise Broken(f"more than the promised {promised} bytes came")
    fetch.total = fetch.have


def _check_existing(dest: Path, expected_bytes: int, sha256: str) -> None:
    """Raise DownloadError when the file under the final name is not the one that is wanted."""
    way_out = "move it away or delete it, then run again"
    size = dest.stat().st_size
    if expected_bytes and size != expected_bytes:
        raise DownloadError(f"{dest}: {size} bytes, {expected_bytes} expected; {way_out}")
    record = dest.with_name(dest.name + ".sha256")
    if not record.exists():  # put there by hand: look at it once
        digest = hashlib.sha256()
        with open(dest, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        _record(dest, digest.hexdigest())
    recorded = (record.read_text().split() or ["?"])[0]
    if sha256 and recorded != sha256:
        record.unlink()
        raise DownloadError(f"{dest}: checksum {recorded}, {sha256} expected; {way_out}")


def _record(dest: Path, digest: str) -> None:
    write_text(dest.with_name(dest.name + ".sha256"), f"{digest}  {dest.name}\n")
