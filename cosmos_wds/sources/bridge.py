"""Recordings in the Bridge layout of IRASim (spec.md a): one annotation and its videos an episode.

ROOT/annotation/SPLIT/ID.json    state, continuous_gripper_state, action, videos, texts, ...
ROOT/videos/SPLIT/ID/rgb.mp4     wherever the annotation's `video_path` points, below ROOT
"""

import hashlib
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pydantic_core import from_json

from cosmos_wds.data.episode import Episode, Recording, StoredVideo
from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import DataError
from cosmos_wds.sources.values import finite, numbers, steps, text

READ_KEYS = {"state", "continuous_gripper_state", "action", "videos", "texts", "episode_id"}


@dataclass(frozen=True)
class BridgeSource:
    """The episodes of one folder, found and read one by one."""

    storage: Storage
    splits: tuple[str, ...] = ("train", "val", "test")
    name: str = "bridge"
    """The pipeline that downloads or makes this folder, for advice in errors."""

    @property
    def root(self) -> str:
        return str(self.storage)

    def list(self, split: str) -> list[Recording]:
        """The split's annotations in natural order (2 before 10); none when there is no split."""
        if not self.storage.has_folder("annotation"):
            what = "has no annotation folder" if self.storage.has_folder() else "no such folder"
            raise DataError(
                f"{self.root}: {what}; run `cosmos-wds download {self.name}`, or give the folder "
                "that holds annotation/ and videos/"
            )
        folder = f"annotation/{split}"
        names = self.storage.list(folder)
        stems = [n.removesuffix(".json") for n in names if n.endswith(".json") and n[0] != "."]
        return [Recording(split, s, f"{folder}/{s}.json") for s in sorted(stems, key=_natural)]

    def read(self, recording: Recording) -> Episode:
        """Read one annotation. Raises DataError naming the file and the key that is wrong."""
        file = recording.file
        content = self.storage.read(file)
        table = _parse(content, file)
        pose = numbers(_need(table, "state", file), file, "state", width=6)
        gripper = _gripper(_need(table, "continuous_gripper_state", file), file, len(pose))
        if len(pose) < 2:
            raise DataError(f"{file}: state: {len(pose)} frame, and an action needs two")
        extra = {k: finite(v) for k, v in table.items() if k not in READ_KEYS}
        command, problem = None, ""
        try:
            command = _command(table.get("action"), file, len(pose))
        except DataError as error:
            problem = str(error).removeprefix(f"{file}: ")
        return Episode(
            id=_identity(table, recording.name),
            state=np.column_stack([pose[:, :6], gripper]),
            command=command,
            videos=self._videos(_need(table, "videos", file), file),
            source_sha256=hashlib.sha256(content).hexdigest(),
            text=text(table.get("texts")),
            extra=extra,
            command_problem=problem,
        )

    def _videos(self, value: Any, file: str) -> dict[int, StoredVideo]:
        """Camera number -> video, from a list or from a dictionary with numbers as keys."""
        if isinstance(value, Mapping) and all(str(k).isdecimal() for k in value):
            entries = {int(k): v for k, v in value.items()}
        elif isinstance(value, list):
            entries = dict(enumerate(value))
        else:
            raise DataError(f"{file}: videos: neither a list nor a table of numbered cameras")
        if 0 not in entries:
            raise DataError(f"{file}: videos: camera 0 is missing")
        return {camera: self._video(entries[camera], file, camera) for camera in sorted(entries)}

    def _video(self, entry: Any, file: str, camera: int) -> StoredVideo:
        """One camera's video: an existing file that lies below the root."""
        name = entry.get("video_path") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{file}: videos[{camera}].video_path: missing or not a text")
        parts = PurePosixPath(name).parts
        if parts[0] == "/" or ".." in parts:
            raise DataError(f"{file}: videos[{camera}]: {name} leads out of the data folder")
        if self.storage.size(name) < 0:
            raise DataError(f"{file}: videos[{camera}]: no such file: {name}")
        if not self.storage.is_inside(name):
            raise DataError(f"{file}: videos[{camera}]: {name} is a link out of the data folder")
        return StoredVideo(self.storage, name)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that compares runs of digits as numbers; the name itself decides ties."""
    pieces = re.split(r"(\d+)", name)
    return [int(p) if i % 2 else p for i, p in enumerate(pieces)], name


def _parse(content: bytes, file: str) -> dict[str, Any]:
    try:
        table = from_json(content.removeprefix(BOM_UTF8))  # the values of json.loads, in a quarter
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{file}: not an annotation: its JSON is a {type(table).__name__}")
    return table


def _need(table: Mapping[str, Any], key: str, file: str) -> Any:
    if table.get(key) is None:
        raise DataError(f"{file}: {key}: missing key")
    return table[key]


def _gripper(value: Any, file: str, length: int) -> np.ndarray:
    """One value a frame; files with rows of one number are as good."""
    key = "continuous_gripper_state"
    is_flat = isinstance(value, list) and not isinstance(next(iter(value), None), list)
    rows = numbers([[v] for v in value] if is_flat else value, file, key, width=1)
    if rows.shape != (length, 1):
        raise DataError(f"{file}: {key}: {len(rows)} values for {length} states")
    return rows[:, 0]


def _command(value: Any, file: str, length: int) -> np.ndarray | None:
    """Recorded actions (T-1, 7)."""
    if value is None:
        return None
    rows = numbers(value, file, "action", width=7)
    if rows.shape[1] != 7:
        raise DataError(f"{file}: action: rows of {rows.shape[1]} numbers; 7 are needed")
    return steps(rows, length, file)


def _identity(table: Mapping[str, Any], name: str) -> str:
    for key in ("episode_id", "original_path"):
        if table.get(key) not in (None, ""):
            return str(table[key])
    return name
