"""LeRobot data sets of versions 2 and 3, from a folder, an fsspec URL or the hub.

An episode is the rows of a parquet table that bear its number, and of each camera the frames that
are shown at these rows' times. In version 3 tables and videos hold many episodes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.markup import escape

from cosmos_wds.console import say
from cosmos_wds.data.episode import Episode, Recording
from cosmos_wds.data.storage import Storage, storage
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.pipeline import ActionSettings, LerobotSettings, Pipeline
from cosmos_wds.sources.cut import CRF, CutVideo, cut
from cosmos_wds.sources.lerobot_layout import TIMES, Layout, layout_of
from cosmos_wds.sources.lerobot_meta import Place, read_info, read_places, split_of
from cosmos_wds.sources.parquet import column_numbers, episode_table, need_pyarrow

GRIPPER = 6  # column of a pose
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class LerobotSource:
    """The episodes of one data set."""

    storage: Storage
    splits: tuple[str, ...]
    settings: LerobotSettings
    actions: ActionSettings

    @property
    def root(self) -> str:
        return str(self.storage)

    @cached_property
    def _meta(self) -> tuple[dict[str, Any], Layout, list[Place]]:
        need_pyarrow()
        info = read_info(self.storage)
        try:
            layout = layout_of(info, self.settings, self.actions)
        except ConfigError as error:
            raise ConfigError(f"{self.root}: {error}") from None
        return info, layout, read_places(self.storage, info, layout.cameras)

    def __getstate__(self) -> dict[str, Any]:
        """Without what `list` alone needs: a recording carries all that `read` does."""
        return {key: value for key, value in vars(self).items() if key != "_meta"}

    def list(self, split: str) -> list[Recording]:
        """Episodes by number; `val_every` takes those of `val` out of `train`."""
        info, layout, places = self._meta
        every = self.settings.val_every
        if every and split in ("train", "val") and not split_of(info, "val", places):
            chosen = split_of(info, "train", places)
            is_val = split == "val"
            chosen = [p for i, p in enumerate(chosen) if (i % every == 0) == is_val]
        else:
            chosen = split_of(info, split, places)
        return [
            Recording(split, f"episode_{p.number:06d}", f"{p.data}#{p.number}", (layout, p))
            for p in chosen
        ]

    def read(self, recording: Recording) -> Episode:
        """One episode, its videos found but not read. Raises DataError for what does not fit."""
        layout, place = recording.where
        columns = episode_table(self.storage, place.data, place.number, layout.columns)
        length = len(columns[TIMES])
        if length != place.length:
            said = f"{length} rows, and {place.length} in the table of episodes"
            raise DataError(f"{recording.file}: {said}")
        if length < 2:
            raise DataError(f"{recording.file}: {length} frame, and an action needs two")
        state = column_numbers(columns, layout.state, recording.file)
        seconds = column_numbers(columns, (TIMES,), recording.file)[:, 0]
        command, problem = None, ""
        if layout.action:
            try:
                command = column_numbers(columns, layout.action, recording.file)[:-1]
            except DataError as error:
                problem = str(error).removeprefix(f"{recording.file}: ")
        videos = {
            camera: cut(
                self.storage,
                file,
                begin + seconds,
                tolerance=self.settings.tolerance,
                fps=layout.fps,
            )
            for camera, (file, begin) in enumerate(place.videos)
        }
        return Episode(
            id=recording.name,
            state=_pose(state, layout) if layout.pose else state,
            command=command,
            videos=videos,
            source_sha256=_digest(layout, place, columns, videos),
            text=place.tasks[0] if place.tasks else "",
            fps=layout.fps,
            extra=_extra(layout, place, videos),
            command_problem=problem,
        )


def open_lerobot(pipeline: Pipeline) -> LerobotSource:
    """The data set that a pipeline's [source] and [lerobot] describe."""
    source = pipeline.source
    return LerobotSource(_found(source.path), source.splits, pipeline.lerobot, pipeline.actions)


def _found(place: str) -> Storage:
    """A folder, a URL, or OWNER/NAME on the hub where there is no such folder."""
    where = storage(place)
    if not HUB_ID.fullmatch(place) or where.has_folder():
        return where
    say(f"{escape(place)}: no such folder here, so the hub's data set of that name")
    return storage(f"hf://datasets/{place}")


def _pose(state: np.ndarray, layout: Layout) -> np.ndarray:
    """(T, S) -> (T, 7) x y z roll pitch yaw, and the gripper from 0, closed, to 1, open."""
    pose = state[:, layout.pose]
    closed, opened = layout.gripper
    pose[:, GRIPPER] = (pose[:, GRIPPER] - closed) / (opened - closed)
    return pose


def _digest(
    layout: Layout, place: Place, columns: Mapping[str, Any], videos: Mapping[int, CutVideo]
) -> str:
    """Of all that was read, and of the sizes of all coded frames."""
    digest = hashlib.sha256(json.dumps([asdict(layout), asdict(place)]).encode())
    for name in layout.columns:
        digest.update(json.dumps(columns[name].to_pylist()).encode())
    for video in videos.values():
        digest.update(video.samples.sizes[video.wanted].astype("<i8").tobytes())
    return digest.hexdigest()


def _extra(layout: Layout, place: Place, videos: Mapping[int, CutVideo]) -> dict[str, object]:
    """What the sample's JSON says besides; of each video, how it was cut out of which file."""
    cuts = []
    for camera, video in videos.items():
        how = f"encoded again, crf {CRF}" if video.how == "encoded again" else video.how
        cuts.append({"camera": layout.cameras[camera], "from": video.name, "cut": how})
    return {"tasks": list(place.tasks), "videos": cuts}
