"""What to take out of an archive of recordings: everything, or some episodes of some splits.

An episode is an annotation and all videos that it names. Nothing is assumed of the order in which
they come:

annotation first    it waits for its videos, which are taken when they come
video first         it is taken in advance, as many of a split as episodes are still asked for, and
                    counts when its annotation comes
passed over         when the archive is at its end and an annotation waits for a video that was not
                    taken, the archive is read a second time, with all annotations known

A number of episodes is reached with whichever are whole first. A whole split is known to be whole
at the end of the archive, or earlier: in an archive written by walking folders (each folder has its
own entry, and what it holds follows at once) a folder that was left is not entered again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from rich.markup import escape

from cosmos_wds.console import warn
from cosmos_wds.data import mp4

VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm"}
KNOWN_SPLITS = {"train", "val", "test"}


class Choice(Protocol):
    """Decides about each member of an archive, by its name below the folder that is unpacked."""

    def wants(self, name: str) -> bool:
        """Whether a file is to be taken; asked for each, in the archive's order."""

    def took(self, name: str, path: Path) -> None:
        """A file was taken, and lies at `path`."""

    def passes(self, name: str, *, is_folder: bool) -> None:
        """A member comes; told before anything else about it."""

    def has_all(self, *, is_end: bool = False) -> bool:
        """Whether nothing of what follows is wanted."""

    def published(self) -> list[str] | None:
        """The files to keep; None for all."""

    def state(self) -> dict[str, Any]:
        """What cannot be seen from the files that were taken."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` gave."""


class Everything:
    """All that there is."""

    def wants(self, name: str) -> bool:  # noqa: ARG002
        """Yes."""
        return True

    def took(self, name: str, path: Path) -> None:
        """Nothing to learn from it."""

    def passes(self, name: str, *, is_folder: bool) -> None:
        """Nothing to learn from it."""

    def has_all(self, *, is_end: bool = False) -> bool:
        """Only at the end."""
        return is_end

    def published(self) -> list[str] | None:
        """All."""
        return None

    def state(self) -> dict[str, Any]:
        """None."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class Episodes:
    """Up to `number` episodes (0: all) of each of some splits."""

    def __init__(self, splits: Iterable[str], number: int, folders: Iterable[Path]) -> None:
        self.number, self.folders = number, list(folders)
        self.whole: dict[str, set[str]] = {split: set() for split in splits}
        self.waiting: dict[str, set[str]] = {}
        self.named_by: dict[str, list[str]] = {}
        self.files: dict[str, set[str]] = {}
        self.early: dict[str, set[str]] = {split: set() for split in self.whole}
        self.passed: set[str] = set()
        self.walk = Walk()
        for folder in self.folders:
            for split in self.whole:
                for path in sorted((folder / "annotation" / split).glob("*.json")):
                    self.took(path.relative_to(folder).as_posix(), path)

    def wants(self, name: str) -> bool:
        """Whether a file is an annotation of ours, one of their videos, or may become one."""
        split = self._split_of_annotation(name)
        if split:
            return name not in self.files and not self._has_enough(split)
        if name in self.named_by:
            is_wanted = any(
                annotation in self.waiting and not self._has_enough(_split(annotation))
                for annotation in self.named_by[name]
            )
        else:
            is_wanted = self._is_wanted_early(name)
        if not is_wanted and PurePosixPath(name).suffix.lower() in VIDEOS:
            self.passed.add(name)
        return is_wanted

    def took(self, name: str, path: Path) -> None:
        """Count a file in: an annotation, or a video that one waits for, now or later.

        A damaged one is told, and its episode is never counted.
        """
        if self._split_of_annotation(name):
            self._took_annotation(name, path)
        elif _is_damaged(path):
            path.unlink()
            warn(f"{escape(name)}: a damaged video; its episode is left out")
        elif name in self.named_by:
            for annotation in self.named_by[name]:
                self._came(annotation, name)
        else:
            self.early[self._split_of_video(name)].add(name)

    def passes(self, name: str, *, is_folder: bool) -> None:
        """Watch which folders end."""
        self.walk.passes(name, is_folder=is_folder)

    def has_all(self, *, is_end: bool = False) -> bool:
        """Whether each split has as many episodes as asked for, or all that there are of it."""
        return all(self._has_enough(split) or self._has_all(split, is_end) for split in self.whole)

    def published(self) -> list[str] | None:
        """Annotations and videos of whole episodes."""
        whole = [name for names in self.whole.values() for name in sorted(names)]
        return [*{video for name in whole for video in sorted(self.files[name])}, *whole]

    def summary(self, is_end: bool) -> dict[str, dict[str, Any]]:
        """For each split, how many whole episodes there are now, and whether that is all."""
        return {
            split: {
                "episodes": len(names),
                "all": not self._has_enough(split) and self._has_all(split, is_end),
            }
            for split, names in self.whole.items()
        }

    def state(self) -> dict[str, Any]:
        """What came by and was not taken."""
        walk = {**vars(self.walk), "ended": sorted(self.walk.ended)}
        early = {split: sorted(names) for split, names in self.early.items()}
        return {"walk": walk, "passed": sorted(self.passed), "early": early}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know again what came by in an earlier run."""
        walk = state["walk"]
        self.walk.open, self.walk.is_walk = list(walk["open"]), walk["is_walk"]
        self.walk.ended, self.passed = set(walk["ended"]), set(state["passed"])
        for split, names in state["early"].items():
            self.early[split] |= set(names)

    def missing(self) -> bool:
        """Whether a second reading would bring a video that the first one passed over."""
        return any(
            videos & self.passed and not self._has_enough(_split(name))
            for name, videos in self.waiting.items()
        )

    def _took_annotation(self, name: str, path: Path) -> None:
        videos = _videos_of(path)
        if not videos:
            self.files[name] = set()
            warn(f"{escape(name)}: not an annotation that names videos; left out")
            return
        self.files[name] = videos
        self.waiting[name] = set(videos)
        for video in videos:
            self.named_by.setdefault(video, []).append(name)
            if any((folder / video).is_file() for folder in self.folders):
                self._came(name, video)
        for taken in self.early.values():
            taken -= videos

    def _came(self, annotation: str, video: str) -> None:
        waits = self.waiting.get(annotation, set())
        waits.discard(video)
        if not waits and self.waiting.pop(annotation, None) is not None:
            split = _split(annotation)
            if not self._has_enough(split):
                self.whole[split].add(annotation)

    def _has_enough(self, split: str) -> bool:
        return bool(self.number) and len(self.whole[split]) >= self.number

    def _has_all(self, split: str, is_end: bool) -> bool:
        if is_end:
            return not self.missing()
        is_waiting = any(_split(name) == split for name in self.waiting)
        return not is_waiting and bool(self.whole[split]) and self._is_listed(split)

    def _is_listed(self, split: str) -> bool:
        """Whether all annotations of a split have come by, as far as can be told in the middle."""
        return self.walk.has_ended(f"annotation/{split}")

    def _is_wanted_early(self, name: str) -> bool:
        split = self._split_of_video(name)
        is_video = PurePosixPath(name).suffix.lower() in VIDEOS
        if not is_video or split is None or self._is_listed(split):
            return False
        room = self.number - len(self.whole[split]) if self.number else len(self.early[split]) + 1
        return len(self.early[split]) < room

    def _split_of_annotation(self, name: str) -> str:
        """The split, when the name is that of one of our annotations."""
        parts = PurePosixPath(name).parts
        is_ours = len(parts) == 3 and parts[0] == "annotation" and parts[1] in self.whole
        return parts[1] if is_ours and name.endswith(".json") else ""

    def _split_of_video(self, name: str) -> str | None:
        """The split that a folder in a video's name speaks of; else any; None for one not ours."""
        parts = PurePosixPath(name).parts[:-1]
        ours = next((part for part in parts if part in self.whole), None)
        is_others = ours is None and any(part in KNOWN_SPLITS for part in parts)
        return None if is_others else ours or next(iter(self.whole))


