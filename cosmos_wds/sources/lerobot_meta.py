"""What a LeRobot data set says of itself: meta/info.json, and where each of its episodes lies.

v2.0, v2.1   meta/episodes.jsonl; one parquet file, and one mp4 a camera, for each episode
v3.0         meta/episodes/chunk-*/file-*.parquet; files of many episodes, found by row and time
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cosmos_wds.console import warn
from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import DataError
from cosmos_wds.sources.parquet import parquet_columns

INFO = "meta/info.json"
EPISODES = "meta/episodes"


@dataclass(frozen=True)
class Place:
    """Where an episode lies."""

    number: int
    length: int
    tasks: tuple[str, ...]
    data: str
    """The parquet file that holds its rows."""
    videos: tuple[tuple[str, float], ...]
    """Of each camera: the mp4, and the second in it at which the episode begins."""


def read_info(storage: Storage) -> dict[str, Any]:
    """The content of meta/info.json. Raises DataError with a hint where there is none."""
    if storage.size(INFO) < 0:
        hint = "give a LeRobot data set of version 2 or 3: its folder, URL or OWNER/NAME on the hub"
        raise DataError(f"{storage}: no {INFO}; {hint}")
    try:
        info = json.loads(storage.read(INFO))
        version, _ = str(info["codebase_version"]).removeprefix("v").split(".", 1)
        assert isinstance(info["features"], dict) and float(info["fps"]) > 0
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{storage.name(INFO)}: not that of a data set: {error!r}") from None
    if version not in ("2", "3"):
        raise DataError(
            f"{storage.name(INFO)}: codebase_version {info['codebase_version']}; versions 2 and 3 "
            "are read: convert it with LeRobot's own scripts"
        )
    return dict(info)


def read_places(storage: Storage, info: Mapping[str, Any], cameras: Sequence[str]) -> list[Place]:
    """All episodes by number. Raises DataError when the tables of episodes make no sense."""
    is_shared = not str(info["codebase_version"]).startswith("v2")
    rows = _shared_rows(storage) if is_shared else _single_rows(storage)
    place = _shared_place if is_shared else _single_place
    try:
        places = sorted((place(info, row, cameras) for row in rows), key=lambda p: p.number)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{storage}: {EPISODES} and {INFO} do not fit: {error!r}") from None
    for one, next_one in zip(places, places[1:], strict=False):
        if one.number == next_one.number:
            raise DataError(f"{storage}: {EPISODES}: episode {one.number} is there twice")
    if len(places) != info.get("total_episodes", len(places)):
        said = info["total_episodes"]
        warn(f"{storage}: {INFO} says {said} episodes, {EPISODES} lists {len(places)}")
    return places


def split_of(info: Mapping[str, Any], split: str, places: Sequence[Place]) -> list[Place]:
    """The episodes that info.json counts to a split; all are `train` where it says nothing."""
    splits = info.get("splits") or {"train": f"0:{len(places)}"}
    if split not in splits:
        return []
    found = re.fullmatch(r"(\d+):(\d+)", str(splits[split]))
    if not found:
        raise DataError(f"{INFO}: splits: {split} = {splits[split]!r} is not FIRST:END")
    first, end = map(int, found.groups())
    return [place for place in places if first <= place.number < end]


def _single_rows(storage: Storage) -> Iterator[dict[str, Any]]:
    file = f"{EPISODES}.jsonl"
    try:
        for line in storage.read(file).splitlines():
            if line.strip():
                yield dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise DataError(f"{storage.name(file)}: not lines of JSON: {error}") from None


def _single_place(info: Mapping[str, Any], row: Mapping[str, Any], cameras: Sequence[str]) -> Place:
    number = int(row["episode_index"])
    words = {"episode_index": number, "episode_chunk": number // int(info["chunks_size"])}
    videos = [_below(str(info["video_path"]).format(video_key=c, **words)) for c in cameras]
    return Place(
        number,
        int(row["length"]),
        tuple(row.get("tasks") or ()),
        _below(str(info["data_path"]).format(**words)),
        tuple((video, 0.0) for video in videos),
    )


def _shared_rows(storage: Storage) -> Iterator[dict[str, Any]]:
    for chunk in storage.list(EPISODES):
        for name in storage.list(f"{EPISODES}/{chunk}"):
            if name.endswith(".parquet"):
                file = f"{EPISODES}/{chunk}/{name}"
                table = parquet_columns(storage, file, lambda key: not key.startswith("stats/"))
                yield from table.to_pylist()


def _shared_place(info: Mapping[str, Any], row: Mapping[str, Any], cameras: Sequence[str]) -> Place:
    videos = []
    for camera in cameras:
        chunk, number, begin = (
            row[f"videos/{camera}/{key}"] for key in ("chunk_index", "file_index", "from_timestamp")
        )
        words = {"video_key": camera, "chunk_index": int(chunk), "file_index": int(number)}
        videos.append((_below(str(info["video_path"]).format(**words)), float(begin)))
    words = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    return Place(
        int(row["episode_index"]),
        int(row["length"]),
        tuple(row.get("tasks") or ()),
        _below(str(info["data_path"]).format(**words)),
        tuple(videos),
    )


def _below(file: str) -> str:
    parts = PurePosixPath(file).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"{file} leads out of the data folder")
    return file
