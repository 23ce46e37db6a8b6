"""Unpacking an archive while it comes: no copy of it on the disk, and little lost when it stops.

Bytes go from the connections through gunzip and tar to the folder, in memory. gzip cannot be
entered in the middle without a note of what came before; such a note is made every 128 MiB
(gunzip.py), and a run that goes on asks the server for no more than what lies behind the last one.
Where parts have published checksums, a note counts once its part was compared: up to one part
(2 GiB in the mirror) comes again. Nothing gets its final name before it was checked (work.py):

all of it     gzip's checksum and length, the tar's heads and end, each part's published checksum
a subset      that stops early: the same as far as it was read. gzip's checksum stands at the end,
              so it is not compared; instead annotations must be JSON, and mp4 whole. The record
              says so.
"""

import shutil
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import Progress, TaskID

from cosmos_wds.console import progress_bar, say, warn
from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.ask import check_disk
from cosmos_wds.sources.choice import Choice, Episodes, Everything
from cosmos_wds.sources.gunzip import Content, Damaged, Point
from cosmos_wds.sources.members import Stream, below, extract, members
from cosmos_wds.sources.parts import Archive
from cosmos_wds.sources.work import Work, read_record


@dataclass(frozen=True)
class Wanted:
    """What is asked for of an archive: all, or up to `episodes` (0: all) of each of `splits`."""

    strip: str = ""
    """A folder of the archive whose content becomes the data set; what lies beside is left out."""
    splits: tuple[str, ...] = ()
    episodes: int = 0

    @property
    def is_subset(self) -> bool:
        return bool(self.splits)


def is_there(dest: Path, name: str, wanted: Wanted) -> bool:
    """Whether `dest` holds what is wanted of the archive `name`.

    Raises DownloadError when it holds something else.
    """
    record = read_record(dest)
    if not record:
        return False
    made_from = {"archive": name, "strip": wanted.strip}
    if "archive" in record and any(record.get(key) != value for key, value in made_from.items()):
        raise DownloadError(
            f"{dest}: was unpacked from {record['archive']} (strip = {record.get('strip')!r}); "
            "move it away or give another folder"
        )
    subset = record.get("subset")
    if subset is None:
        return True
    return wanted.is_subset and all(_covers(subset.get(s), wanted) for s in wanted.splits)


def _covers(split: Mapping[str, Any] | None, wanted: Wanted) -> bool:
    if not split:
        return False
    return split["all"] or bool(wanted.episodes) and split["episodes"] >= wanted.episodes