class Walk:
    """Whether an archive was written by walking folders, and which of them have ended."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.ended: set[str] = set()
        self.is_walk = True

    def passes(self, name: str, *, is_folder: bool) -> None:
        """Leave the folders that a member does not lie in, and enter the one that it is."""
        parent = str(PurePosixPath(name).parent)
        if not self.open:
            self.open = [parent]
        while self.open and self.open[-1] != parent:
            self.ended.add(self.open.pop())
        self.is_walk = self.is_walk and bool(self.open) and name not in self.ended
        if is_folder:
            self.open.append(name)

    def has_ended(self, folder: str) -> bool:
        """Whether all that a folder holds has come by."""
        return self.is_walk and folder in self.ended


def _split(annotation: str) -> str:
    return PurePosixPath(annotation).parts[1]


def _videos_of(path: Path) -> set[str]:
    """The videos that an annotation names, as the archive names them; none if it makes no sense."""
    try:
        value: Any = json.loads(path.read_bytes())["videos"]
        entries = list(value.values()) if isinstance(value, Mapping) else list(value)
        names = [entry["video_path"] for entry in entries]
        clean = {str(PurePosixPath(name)) for name in names}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()
    leads_out = any({"..", "/"} & set(PurePosixPath(name).parts) for name in clean)
    return set() if leads_out else clean


def _is_damaged(path: Path) -> bool:
    """Whether a video's frames are not all there; only of mp4 can that be told without decoding."""
    if path.suffix.lower() != ".mp4":
        return False
    try:
        mp4.read_track(path.read_bytes())
    except mp4.Damaged:
        return True
    except mp4.NotUnderstood:
        pass
    return False
