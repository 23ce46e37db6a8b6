"""Episodes ready to be cut into windows, from their members in the shards.

T frames, H rows, W columns, C latent channels, h x w latent cells, S state and A action dimensions.
A loader asks a reader for episodes by their row: `VideoReader` here, or latents.py's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.data.actions import ActionContract, relative_actions
from cosmos_wds.data.index import SplitIndex, video_member
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.data.video import decode, resize
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import WindowSettings


@dataclass(frozen=True)
class Held:
    """One episode, read.

    row      counted through the sets: another than was asked for when it replaces a bad episode
    frames   (T, H, W, 3) uint8, or latents (T, C, h, w) float16
    actions  what `ActionWindows` cuts windows' actions from
    reason   why the episode that was asked for is replaced
    """

    row: int
    key: str
    frames: np.ndarray
    actions: np.ndarray
    reason: str = ""


class Reader(Protocol):
    """What a loader asks of the kinds of shard sets."""

    sets: ShardSets
    actions: "ActionWindows"
    is_instant: bool
    """Whether reading an episode takes no time, so that no thread need do it ahead."""

    def read(self, row: int, choice: int = 0) -> Held:
        """One episode, seen by one choice of cameras. Raises DataError naming shard and key."""
        ...

    def members(self, choice: int) -> list[str]:
        """The members that `read` reads."""
        ...

    def blank(self, count: int, *, pin: bool = False) -> Tensor:
        """Memory for `count` windows."""
        ...

    def slots(self, blank: Tensor) -> np.ndarray:
        """That memory as (count, frames, ...), to be filled with frames as they are held."""
        ...

    def as_batch(self, blank: Tensor) -> dict[str, Tensor]:
        """The filled memory by its name in a Batch."""
        ...


class ActionWindows:
    """The actions of windows, out of what shards hold of an episode."""

    def __init__(self, contract: ActionContract, window: WindowSettings) -> None:
        """Raises DataError for an interval that the contract forbids."""
        self.contract, self._window = contract, window
        self.count = window.frames - 1
        """Actions of a window."""
        self._steps = self.count * window.interval
        is_recorded = window.interval == 1 and not contract.accumulate
        self.member = "action.npy" if is_recorded else "state.npy"
        """What windows' actions are rows of, or made from."""
        nothing = np.zeros((self._steps + 1, len(contract.names)))
        self._of_window(nothing, nothing[: self._steps], 0)

    def rows(self, read: Callable[[str, int], np.ndarray], frames: int) -> np.ndarray:
        """What windows are cut from. `read` gives a member of so many rows of A numbers.

        Row i is the action that leads from frame i to frame i + interval; but where the contract
        looks from the window's first frame, rows are the states.
        """
        if self.member == "action.npy":
            return read(self.member, frames - 1)
        state = read(self.member, frames)
        if self.contract.accumulate:
            return state
        interval = self._window.interval
        rows = np.empty((max(0, frames - interval), state.shape[1]))
        for phase in range(min(interval, len(rows))):
            rows[phase::interval] = relative_actions(state[phase::interval])
        return rows

    def cut(self, rows: np.ndarray, start: int) -> np.ndarray:
        """One window's actions (frames-1, A) in physical units."""
        if self.contract.accumulate:
            return self._of_window(rows, rows, start)
        return rows[start : start + self._steps : self._window.interval]

    def _of_window(self, state: np.ndarray, action: np.ndarray, start: int) -> np.ndarray:
        window = self._window
        return self.contract.window_actions(
            state, action, start=start, frames=window.frames, interval=window.interval
        )


class VideoReader:
    """Reads the episodes of sets that hold mp4 files: decoded whole, resized once."""

    is_instant = False

    def __init__(self, sets: ShardSets, window: WindowSettings) -> None:
        self.sets, self._window = sets, window
        self.actions = ActionWindows(sets.contract, window)

    def read(self, row: int, choice: int = 0) -> Held:
        index, at = self.sets.find(row)
        episode = index.rows[at]
        seen = [self._seen(index, at, camera) for camera in self._cameras(choice)]
        return Held(
            row=row,
            key=episode.key,
            frames=seen[0] if len(seen) == 1 else np.concatenate(seen, axis=1),
            actions=self.actions.rows(
                lambda member, count: read_rows(index, at, member, count), episode.frames
            ),
        )

    def first(self, row: int) -> np.ndarray:
        """An episode's first frame (H, W, 3) uint8 as windows show it; no other is decoded."""
        index, at = self.sets.find(row)
        return np.concatenate([self._seen(index, at, c, 1)[0] for c in self._cameras(0)])

    def members(self, choice: int) -> list[str]:
        return [*map(video_member, self._cameras(choice)), self.actions.member]

    def blank(self, count: int, *, pin: bool = False) -> Tensor:
        window = self._window
        shape = (count, window.frames, window.picture_height, window.width, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pin)

    def slots(self, blank: Tensor) -> np.ndarray:
        return blank.numpy()

    def as_batch(self, blank: Tensor) -> dict[str, Tensor]:
        return {"video": blank.permute(0, 4, 1, 2, 3)}

    def _cameras(self, choice: int) -> tuple[int, ...]:
        cameras = self._window.cameras
        return cameras if self._window.stacked else cameras[choice : choice + 1]

    def _seen(
        self, index: SplitIndex, at: int, camera: int, count: int | None = None
    ) -> np.ndarray:
        """One camera's frames, or the first `count` of them, at the size of the windows."""
        window, episode, member = self._window, index.rows[at], video_member(camera)
        if member not in episode.members:
            raise DataError(
                f"{index.storage.name(episode.shard)}: {episode.key}: no camera {camera}; it has "
                f"{', '.join(map(str, _camera_numbers(episode.members)))}: choose [window] camera"
            )
        name, data = index.name(at, member), index.read(at, member)
        frames = decode(data, range(count or episode.frames), name=name)
        return resize(frames, window.height, window.width, exact=window.resize == "exact")


def read_rows(index: SplitIndex, at: int, member: str, count: int) -> np.ndarray:
    """A member of `count` rows of A numbers. Raises DataError when it is anything else."""
    wanted = (count, len(index.contract.names))
    return checked(index, at, member, index.read_array(at, member), wanted)


def checked(
    index: SplitIndex, at: int, member: str, array: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """`array`, if it has this shape. Raises DataError naming the member."""
    if array.shape != shape:
        found, wanted = ("x".join(map(str, s)) for s in (array.shape, shape))
        raise DataError(
            f"{index.name(at, member)}: {found} numbers, and the index says {wanted}; "
            "make the set again"
        )
    return array


def _camera_numbers(members: Iterable[str]) -> Iterator[int]:
    for name in members:
        if name == "mp4" or name.endswith(".mp4"):
            yield int(name.removesuffix("mp4").removesuffix(".") or 0)
