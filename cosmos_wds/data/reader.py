"""Episodes ready to be cut into windows: from their members in the shards, and kept while needed.

T frames, H rows, W columns, S state and A action dimensions. A loader asks an `EpisodePool` for
episodes by their row in the index; the pool asks a reader, which knows what the shards hold.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from cosmos_wds.data.index import SplitIndex, video_member
from cosmos_wds.data.plan import Plan
from cosmos_wds.data.video import decode, resize
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import WindowSettings

REPLACEMENT_TRIES = 100


@dataclass(frozen=True)
class Decoded:
    """One episode at the size of the windows.

    row      its row in the index: another than was asked for when it replaces a bad episode
    frames   (3, T, H, W) uint8;  state (T, S), action (T-1, A) float32 in physical units
    """

    row: int
    key: str
    frames: np.ndarray
    state: np.ndarray
    action: np.ndarray


class Mp4Reader:
    """Reads the episodes of a split whose shards hold mp4 files."""

    def __init__(self, index: SplitIndex, window: WindowSettings) -> None:
        self.index, self.window = index, window
        self.contract = index.contract
        steps = (window.frames - 1) * window.interval
        nothing = np.zeros((steps + 1, len(self.contract.names)))
        self._actions(nothing, nothing[:steps], 0)  # a contract that forbids this interval says so

    def read(self, row: int) -> Decoded:
        """Decode and resize one episode. Raises DataError naming shard and key."""
        window, episode = self.window, self.index.rows[row]
        member = video_member(window.camera)
        if member not in episode.members:
            shard = self.index.storage.name(episode.shard)
            raise DataError(
                f"{shard}: {episode.key}: no camera {window.camera}; it has "
                f"{', '.join(map(str, _cameras(episode.members)))}: choose [window] camera"
            )
        name, data = self.index.name(row, member), self.index.read(row, member)
        pictures = resize(
            decode(data, range(episode.frames), name=name), window.height, window.width
        )
        width = len(self.contract.names)
        return Decoded(
            row=row,
            key=episode.key,
            frames=np.ascontiguousarray(pictures.transpose(3, 0, 1, 2)),
            state=self._array(row, "state.npy", (episode.frames, width)),
            action=self._array(row, "action.npy", (episode.frames - 1, width)),
        )

    def actions(self, episode: Decoded, start: int) -> np.ndarray:
        """A window's actions, (frames-1, A) float32, scaled by the contract."""
        return self.contract.scaled(self._actions(episode.state, episode.action, start))

    def _actions(self, state: np.ndarray, action: np.ndarray, start: int) -> np.ndarray:
        window = self.window
        return self.contract.window_actions(
            state, action, start=start, frames=window.frames, interval=window.interval
        )

    def _array(self, row: int, member: str, shape: tuple[int, int]) -> np.ndarray:
        array = self.index.read_array(row, member)
        if array.shape != shape:
            found, wanted = ("x".join(map(str, s)) for s in (array.shape, shape))
            raise DataError(
                f"{self.index.name(row, member)}: {found} numbers, and the index says {wanted}; "
                "shard it again"
            )
        return array


def _cameras(members: Iterable[str]) -> Iterator[int]:
    for name in members:
        if name == "mp4" or name.endswith(".mp4"):
            yield int(name.removesuffix("mp4").removesuffix(".") or 0)


class EpisodePool:
    """The episodes among which some lanes choose, each decoded once per pass through its pool.

    What is still needed is known from the plan, so it is kept by name (`keep`) and not by how
    lately it was used: a bound on the count alone would throw out episodes that come again.
    """

    def __init__(self, plan: Plan, reader: Mp4Reader, *, skip_bad: bool) -> None:
        self._plan, self._reader, self._skip_bad = plan, reader, skip_bad
        self._held: dict[int, Decoded] = {}
        self.bad: dict[int, str] = {}
        """Row and reason of each bad episode met so far, when they are skipped."""
        self.decoded = 0
        """Episodes decoded so far."""

    def keep(self, rows: frozenset[int]) -> None:
        """Forget all episodes but these."""
        for row in self._held.keys() - rows:
            del self._held[row]

    def get(self, row: int) -> Decoded:
        """An episode, or what replaces it. Raises DataError for a bad one that is not skipped."""
        if row not in self._held:
            self._held[row] = self._read(row)
        return self._held[row]

    def _read(self, row: int) -> Decoded:
        others = (self._plan.replacement(row, attempt) for attempt in range(REPLACEMENT_TRIES))
        for candidate in chain([row], others):
            if candidate in self.bad:
                continue
            try:
                episode = self._reader.read(candidate)
            except DataError as error:
                if not self._skip_bad:
                    raise
                self.bad[candidate] = str(error)
            else:
                self.decoded += 1
                return episode
        raise DataError(f"{self.bad[row]}; {REPLACEMENT_TRIES} episodes tried instead are bad too")
