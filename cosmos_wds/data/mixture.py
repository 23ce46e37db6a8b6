"""One order of windows over several shard sets: every set has lanes of its own in a global batch.

    weights 3 : 1, B = 8      lanes  0 1 2 3 4 5 6 7
                              set    a a b a a a b a      6 lanes of a, 2 of b

Weights are rounded to whole lanes, so that a set's lanes are a plan of its own (plan.py): each of
its windows comes once in its own epoch, which ends when it ends, whatever the other sets do. Lanes
of the sets are spread evenly, so that ranks have equal work. A single set is the plain case.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np

from cosmos_wds.data.plan import Plan, Windows
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import Recipe


def share_lanes(weights: Sequence[float], batch: int) -> tuple[int, ...]:
    """Lanes of each set, of `batch` in all, as near to the weights as whole lanes come.

    Raises DataError when a set would get none.
    """
    wanted = np.asarray(weights, float) / sum(weights) * batch
    lanes = np.floor(wanted).astype(int)
    rest = batch - int(lanes.sum())
    lanes[np.argsort(lanes - wanted, kind="stable")[:rest]] += 1
    if not lanes.all():
        least = int(np.ceil(sum(weights) / min(weights)))
        raise DataError(
            f"batch = {batch}: too small for a set of weight {min(weights):g} among "
            f"{sum(weights):g}, which would get none of it; use {least} or more, or other "
            "[data] weights"
        )
    return tuple(lanes.tolist())


@dataclass(frozen=True, eq=False)
class Mixture:
    """The order over all sets. Rows count through the sets, one after the other.

    plans   one for each set; its batch is the number of the set's lanes
    """

    plans: tuple[Plan, ...]

    def __post_init__(self) -> None:
        if len(self.plans) > 1 and not self.training:
            raise DataError(
                f"{len(self.plans)} shard sets: evaluation reads one at a time; name one of them"
            )

    @property
    def training(self) -> bool:
        """Whether the order is endless and shuffled."""
        return self.plans[0].training

    @property
    def span(self) -> int:
        """Frames from a window's first to its last, both counted."""
        return self.plans[0].span

    @property
    def interval(self) -> int:
        """Frames from one of a window's frames to the next."""
        return self.plans[0].interval

    @cached_property
    def batch_size(self) -> int:
        """Windows of a global batch."""
        return sum(plan.batch_size for plan in self.plans)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Global batches until the last of the sets is through."""
        return max(plan.steps_per_epoch for plan in self.plans)

    @cached_property
    def counts(self) -> np.ndarray:
        """Windows of each episode, by row."""
        return np.concatenate([plan.counts for plan in self.plans])

    @cached_property
    def offsets(self) -> np.ndarray:
        """The first row of each set, and the number of all."""
        return np.cumsum([0, *(len(plan.lengths) for plan in self.plans)])

    def steps(self, first: int) -> Iterator[int]:
        """The steps from `first` on: endless in training."""
        return count(first) if self.training else iter(range(first, self.steps_per_epoch))

    def batch(self, step: int, lanes: Sequence[int]) -> Windows:
        """The windows of `lanes` in global batch `step`, in the order of `lanes`."""
        if len(self.plans) == 1:
            return self.plans[0].batch(step, lanes)
        of_set, lane_of_set = self._lanes[:, np.asarray(lanes, int)]
        found, places = [], []
        for number, plan in enumerate(self.plans):
            mine = np.flatnonzero(of_set == number)
            windows = plan.batch(step, lane_of_set[mine].tolist())
            found.append(windows._replace(rows=windows.rows + self.offsets[number]))
            places.append(mine)
        back = np.argsort(np.concatenate(places))
        return Windows(*(np.concatenate(column)[back] for column in zip(*found, strict=True)))

    def replacement(self, row: int, attempt: int) -> int:
        """The episode to read instead of bad episode `row`: another one of its set."""
        number = int(np.searchsorted(self.offsets, row, side="right")) - 1
        offset = int(self.offsets[number])
        return offset + self.plans[number].replacement(row - offset, attempt)

    @cached_property
    def _lanes(self) -> np.ndarray:
        """(2, B): the set of each lane, and which of the set's lanes it is."""
        pairs = [(n, lane) for n, plan in enumerate(self.plans) for lane in range(plan.batch_size)]
        pairs.sort(key=lambda pair: (pair[1] + 0.5) / self.plans[pair[0]].batch_size)
        return np.array(pairs).T


def open_order(sets: ShardSets, recipe: Recipe, batch: int, *, training: bool) -> Mixture:
    """The order of the sets' windows. Raises DataError when there is none."""
    data, window = recipe.data, recipe.window
    if not data.pool and sets.latents is None:
        raise DataError(
            f"{sets}: [data] pool = 0 shuffles the whole epoch, and would decode a video for each "
            "window; use it with latents, or a pool of 1 or more episodes"
        )
    lanes = (batch,)
    if len(sets.parts) > 1:
        span = 1 + (window.frames - 1) * window.interval
        counts = [float(np.maximum(p.lengths - span + 1, 0).sum()) for p in sets.parts]
        lanes = share_lanes(data.weights or counts, batch)
    plans = []
    for number, (index, share) in enumerate(zip(sets.parts, lanes, strict=True)):
        try:
            plan = Plan(
                lengths=index.lengths,
                shards=index.shard_numbers,
                frames=window.frames,
                interval=window.interval,
                batch_size=share,
                pool=data.pool,
                shard_group=data.shard_group,
                choices=1 if window.stacked else len(window.cameras),
                seed=recipe.seed + number,
                training=training,
            )
        except DataError as error:
            raise DataError(f"{index.storage}, split {index.split}: {error}") from None
        plans.append(plan)
    return Mixture(tuple(plans))