def unpack(archive: Archive, dest: Path, wanted: Wanted) -> None:
    """Bring what is wanted of an archive into the folder `dest`, beside what is there of it.

    Raises DownloadError, and leaves nothing half-done in `dest`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError("unpacking safely needs Python 3.10.12, 3.11.4, 3.12 or newer")
    work = Work(dest)
    try:
        with work.locked():
            if not is_there(dest, archive.name, wanted):
                _check_same(dest, archive)
                _unpack(archive, work, wanted)
    except OSError as error:
        raise DownloadError(
            f"{error.filename or dest}: {error.strerror or error}; run again to go on"
        ) from None


def _check_same(dest: Path, archive: Archive) -> None:
    """A subset grows from the archive that it was taken from, or not at all."""
    size = (read_record(dest) or {}).get("bytes", archive.size)
    if size != archive.size:
        raise DownloadError(
            f"{dest}: was taken from an archive of {size} bytes, and now it has {archive.size}; "
            "move it away, or give another folder"
        )


def _unpack(archive: Archive, work: Work, wanted: Wanted) -> None:
    request = {
        **{"archive": archive.identity, "address": archive.address},
        **{"strip": wanted.strip, "splits": list(wanted.splits), "episodes": wanted.episodes},
    }
    point, offset, state = work.begin(request)
    choice: Choice = Everything()
    if wanted.is_subset:
        choice = Episodes(wanted.splits, wanted.episodes, [work.dest, work.files])
    if state:
        choice.restore(state["choice"])
        say(f"going on at {point.compressed / 1e9:.2f} of {archive.size / 1e9:.2f} GB")
    if not wanted.is_subset:
        check_disk(work.folder, archive.size - point.compressed)
    with progress_bar() as progress:
        task = progress.add_task("unpack (MB)", total=archive.size // 10**6 or 1, note="")
        reading = Reading(archive, work, choice, wanted, request, Rate(progress, task))
        reading.read(point, offset, state.get("round", 1))
        if not choice.has_all(is_end=True) and reading.round == 1:
            say("some videos came before their annotations: reading the archive once more")
            reading.read(Point(), 0, 2)
    reading.check_result()
    record = reading.record(read_record(work.dest) or {})
    work.publish(choice.published(), record)
    _tell(work.dest, archive, record)
    shutil.rmtree(work.folder, ignore_errors=True)


@dataclass
class Rate:
    """How far it is and how fast, on a progress bar."""

    progress: Progress
    task: TaskID
    began: float = field(default_factory=time.monotonic)
    first: int = -1

    def show(self, position: int) -> None:
        """Tell how many bytes have come."""
        self.first = position if self.first < 0 else self.first
        speed = (position - self.first) / 1e6 / max(time.monotonic() - self.began, 1e-3)
        self.progress.update(self.task, completed=position // 10**6, note=f"{speed:.0f} MB/s")


@dataclass
class Reading:
    """One run over an archive: what is taken, how far it is, what was found out."""

    archive: Archive
    work: Work
    choice: Choice
    wanted: Wanted
    request: Mapping[str, Any]
    rate: Rate
    round: int = 1
    beside: str = ""
    """A member outside the folder that is unpacked."""
    content: Content = field(init=False)
    saved: Point | None = None
    is_whole: bool = False
    """Whether the archive was read to its end, and found to be as its writer wrote it."""

    def read(self, point: Point, offset: int, number: int) -> None:
        """Take what is wanted, from a place in the tar on, until all is there or the end comes.

        Raises DownloadError. What may come right when it is fetched again can be gone on with;
        where that failed before, or the checksum at the end tells that a byte is wrong but not
        which, all is thrown away.
        """
        self.round, self.saved, self.is_whole = number, point, False
        self.content = Content(self.archive.read(point.compressed), point)
        stream = Stream(iter(self.content), point.content)
        try:
            stream.skip(offset - point.content)
            for tar, member in members(stream, offset):
                self._save(tar, offset + member.offset)
                self._take(tar, member)
                self.rate.show(self.archive.position)
                if self.choice.has_all() and self.archive.position < self.archive.size:
                    return
        except (Damaged, tarfile.FilterError) as error:
            is_stuck = self.saved is point or self.content.is_done
            if is_stuck or isinstance(error, tarfile.FilterError):
                self.work.forget()
            is_damaged = isinstance(error, Damaged)
            what = (
                "damaged or not a tar archive" if is_damaged else "unsafe member, nothing unpacked"
            )
            raise DownloadError(f"{self.archive.name}: {what}: {error}") from None
        self.is_whole = True

    def _save(self, tar: tarfile.TarFile, here: int) -> None:
        """Note the place before a member, when there is a new point to enter at."""
        usable = [
            point
            for point in self.content.points
            if point.content <= here and point.compressed <= self.archive.verified
        ]
        if usable and usable[-1] is not self.saved and not tar.pax_headers:
            self.saved = usable[-1]
            state = {"round": self.round, "choice": self.choice.state()}
            self.work.save(self.request, self.saved, here, state)

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Unpack a member, if it is wanted."""
        name = below(member.name, self.wanted.strip)
        if name is None:
            self.beside = self.beside or member.name
            return
        self.choice.passes(name, is_folder=member.isdir())
        if self.wanted.is_subset and not (member.isfile() and self.choice.wants(name)):
            return
        extract(tar, member, self.work.files, strip=self.wanted.strip)
        if not member.isdir():
            self.work.took(name)
            self.choice.took(name, self.work.files / name)

    def check_result(self) -> None:
        """Raise DownloadError when nothing of what was asked for was found."""
        published, strip = self.choice.published(), self.wanted.strip
        if published or (published is None and self.work.taken):
            return
        self.work.forget()
        splits = ", ".join(self.wanted.splits)
        what = f"no whole episodes of {splits}" if splits else "no files"
        where = f" below {strip}" if strip else ""
        hint = f"; it holds {self.beside}, see download.strip in the pipeline"
        raise DownloadError(f"{self.archive.name}: {what}{where}" + (hint if self.beside else ""))

    def record(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What the data set's record says after this reading; `before` is what it said."""
        archive, content = self.archive, self.content
        made: dict[str, Any] = {"archive": archive.name, "bytes": archive.size}
        made |= {"strip": self.wanted.strip, "from": archive.address}
        if isinstance(self.choice, Episodes):
            made["subset"] = {**before.get("subset", {}), **self.choice.summary(self.is_whole)}
        published = {part.name: part.sha256 for part in archive.parts if part.sha256}
        if self.is_whole:
            sums = "published checksums" if published else "gzip's checksum"
            is_compared = published or content.members
            how = sums if is_compared else "its length alone: no checksum is published"
            made |= {"checked": f"all of the archive, by {how}"}
            made |= {"crc32": f"{content.crc:08x}"} if content.members <= 1 else {}
            made |= {"sha256": archive.sha256} if archive.sha256 else {}
        else:
            made["checked"] = (
                "annotations and videos; the archive's checksum was not compared: "
                f"{archive.position} of its {archive.size} bytes were read"
            )
        return made | ({"published": published} if published else {})


def _tell(dest: Path, archive: Archive, record: Mapping[str, Any]) -> None:
    """Say what is there now."""
    for split, found in record.get("subset", {}).items():
        what = "all that there are" if found["all"] else "as asked for"
        (say if found["episodes"] else warn)(f"{split}: {found['episodes']} episodes, {what}")
    say(f"{escape(str(dest))}: unpacked from {escape(archive.name)}; checked: {record['checked']}")
