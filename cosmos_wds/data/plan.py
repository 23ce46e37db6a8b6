"""The order of one set's windows: a pure function of the index, settings, seed and step.

    shards, shuffled       s7 s2 | s5 s0 | ...        groups of `shard_group` shards
    their episodes         c a d b | h e g f | ...    shuffled within each group
    their windows          c0 c1 c2 a0 a1 d0 ...      episode after episode
    B equal lanes          [c0 .. d1][d2 .. h3] ...   contiguous shares, B the global batch
    each lane              d0 c2 a1 c0 ...            shuffled within pools of P episodes

Global batch s is the s-th window of every lane. Ranks and workers own lanes, so neither their
number nor what ran before can change a batch, and an episode is needed by one lane at a time (but
for those that straddle two). Only arrays of one number per episode are computed for an epoch, and
of one number per window for the pools that a step touches: resuming is indexing.

With pool = 0 the whole epoch is one pool: lane l takes the windows at places l * S, l * S + 1, ...
of one shuffle of them all (S the lane's length), which is computed place by place and never stored.

Shuffles use a hash of the position instead of `numpy.random`, whose streams may change between
releases of numpy: a run resumed on another machine keeps its order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cosmos_wds.data.shuffle import position_hash, shuffled_places
from cosmos_wds.errors import DataError

SHARDS, EPISODES, WINDOWS, REPLACEMENTS, CHOICES = range(5)  # what a hash is for
BLOCK = 512  # windows of a lane that are looked up at once when the pool is the epoch


class Windows(NamedTuple):
    """Some windows of a batch, lane after lane; arrays (n,) int64.

    rows     of the index;  starts  first frames
    choices  which of the window's cameras, the same for all windows of an episode in an epoch
    pools    numbers the lanes' pools: what a lane keeps while its number stays
    """

    rows: np.ndarray
    starts: np.ndarray
    choices: np.ndarray
    pools: np.ndarray


@dataclass(frozen=True)
class _Epoch:
    """Episodes in the epoch's order. episodes (E,) rows; begins (E+1,) their first windows."""

    episodes: np.ndarray
    begins: np.ndarray


