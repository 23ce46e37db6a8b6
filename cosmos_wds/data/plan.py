"""The order of windows: a pure function of the index, the settings, the seed and the step.

    shards, shuffled       s7 s2 | s5 s0 | ...        groups of `shard_group` shards
    their episodes         c a d b | h e g f | ...    shuffled within each group
    their windows          c0 c1 c2 a0 a1 d0 ...      episode after episode
    B equal lanes          [c0 .. d1][d2 .. h3] ...   contiguous shares, B the global batch
    each lane              d0 c2 a1 c0 ...            shuffled within pools of P episodes

Global batch s is the s-th window of every lane. Ranks and workers own lanes, so neither their
number nor what ran before can change a batch, and an episode is needed by one lane at a time (but
for those that straddle two). Only arrays of one number per episode are computed for an epoch, and
of one number per window for the pools that a step touches: resuming is indexing.

Shuffles sort by a hash of the position instead of drawing from `numpy.random`, whose streams may
change between releases of numpy: a run resumed on another machine keeps its order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cosmos_wds.errors import DataError

SHARDS, EPISODES, WINDOWS, REPLACEMENTS = range(4)  # what a hash is for


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64: a bijection of uint64 that spreads every bit over all others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def position_hash(values: np.ndarray, *words: int) -> np.ndarray:
    """Hash each of `values` together with `words` to uint64, equally on every machine."""
    key = np.zeros(1, np.uint64)
    for word in words:
        key = _mix(key + np.uint64(0x9E3779B97F4A7C15) + np.uint64(word & (2**64 - 1)))
    return _mix(_mix(values.astype(np.uint64) + key) ^ key)


@dataclass(frozen=True)
class _Epoch:
    """Episodes in the epoch's order. episodes (E,) rows; begins (E+1,) their first windows."""

    episodes: np.ndarray
    begins: np.ndarray


@dataclass(frozen=True)
class _Pool:
    """Windows first <= w < end of the epoch's list, in the order in which one lane reads them."""

    epoch: int
    first: int
    end: int
    episodes: np.ndarray
    starts: np.ndarray
    members: frozenset[int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Which windows make global batch `step`.

    lengths   (E,) frames of each episode, by row of the index
    shards    (E,) number of the shard that holds it

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
    seed: int = 0
    training: bool = True
    _epochs: dict[int, _Epoch] = field(default_factory=dict, init=False, repr=False)
    _pools: dict[int, _Pool] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert len(self.lengths) == len(self.shards)
        assert min(self.frames, self.batch_size, self.interval, self.pool, self.shard_group) >= 1
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

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the same for every rank."""
        return (
            self.windows // self.batch_size
            if self.training
            else -(-self.windows // self.batch_size)
        )

    def lane_count(self, step: int) -> int:
        """How many lanes, from lane 0, hold a window at `step`: all, but in evaluation's last."""
        if self.training:
            return self.batch_size
        return max(0, min(self.batch_size, self.windows - step * self.batch_size))

    def batch(self, step: int, lanes: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """The windows of `lanes` in global batch `step`: (rows of the index, first frames).

        `step` counts over all epochs. Lanes that have ended (`lane_count`) give nothing.
        """
        live = self.lane_count(step)
        found = [self._find(step, lane) for lane in lanes if lane < live]
        rows = np.array([pool.episodes[at] for pool, at in found], np.int64)
        return rows, np.array([pool.starts[at] for pool, at in found], np.int64)

    def pool_rows(self, step: int, lanes: Iterable[int]) -> frozenset[int]:
        """The episodes among which `lanes` choose around `step`: what is worth keeping decoded."""
        live = self.lane_count(step)
        members = (self._find(step, lane)[0].members for lane in lanes if lane < live)
        return frozenset().union(*members)

    def dropped(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows that training leaves out in `epoch`: (rows of the index, first frames)."""
        end = self.steps_per_epoch * self.batch_size if self.training else self.windows
        return self._locate(self._order(epoch), np.arange(end, self.windows))

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

    def _find(self, step: int, lane: int) -> tuple[_Pool, int]:
        """The pool that `lane` reads at `step`, and the place in it."""
        assert step >= 0 and 0 <= lane < self.batch_size
        epoch, place = divmod(step, self.steps_per_epoch)
        first, _ = self._lane(lane)
        window = first + place
        pool = self._pools.get(lane)
        if pool is None or pool.epoch != epoch or not pool.first <= window < pool.end:
            pool = self._pools[lane] = self._shuffled_pool(epoch, lane, window)
        return pool, window - pool.first

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
        if self.training:
            numbers, where = np.unique(self.shards[episodes], return_inverse=True)
            draws = position_hash(numbers, self.seed, epoch, SHARDS)
            rank = np.empty(len(numbers), np.int64)
            rank[np.argsort(draws, kind="stable")] = np.arange(len(numbers))
            group = rank[where] // self.shard_group
            draws = position_hash(episodes, self.seed, epoch, EPISODES)
            episodes = episodes[np.lexsort((draws, group))]
        begins = np.concatenate([[0], np.cumsum(self.counts[episodes])])
        return _Epoch(episodes, begins)

    def _shuffled_pool(self, epoch: int, lane: int, window: int) -> _Pool:
        """The pool of `lane` that holds `window`; pools are counted from the lane's first episode.

        In evaluation a pool is one episode, read in order.
        """
        order = self._order(epoch)
        size = self.pool if self.training else 1
        first, end = self._lane(lane)
        lead, here = np.searchsorted(order.begins, [first, window], side="right") - 1
        low = lead + (here - lead) // size * size
        high = min(low + size, len(order.episodes))
        first = max(first, int(order.begins[low]))
        end = min(end, int(order.begins[high]))
        windows = np.arange(first, end)
        if self.training:
            draws = position_hash(windows, self.seed, epoch, WINDOWS)
            windows = windows[np.argsort(draws, kind="stable")]
        rows, starts = self._locate(order, windows)
        return _Pool(epoch, first, end, rows, starts, frozenset(np.unique(rows).tolist()))

    def _locate(self, order: _Epoch, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in the epoch's list -> (rows of the index, first frames)."""
        at = np.searchsorted(order.begins, windows, side="right") - 1
        return order.episodes[at], windows - order.begins[at]
