"""The folder beside a data set in which an archive is unpacked, and how it becomes the data set.

.NAME.coming/files/         what was unpacked so far, not yet vouched for
.NAME.coming/taken.txt      the names of these files, in order
.NAME.coming/point.json     where reading can go on, and how many of the files lie before that
NAME/                       files of which all has been checked that can be
NAME/.extracted.json        from which archive, whether all of it, what was compared

Files are unpacked out of sight and moved at the end, annotations last: an episode that is seen in
NAME is whole. When a run goes on, what the stopped one unpacked behind its last point is thrown
away and unpacked again, so that every file that stays is covered by the checksum at the end.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from cosmos_wds.config import write_text
from cosmos_wds.console import warn
from cosmos_wds.data.lock import try_lock
from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.gunzip import Point

MARKER = ".extracted.json"


class Work:
    """One folder in which an archive is being unpacked; nobody else works in it meanwhile."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest = dest.resolve()  # it may be a link to a larger disk
        self.folder = dest.with_name(f".{dest.name}.coming")
        self.files = self.folder / "files"
        self.point_file = self.folder / "point.json"
        self.taken_file = self.folder / "taken.txt"
        self.taken = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out; at the end keep only what a later run can go on with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            if not try_lock(lock):
                raise DownloadError(
                    f"{self.dest}: another download is unpacking into it; wait for it"
                )
            try:
                yield
            finally:
                if not self.point_file.exists():
                    shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self, request: Mapping[str, Any]) -> tuple[Point, int, dict[str, Any]]:
        """Where to go on for this request, with the place in the tar and the state that was saved.

        From the start when nothing was saved, or for another request.
        """
        saved = _read_json(self.point_file)
        if saved.get("request") != request:
            if saved:
                warn(f"{escape(str(self.folder))}: what another download left is thrown away")
            self.forget()
            shutil.rmtree(self.files, ignore_errors=True)
            self.files.mkdir()
            self.taken_file.write_text("")
            return Point(), 0, {}
        lines = self.taken_file.read_text(encoding="utf-8").splitlines()[: saved["taken"]]
        names = [json.loads(line) for line in lines]
        self.taken = len(names)
        known = {self.files / name for name in names}
        for path in _files_below(self.files):
            if path not in known:
                path.unlink()
        write_text(self.taken_file, "".join(f"{line}\n" for line in lines))
        window = base64.b64decode(saved["point"].pop("window"))
        return Point(**saved["point"], window=window), saved["offset"], saved["state"]

    @property
    def address(self) -> str:
        """Where an archive that was begun comes from; empty when there is nothing to go on with."""
        return str(_read_json(self.point_file).get("request", {}).get("address", ""))

    def took(self, name: str) -> None:
        """Note a file that was unpacked."""
        with open(self.taken_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(name) + "\n")
        self.taken += 1

    def save(
        self, request: Mapping[str, Any], point: Point, offset: int, state: Mapping[str, Any]
    ) -> None:
        """Make this the place to go on from, once all files before it are on the disk."""
        _sync()
        plain = {**asdict(point), "window": base64.b64encode(point.window).decode("ascii")}
        saved = {"request": request, "point": plain, "offset": offset, "taken": self.taken}
        write_text(self.point_file, json.dumps({**saved, "state": state}))

    def forget(self) -> None:
        """There is no place to go on from any more."""
        self.point_file.unlink(missing_ok=True)

    def publish(self, names: Iterable[str] | None, record: Mapping[str, Any]) -> None:
        """Move the files to the data set, all or those named, and write its record."""
        _sync()
        text = json.dumps(record, indent=1) + "\n"
        if names is None and not (self.dest.exists() and any(self.dest.iterdir())):
            (self.files / MARKER).write_text(text)
            self.files.replace(self.dest)
        else:
            self._merge(names)
            write_text(self.dest / MARKER, text)
        self.forget()

    def _merge(self, names: Iterable[str] | None) -> None:
        marker = self.dest / MARKER
        if not marker.exists():  # ours from now on, though it promises nothing yet
            write_text(marker, json.dumps({"subset": {}}) + "\n")
        every = (path.relative_to(self.files).as_posix() for path in _files_below(self.files))
        chosen = every if names is None else (n for n in names if (self.files / n).exists())
        for name in sorted(chosen, key=lambda name: (name.startswith("annotation/"), name)):
            (self.dest / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.files / name, self.dest / name)


def read_record(dest: Path) -> dict[str, Any] | None:
    """What a data set's record says; None when the folder is not there, or empty.

    Raises DownloadError when it holds what was not unpacked by this tool.
    """
    if (dest / MARKER).is_file():
        return _read_json(dest / MARKER)
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise DownloadError(
            f"{dest}: holds files that were not unpacked by this tool; move it away or give "
            "another folder"
        )
    return None


def _sync() -> None:
    """Have all that was written on the disk, so that a power cut leaves what is noted."""
    if hasattr(os, "sync"):
        os.sync()


def _files_below(folder: Path) -> list[Path]:
    """All files and links below a folder."""
    return [Path(at) / n for at, _, names in os.walk(folder) for n in names] + [
        Path(at) / n
        for at, folders, _ in os.walk(folder)
        for n in folders
        if (Path(at) / n).is_symlink()
    ]


def _read_json(path: Path) -> dict[str, Any]:
    """A table from a file; an empty one when there is none, or no sense in it."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
