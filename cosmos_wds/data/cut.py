"""The windows of some lanes, step after step, cut out of their episodes into one piece of memory.

    windows(step)     which windows
    expect(windows)   have what they need on its way, where the shards are far
    ask(windows)      have their episodes read: now, or by threads
    cut(asked)        copy each window to its place: the only copy there is of a frame

An episode is read once per pass of a lane through its pool. Each lane keeps what it has asked for
while its pool lasts; what is asked for ahead is kept by whoever has yet to cut it, and no longer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.data.cache import prefetch
from cosmos_wds.data.index import BLOCK
from cosmos_wds.data.latents import LatentReader
from cosmos_wds.data.mixture import Mixture
from cosmos_wds.data.plan import Windows
from cosmos_wds.data.reader import Held, Reader, VideoReader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.errors import DataError, UserError
from cosmos_wds.recipe import WindowSettings

REPLACEMENT_TRIES = 100

T = TypeVar("T")
Key = tuple[int, int]
"""Row and choice of cameras: what is read at once."""
Reading = Held | Future[Held]
Submit = Callable[..., Reading]
"""Calls a function with arguments, now or in a thread."""


@dataclass(frozen=True)
class Part:
    """Some lanes' share of a batch, or the error that was met instead.

    frames    as the reader's `blank`;  action  (n, frames-1, A) float32, scaled
    decoded   episodes read for it;  replaced  (row, reason) of each window that had to be replaced
    """

    frames: Tensor | None = None
    action: Tensor | None = None
    keys: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    decoded: int = 0
    replaced: tuple[tuple[int, str], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Asked:
    """Windows, and their episodes as they come. fresh: episodes that had to be read for them."""

    windows: Windows
    episodes: list[Reading]
    fresh: int


def open_reader(sets: ShardSets, window: WindowSettings) -> Reader:
    """The reader of what the sets hold. Raises DataError when it cannot give such windows."""
    return LatentReader(sets, window) if sets.latents else VideoReader(sets, window)


class _Shelves(Generic[T]):
    """What each lane has of the episodes of its pool; nothing of an earlier pool."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[int, dict[Key, T]]] = {}

    def of(self, windows: Windows) -> Iterator[tuple[dict[Key, T], Key]]:
        """For each window its lane's shelf, and the episode's place there."""
        rows, _, choices, pools = (column.tolist() for column in windows)
        for slot, (row, choice, pool) in enumerate(zip(rows, choices, pools, strict=True)):
            if slot not in self._of or self._of[slot][0] != pool:
                self._of[slot] = (pool, {})
            yield self._of[slot][1], (row, choice)


class Cutter:
    """Cuts the windows of `lanes`."""

    def __init__(
        self, order: Mixture, reader: Reader, lanes: Sequence[int], *, skip_bad: bool, pin: bool
    ) -> None:
        self.order, self.reader, self._lanes = order, reader, lanes
        self._skip_bad, self._pin = skip_bad, pin
        self._held: _Shelves[Reading] = _Shelves()
        self._expected: _Shelves[None] = _Shelves()
        self._bad: dict[Key, str] = {}
        self.on_read: Callable[[int], object] = int
        """Told the row of each episode as it is opened."""

    @property
    def width(self) -> int:
        """Windows of a part."""
        return len(self._lanes)

    def forget(self) -> None:
        """Keep no episode."""
        self._held, self._expected = _Shelves(), _Shelves()

    def windows(self, step: int) -> Windows:
        """The lanes' windows in a step."""
        return self.order.batch(step, self._lanes)

    def expect(self, windows: Windows) -> None:
        """Have the shards' bytes for these windows fetched, each episode's once."""
        for shelf, key in self._expected.of(windows):
            if key not in shelf:
                shelf[key] = None
                index, at = self.reader.sets.find(key[0])
                row, wanted = index.rows[at], self.reader.members(key[1])
                places = [row.members[name] for name in wanted if name in row.members]
                parts = ((offset - BLOCK, BLOCK + size) for offset, size in places)
                prefetch(index.storage, row.shard, parts)

    def ask(self, windows: Windows, submit: Submit) -> Asked:
        """Have the windows' episodes read; those that a lane holds already are not."""
        episodes, fresh = [], 0
        for shelf, key in self._held.of(windows):
            if key not in shelf:
                shelf[key] = submit(self.read, *key)
                fresh += 1
            episodes.append(shelf[key])
        return Asked(windows, episodes, fresh)

    def cut(self, asked: Asked) -> Part:
        """Copy the windows. Raises DataError for a bad episode that is not skipped."""
        reader, span, interval = self.reader, self.order.span, self.order.interval
        count = len(asked.episodes)
        frames = reader.blank(count, pin=self._pin)
        slots, action = reader.slots(frames), self._blank_actions(count)
        keys, starts, replaced = [], [], []
        for i, (item, start) in enumerate(
            zip(asked.episodes, asked.windows.starts.tolist(), strict=True)
        ):
            held = item.result() if isinstance(item, Future) else item
            if held.reason:
                start %= int(self.order.counts[held.row])
                replaced.append((int(asked.windows.rows[i]), held.reason))
            slots[i] = held.frames[start : start + span : interval]
            action[i] = reader.actions.cut(held.actions, start)
            keys.append(held.key)
            starts.append(start)
        scaled = torch.from_numpy(reader.sets.contract.scaled(action))
        return Part(frames, scaled, tuple(keys), tuple(starts), asked.fresh, tuple(replaced))

    def read(self, row: int, choice: int) -> Held:
        """An episode, or what replaces it. Raises DataError for a bad one that is not skipped.

        What replaces it is a function of the row: whether a candidate is bad does not depend on
        who finds out.
        """
        order = self.order
        others = (order.replacement(row, attempt) for attempt in range(REPLACEMENT_TRIES))
        for candidate in chain([row], others):
            if (candidate, choice) in self._bad:
                continue
            try:
                held = self._read(candidate, choice)
            except DataError as error:
                if not self._skip_bad:
                    raise
                self._bad[candidate, choice] = str(error)
            else:
                return held if candidate == row else replace(held, reason=self._bad[row, choice])
        bad = self._bad[row, choice]
        raise DataError(f"{bad}; {REPLACEMENT_TRIES} episodes tried instead are bad too")

    def _read(self, row: int, choice: int) -> Held:
        self.on_read(row)
        try:
            return self.reader.read(row, choice)
        except UserError:
            raise
        except Exception as error:  # a library's, or ours: whose data it was is half the report
            raise RuntimeError(f"{self.reader.sets.name(row)}: {error!r}") from error

    def _blank_actions(self, count: int) -> np.ndarray:
        """(n, frames-1, A) float64, physical units."""
        actions = self.reader.actions
        return np.empty((count, actions.count, len(actions.contract.names)))


def at_once(function: Callable[..., Any], *arguments: object) -> Any:
    """Call now: how a lane that has no threads reads."""
    return function(*arguments)