@dataclass(frozen=True)
class _Pool:
    """What one lane reads at places first <= p < end of the epoch's list.

    table   (end - first, 4): row, start, choice, pool number
    """

    epoch: int
    first: int
    end: int
    table: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Which windows make global batch `step`.

    lengths   (E,) frames of each episode, by row of the index
    shards    (E,) number of the shard that holds it
    pool      episodes that a lane shuffles together; 0: the windows of the whole epoch
    choices   cameras of which an episode shows one, another one from epoch to epoch

    In training the order is new in every epoch, and the windows that do not fill a batch are left
    out (`dropped`). In evaluation (`training=False`) the order is the index's, every window comes,
    there is one epoch, and the last batch holds the first lanes only.
    """

    lengths: np.ndarray
    shards: np.ndarray
    frames: int
    batch_size: int
    interval: int = 1
    pool: int = 4
    shard_group: int = 4
    choices: int = 1
    seed: int = 0
    training: bool = True
    _epochs: dict[int, _Epoch] = field(default_factory=dict, init=False, repr=False)
    _pools: dict[int, _Pool] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert len(self.lengths) == len(self.shards) and self.pool >= 0
        assert min(self.frames, self.batch_size, self.interval, self.shard_group, self.choices) >= 1
        if not self.windows:
            longest = int(self.lengths.max()) if len(self.lengths) else 0
            raise DataError(
                f"no windows: {self.frames} frames at interval {self.interval} span {self.span} "
                f"frames, and the longest of {len(self.lengths)} episodes has {longest}; lower "
                "[window] frames or interval, or choose another split"
            )
        if self.training and self.windows < self.batch_size:
            raise DataError(
                f"[train] batch = {self.batch_size}, but {len(self.lengths)} episodes hold only "
                f"{self.windows} windows of {self.frames} frames at interval {self.interval}; "
                f"lower batch to at most {self.windows}, or shard more episodes"
            )

    @property
    def span(self) -> int:
        """Frames from a window's first to its last, both counted."""
        return 1 + (self.frames - 1) * self.interval

    @cached_property
    def counts(self) -> np.ndarray:
        """(E,) windows of each episode; one too short has none."""
        return np.maximum(np.asarray(self.lengths, np.int64) - self.span + 1, 0)

    @cached_property
    def windows(self) -> int:
        """Windows of the whole split."""
        return int(self.counts.sum())

    @cached_property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the same for every rank."""
        whole, rest = divmod(self.windows, self.batch_size)
        return whole if self.training else whole + (rest > 0)

    def lane_count(self, step: int) -> int:
        """How many lanes, from lane 0, hold a window at `step`: all, but in evaluation's last."""
        if self.training:
            return self.batch_size
        return max(0, min(self.batch_size, self.windows - step * self.batch_size))

    def batch(self, step: int, lanes: Iterable[int]) -> Windows:
        """The windows of `lanes` in global batch `step`, which counts over all epochs.

        Lanes that have ended (`lane_count`) give nothing.
        """
        live = self.lane_count(step)
        found = [self._find(step, lane) for lane in lanes if lane < live]
        return Windows(*np.array(found, np.int64).reshape(-1, 4).T)

    def dropped(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows that training leaves out in `epoch`: (rows of the index, first frames)."""
        end = self.steps_per_epoch * self.batch_size if self.training else self.windows
        return self._locate(epoch, self._shuffled(epoch, np.arange(end, self.windows)))

    def replacement(self, row: int, attempt: int) -> int:
        """The episode to read instead of bad episode `row`, spread evenly over those with windows.

        A function of the seed and the row alone, so that every run replaces alike.
        """
        candidates = self._with_windows
        word = position_hash(np.array([attempt]), self.seed, REPLACEMENTS, row)
        return int(candidates[int(word[0] % np.uint64(len(candidates)))])

    @cached_property
    def _with_windows(self) -> np.ndarray:
        return np.flatnonzero(self.counts)

    def _find(self, step: int, lane: int) -> np.ndarray:
        """Row, start, choice and pool number of what `lane` reads at `step`."""
        assert step >= 0 and 0 <= lane < self.batch_size
        epoch, place = divmod(step, self.steps_per_epoch)
        place += self._lane(lane)[0]
        pool = self._pools.get(lane)
        if pool is None or pool.epoch != epoch or not pool.first <= place < pool.end:
            pool = self._pools[lane] = self._make_pool(epoch, lane, place)
        found: np.ndarray = pool.table[place - pool.first]
        return found

    def _lane(self, lane: int) -> tuple[int, int]:
        """First window of a lane and the window after its last, in the epoch's list."""
        share, rest = divmod(self.windows, self.batch_size)
        if self.training:
            return lane * share, (lane + 1) * share
        first = lane * share + min(lane, rest)
        return first, first + share + (lane < rest)

    def _order(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._make_order(epoch)
        return self._epochs[epoch]

    def _make_order(self, epoch: int) -> _Epoch:
        episodes = self._with_windows
        if self.training and self.pool:
            numbers, where = np.unique(self.shards[episodes], return_inverse=True)
            draws = position_hash(numbers, self.seed, epoch, SHARDS)
            rank = np.empty(len(numbers), np.int64)
            rank[np.argsort(draws, kind="stable")] = np.arange(len(numbers))
            group = rank[where] // self.shard_group
            draws = position_hash(episodes, self.seed, epoch, EPISODES)
            episodes = episodes[np.lexsort((draws, group))]
        begins = np.concatenate([[0], np.cumsum(self.counts[episodes])])
        return _Epoch(episodes, begins)

    def _make_pool(self, epoch: int, lane: int, place: int) -> _Pool:
        """The pool of `lane` that holds `place`, or a block of it when it is the whole epoch.

        Pools are counted from the lane's first episode. In evaluation a pool is one episode, read
        in order.
        """
        first, end = self._lane(lane)
        is_whole = self.training and not self.pool
        if is_whole:
            first = place - (place - first) % BLOCK
            end = min(end, first + BLOCK)
            windows = self._shuffled(epoch, np.arange(first, end))
        else:
            first, end = self._borders(epoch, first, end, place)
            windows = np.arange(first, end)
        if self.training and self.pool:
            draws = position_hash(windows, self.seed, epoch, WINDOWS)
            windows = windows[np.argsort(draws, kind="stable")]
        rows, starts = self._locate(epoch, windows)
        choices = position_hash(rows, self.seed, epoch, CHOICES) % np.uint64(self.choices)
        number = epoch * self.windows + (windows if is_whole else np.full(len(windows), first))
        return _Pool(epoch, first, end, np.stack([rows, starts, choices.astype(int), number], 1))

    def _borders(self, epoch: int, first: int, end: int, place: int) -> tuple[int, int]:
        """First window of the pool that holds `place`, and the one after its last."""
        begins = self._order(epoch).begins
        size = self.pool if self.training else 1
        lead, here = np.searchsorted(begins, [first, place], side="right") - 1
        low = lead + (here - lead) // size * size
        high = min(low + size, len(begins) - 1)
        return max(first, int(begins[low])), min(end, int(begins[high]))

    def _shuffled(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Places in the epoch -> windows of its list: the same, unless the pool is the epoch."""
        if self.pool or not self.training:
            return places
        return shuffled_places(places, self.windows, self.seed, epoch, WINDOWS)

    def _locate(self, epoch: int, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows of the epoch's list -> (rows of the index, first frames)."""
        order = self._order(epoch)
        at = np.searchsorted(order.begins, windows, side="right") - 1
        return order.episodes[at], windows - order.begins[at]
