"""The contract over ranks, workers, pools, windows, epochs, sets: who reads decides nothing.

Positions by the hundred on the order alone, and a sample of them in decoded pixels.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_wds.data.loader import lanes_of_rank
from cosmos_wds.data.mixture import Mixture, share_lanes
from cosmos_wds.data.plan import Plan
from cosmos_wds.data.processes import shares
from cosmos_wds.errors import DataError
from tests.test_loader import joined, open_loader, recordings, shards, take  # noqa: F401

WORLDS = (1, 2, 3, 4, 6, 8, 12)
BATCH = 24  # what all of them divide


@st.composite
def orders(draw, training=None):
    """Orders of one to three sets whose global batch is 24."""
    is_training = draw(st.booleans()) if training is None else training
    count = draw(st.integers(1, 3)) if is_training else 1
    frames, interval = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    lanes = share_lanes(draw(st.lists(st.floats(1, 9), min_size=count, max_size=count)), BATCH)
    plans = []
    for number in range(count):
        lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12)) + [40, 40]
        plans.append(
            Plan(
                lengths=np.array(lengths),
                shards=np.sort(np.arange(len(lengths)) % draw(st.integers(1, 4))),
                frames=frames,
                interval=interval,
                batch_size=lanes[number],
                pool=draw(st.integers(0, 4)),
                shard_group=draw(st.integers(1, 3)),
                choices=draw(st.integers(1, 2)),
                seed=draw(st.integers(0, 2**40)),
                training=is_training,
            )
        )
    return Mixture(tuple(plans))


def fresh(order):
    """The same order, of which nothing has been read yet."""
    settings_of = ("lengths", "shards", "frames", "interval", "batch_size", "pool", "shard_group")
    settings_of += ("choices", "seed", "training")
    return Mixture(tuple(Plan(**{k: getattr(p, k) for k in settings_of}) for p in order.plans))


def windows(found):
    return list(zip(*(column.tolist() for column in found[:3]), strict=True))


def sequence(order, steps):
    return [windows(order.batch(step, range(BATCH))) for step in steps]


@settings(max_examples=60, deadline=None)
@given(orders(), st.sampled_from(WORLDS), st.integers(0, 3), st.data())
def test_any_ranks_and_workers_read_the_same_batches_from_any_step(order, world, workers, data):
    last = 2 * order.steps_per_epoch if order.training else order.steps_per_epoch
    whole = sequence(order, range(last))
    owners = [
        [fresh(order), lanes]
        for rank in range(world)
        for lanes in shares(lanes_of_rank(BATCH, rank, world), max(1, workers))
    ]
    begin = data.draw(st.integers(0, max(0, last - 1)))
    for step in range(begin, min(last, begin + 12)):
        joint = [w for owner, lanes in owners for w in windows(owner.batch(step, lanes))]
        assert joint == whole[step]


@settings(max_examples=20, deadline=None)
@given(orders(training=True))
def test_restoring_at_every_step_is_indexing(order):
    steps = range(order.steps_per_epoch + 3)
    whole = sequence(order, steps)
    for step in steps:
        assert sequence(fresh(order), [step]) == [whole[step]]


@settings(max_examples=40, deadline=None)
@given(orders(training=True), st.integers(0, 2))
def test_each_set_has_its_windows_once_in_each_of_its_own_epochs(order, epoch):
    for number, plan in enumerate(order.plans):
        low, high = order.offsets[number : number + 2]
        first = epoch * plan.steps_per_epoch
        read = Counter()
        for step in range(first, first + plan.steps_per_epoch):
            batch = windows(order.batch(step, range(BATCH)))
            mine = [(row - low, start) for row, start, _ in batch if low <= row < high]
            assert len(batch) == BATCH and len(mine) == plan.batch_size
            read.update(mine)
        rows, starts = plan.dropped(epoch)
        read.update(zip(rows.tolist(), starts.tolist(), strict=True))
        assert read == Counter(
            (row, start) for row, count in enumerate(plan.counts) for start in range(count)
        )


def test_lanes_are_shared_by_weight_and_every_set_has_some():
    assert share_lanes([3, 1], 8) == (6, 2)
    assert share_lanes([1, 1, 1], 8) == (3, 3, 2)
    assert sum(share_lanes([0.7, 0.2, 0.1], 64)) == 64
    with pytest.raises(DataError, match="batch = 8: too small for a set of weight 1 among 100"):
        share_lanes([99, 1], 8)


def test_sets_are_spread_evenly_over_the_lanes():
    plans = [
        Plan(lengths=np.full(9, 30), shards=np.zeros(9, int), frames=2, batch_size=count)
        for count in (6, 2)
    ]
    order = Mixture(tuple(plans))
    of_set = (order.batch(0, range(8)).rows >= 9).astype(int)
    assert of_set.sum() == 2 and of_set[:4].sum() == of_set[4:].sum() == 1


@pytest.fixture(scope="module")
def reference(shards):  # noqa: F811
    return take(open_loader(shards, batch=BATCH), 6)  # three epochs of two steps


@pytest.mark.parametrize("world", WORLDS)
def test_restored_on_any_world_the_pixels_are_equal_to_the_bit(shards, reference, world):  # noqa: F811
    for step in range(5):
        loaders = [
            open_loader(shards, batch=BATCH, rank=rank, world=world, workers=(step + rank) % 4)
            for rank in range(world)
        ]
        for loader in loaders:
            loader.load_state_dict({"step": step})
        parts = zip(*(iter(loader) for loader in loaders), strict=True)
        assert [joined(next(parts)) for _ in range(2)] == reference[step : step + 2]
        for loader in loaders:
            assert loader.step == step + 2
            loader.close()
