"""What a world may start from: pictures in memory, image files, or the episodes of a shard set.

H rows and W columns at the model's size, A numbers an action.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosmos_wds.data.actions import NAMES, ActionContract
from cosmos_wds.data.cache import open_shards
from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.data.reader import VideoReader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.inspection.overview import action_statistics
from cosmos_wds.recipe import Recipe, WindowSettings
from cosmos_wds.rollout.inputs import fitted, read_picture

GRIPPER = "gripper"
HELD_OUT = ("val", "test")
"""Splits that are looked into first: what training has not seen."""

StartsFrom = np.ndarray | str | Path | Sequence[str | Path]
"""Pictures (H, W, 3) or (S, H, W, 3) uint8; an image file, or several; a set's folder or URL."""


@dataclass(frozen=True)
class Start:
    """One of them."""

    name: str
    picture: np.ndarray
    """(H, W, 3) uint8, at the model's size"""
    text: str = ""
    gripper: float | None = None
    """How far the gripper is open in the picture; None: not known."""


@dataclass(frozen=True)
class Limits:
    """How far each dimension of an action goes, physical units."""

    low: np.ndarray
    """(A,) float32"""
    high: np.ndarray


@dataclass(frozen=True)
class Starts:
    """Starts by number; each is read when it is asked for."""

    names: tuple[str, ...]
    read: Callable[[int], Start]
    """Raises UserError naming what is wrong with which file."""
    limits: Limits

    def number(self, name: str) -> int:
        """The place of a name. Raises ConfigError."""
        if name not in self.names:
            raise ConfigError(
                f"start {name!r}: there is none of that name; the first of {len(self.names)} is "
                f"{self.names[0]!r}"
            )
        return self.names.index(name)


def open_starts(
    where: StartsFrom, *, contract: ActionContract, recipe: Recipe, split: str = ""
) -> Starts:
    """The starts that are meant.

    split   of a shard set; val, else test, else its first one, if left out
    Raises UserError when there is none, or a file that cannot be read.
    """
    limits, window = action_limits(contract), recipe.window
    if isinstance(where, np.ndarray):
        return _of_pictures(where, window, limits)
    if not isinstance(where, str | Path):
        return _of_files([Path(file) for file in where], window, limits)
    if Path(where).is_file():
        return _of_files([Path(where)], window, limits)
    index = ShardIndex.read(open_shards(where, recipe.data))
    return _of_episodes(index, contract, window, split)


def checked(picture: np.ndarray, window: WindowSettings) -> np.ndarray:
    """A picture (H, W, 3) of any size at the model's. Raises ConfigError for what is none."""
    if not _is_pictures(picture, 3):
        raise ConfigError(f"start: {_said(picture)}; a picture is (H, W, 3) uint8")
    return fitted(picture, window)


def action_limits(
    contract: ActionContract, index: ShardIndex | None = None, interval: int = 1
) -> Limits:
    """The limits of actions, (A,) each.

    From the index's statistics, where 98 % of its actions stay below; without them, where the
    network sees 1. Motions have the same limit both ways, over `interval` frames; the gripper
    goes from 0 to 1. What a contract names otherwise than poses may be places, not motions: these
    keep both limits as they are.
    """
    scale = np.abs(np.asarray(contract.scale, np.float64))
    high = np.divide(1.0, scale, out=np.ones_like(scale), where=scale > 0)
    low = -high
    found = action_statistics(index) if index else {}
    if found:
        least, most = np.array(found["q01"]), np.array(found["q99"])
        if set(contract.names) <= set(NAMES):
            most = np.abs([least, most]).max(axis=0) * interval
            least = -most
        moves = np.isfinite(least) & np.isfinite(most) & (most > least)
        low, high = np.where(moves, least, low), np.where(moves, most, high)
    is_gripper = np.array([name == GRIPPER for name in contract.names])
    low, high = np.where(is_gripper, 0.0, low), np.where(is_gripper, 1.0, high)
    return Limits(low.astype(np.float32), high.astype(np.float32))


def _is_pictures(array: np.ndarray, dimensions: int) -> bool:
    is_array = isinstance(array, np.ndarray) and array.dtype == np.uint8
    return is_array and array.ndim == dimensions and array.shape[-1] == 3 and array.size > 0


def _said(value: object) -> str:
    is_array = isinstance(value, np.ndarray)
    return f"an array {value.shape} of {value.dtype}" if is_array else f"a {type(value).__name__}"


def _of_pictures(pictures: np.ndarray, window: WindowSettings, limits: Limits) -> Starts:
    several = pictures[None] if pictures.ndim == 3 else pictures
    if not _is_pictures(several, 4):
        raise ConfigError(
            f"starts: {_said(pictures)}; pictures are (S, H, W, 3), or one (H, W, 3), uint8"
        )
    names = tuple(f"picture {number}" for number in range(len(several)))
    return Starts(names, lambda n: Start(names[n], fitted(several[n], window)), limits)


def _of_files(files: Sequence[Path], window: WindowSettings, limits: Limits) -> Starts:
    if not files:
        raise ConfigError("starts: no image is named")
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: no such image or video")
    names = tuple(map(str, files))
    return Starts(names, lambda n: Start(names[n], fitted(read_picture(files[n]), window)), limits)


def _of_episodes(
    index: ShardIndex, contract: ActionContract, window: WindowSettings, split: str
) -> Starts:
    chosen = split or next((s for s in HELD_OUT if s in index.splits), next(iter(index.splits), ""))
    episodes = index.split(chosen)
    if not episodes.rows:
        raise DataError(f"{index.storage}: split {chosen!r} holds no episode")
    if episodes.latents:
        raise DataError(
            f"{index.storage}: holds latents, and a world starts from a picture; name the shards "
            "that they were made from"
        )
    reader = VideoReader(ShardSets((episodes,)), window)
    is_ours = index.contract.digest == contract.digest

    def read(number: int) -> Start:
        return Start(
            name=episodes.rows[number].key,
            picture=reader.first(number),
            text=str(episodes.read_json(number).get("text", "")),
            gripper=_gripper(episodes, number) if is_ours else None,
        )

    names = tuple(row.key for row in episodes.rows)
    return Starts(names, read, action_limits(contract, index if is_ours else None, window.interval))


def _gripper(episodes: SplitIndex, row: int) -> float | None:
    """How far it is open in an episode's first frame, where states say it."""
    if episodes.contract.names != NAMES or "state.npy" not in episodes.rows[row].members:
        return None
    state = episodes.read_array(row, "state.npy")
    is_pose = state.ndim == 2 and len(state) and state.shape[1] == len(NAMES)
    return float(np.clip(state[0, -1], 0, 1)) if is_pose and np.isfinite(state[0, -1]) else None
