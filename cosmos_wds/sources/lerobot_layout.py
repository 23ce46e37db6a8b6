"""Which features of a LeRobot data set are the state, the action and the cameras.

A wrong guess would train on joints for metres, so nothing is guessed: dimensions of a pose are
taken by their names, or as the pipeline's [lerobot] says.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cosmos_wds.errors import ConfigError
from cosmos_wds.pipeline import POSE_NAMES, ActionSettings, LerobotSettings

TIMES = "timestamp"
FILLERS = {"ee", "eef", "tcp", "pos", "position", "rot", "pose", "state", "cartesian"}
"""Words of a dimension's name that do not tell which one it is: eef_x, ee.pos.x, gripper.pos."""


@dataclass(frozen=True)
class Layout:
    """What is read of every episode. It travels with each recording."""

    fps: float
    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: tuple[str, ...]
    pose: tuple[int, ...]
    """Columns of the joined state features that are x y z roll pitch yaw gripper; none: all."""
    gripper: tuple[float, float]
    """Its values when closed and open."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read of a table."""
        return (*self.state, *self.action, TIMES)


def layout_of(
    info: Mapping[str, Any], settings: LerobotSettings, actions: ActionSettings
) -> Layout:
    """What a pipeline wants of a data set. Raises ConfigError for what it does not have."""
    features, fps = info["features"], float(info["fps"])
    if abs(fps - actions.fps) > 0.01 * fps:
        raise ConfigError(f"it has {fps:g} frames per second; set actions.fps={fps:g}")
    for kind, names in (("state", settings.state), ("action", settings.action)):
        missing = [name for name in names if name not in features]
        if missing and (kind == "state" or actions.signal == "command"):
            there = ", ".join(name for name in features if _is_numbers(features[name]))
            raise ConfigError(f"lerobot.{kind}: no feature {missing[0]}; there is {there}")
    pose: tuple[int, ...] = ()
    if settings.pose or actions.signal == "state":
        pose = _pose(_dimensions(features, settings.state), settings)
    if actions.signal == "command":
        _check_command(_dimensions(features, settings.action), actions)
    action = tuple(name for name in settings.action if name in features)
    cameras = _cameras(features, settings.cameras)
    gripper = (settings.gripper_closed, settings.gripper_open)
    return Layout(fps, settings.state, action, cameras, pose, gripper)


def _is_numbers(feature: Mapping[str, Any]) -> bool:
    return feature.get("dtype") not in ("video", "image", "string")


def _dimensions(features: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    """A name for each number of the features, one after another; empty where it has none."""
    names = []
    for key in chosen:
        width = int((features[key].get("shape") or [1])[0])
        given = _flat(features[key].get("names"))
        if width == 1 and not given:
            given = [key.rpartition(".")[2]]
        names += given if len(given) == width else [""] * width
    return names


def _flat(names: Any) -> list[str]:
    """Names that stand in a list, or in a table such as {"motors": [...]}."""
    if isinstance(names, Mapping):
        names = list(names.values())
    if isinstance(names, list):
        return [name for entry in names for name in _flat(entry)]
    return [names] if isinstance(names, str) else []


def _pose(names: Sequence[str], settings: LerobotSettings) -> tuple[int, ...]:
    """Columns of x y z roll pitch yaw gripper."""
    if settings.pose:
        places = [names.index(entry) if entry in names else entry for entry in settings.pose]
        bad = [p for p in places if not isinstance(p, int) or not 0 <= p < len(names)]
        if not bad:
            return tuple(places)
        what = f"lerobot.pose: no dimension {bad[0]!r}"
    else:
        plain = [_plain(name) for name in names]
        if all(plain.count(name) == 1 for name in POSE_NAMES):
            return tuple(plain.index(name) for name in POSE_NAMES)
        what = f"which are {' '.join(POSE_NAMES)}?"
    shown = ", ".join(f"{i} {name}".strip() for i, name in enumerate(names))
    raise ConfigError(
        f"{', '.join(settings.state)}: {what} It has {len(names)} dimensions ({shown}). Set "
        'lerobot.pose to seven of these names or numbers; or actions.signal = "command", with '
        "actions.names, units and scale, for a robot without poses"
    )


def _plain(name: str) -> str:
    """What is left of a dimension's name without words that all of them have."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    return "_".join(word for word in words if word not in FILLERS)


def _check_command(names: Sequence[str], actions: ActionSettings) -> None:
    if len(names) == len(actions.names):
        return
    shown = f" ({', '.join(names)})" if all(names) else ""
    raise ConfigError(
        f"lerobot.action: {len(names)} numbers{shown}, and actions.names has "
        f"{len(actions.names)} ({', '.join(actions.names)}); set actions.names, units and scale"
    )


def _cameras(features: Mapping[str, Any], chosen: Sequence[str]) -> tuple[str, ...]:
    """All videos but maps of depth, in the order of info.json, or those that are chosen."""
    videos = [key for key, f in features.items() if f.get("dtype") == "video" and not _is_depth(f)]
    images = [key for key, f in features.items() if f.get("dtype") == "image"]
    wrong = [key for key in chosen or videos[:1] if key not in videos]
    if wrong or not videos:
        there = f"videos: {', '.join(videos) or 'none'}"
        if images:
            there += f"; {', '.join(images)}: single images, which are not read"
        what = f"no video {wrong[0]}" if wrong else "no camera"
        raise ConfigError(f"lerobot.cameras: {what}; {there}")
    return tuple(chosen or videos)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(about.get("video.is_depth_map") or about.get("is_depth_map"))
