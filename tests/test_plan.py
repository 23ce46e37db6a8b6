"""The plan: an epoch holds each window once, and nothing but the position decides the order."""

import time
from collections import Counter
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_wds.data.plan import Plan
from cosmos_wds.data.shuffle import position_hash, shuffled_places
from cosmos_wds.errors import DataError

quick = settings(max_examples=60, deadline=None)


@st.composite
def plans(draw, training=None):
    """Small plans of every kind: short episodes, empty ones, batches that do not divide."""
    lengths = draw(st.lists(st.integers(0, 14), min_size=1, max_size=24))
    shards = sorted(draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths))))
    frames, interval = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    windows = sum(max(0, n - (frames - 1) * interval) for n in lengths)
    lengths = lengths if windows else [*lengths, 30]
    shards = shards if windows else [*shards, 6]
    total = windows or 30 - (frames - 1) * interval
    return Plan(
        lengths=np.array(lengths),
        shards=np.array(shards),
        frames=frames,
        interval=interval,
        batch_size=draw(st.integers(1, total)),
        pool=draw(st.integers(0, 6)),
        choices=draw(st.integers(1, 3)),
        shard_group=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 2**40)),
        training=draw(st.booleans()) if training is None else training,
    )


def all_windows(plan):
    return Counter(
        (row, start)
        for row, length in enumerate(plan.lengths.tolist())
        for start in range(length - (plan.frames - 1) * plan.interval)
    )


def epoch_batches(plan, epoch=0):
    first = epoch * plan.steps_per_epoch
    steps = range(first, first + plan.steps_per_epoch)
    return [pairs(plan.batch(step, range(plan.batch_size))) for step in steps]


def pairs(found):
    rows, starts = found[:2]
    return list(zip(rows.tolist(), starts.tolist(), strict=True))


def fresh(plan, **changes):
    """A plan that has read nothing yet."""
    return replace(plan, **changes)


@quick
@given(plans(), st.integers(0, 3))
def test_epoch_holds_each_window_once(plan, epoch):
    epoch = epoch if plan.training else 0
    seen = Counter(w for batch in epoch_batches(plan, epoch) for w in batch)
    left = Counter(pairs(plan.dropped(epoch)))
    assert seen + left == all_windows(plan)
    assert sum(left.values()) == (plan.windows % plan.batch_size if plan.training else 0)


@quick
@given(plans(training=True))
def test_every_training_batch_is_full(plan):
    for batch in epoch_batches(plan):
        assert len(batch) == plan.batch_size


@quick
@given(plans(training=False))
def test_evaluation_reads_each_lane_in_the_order_of_the_index(plan):
    batches = epoch_batches(plan)
    assert sum(map(len, batches)) == plan.windows
    read = [
        batch[lane] for lane in range(plan.batch_size) for batch in batches if lane < len(batch)
    ]
    assert read == sorted(read)
    assert all(len(batch) == plan.batch_size for batch in batches[:-1])
    assert epoch_batches(fresh(plan, seed=plan.seed + 1)) == batches


@quick
@given(plans(), st.data())
def test_any_split_of_the_lanes_gives_the_same_batches(plan, data):
    parts = data.draw(st.integers(1, 13))
    borders = [plan.batch_size * i // parts for i in range(parts + 1)]
    whole = epoch_batches(plan)
    owners = [fresh(plan) for _ in range(parts)]
    for step, batch in enumerate(whole):
        joined = []
        for owner, low, high in zip(owners, borders, borders[1:], strict=False):
            joined += pairs(owner.batch(step, range(low, high)))
        assert joined == batch


@quick
@given(plans(), st.data())
def test_a_step_is_found_without_what_came_before(plan, data):
    epochs = 3 if plan.training else 1
    last = plan.steps_per_epoch * epochs - 1
    sequence = [b for epoch in range(epochs) for b in epoch_batches(plan, epoch)]
    for step in data.draw(st.lists(st.integers(0, last), max_size=8)):
        assert pairs(fresh(plan).batch(step, range(plan.batch_size))) == sequence[step]
        assert pairs(plan.batch(step, range(plan.batch_size))) == sequence[step]


@quick
@given(plans())
def test_a_lane_goes_through_pools_of_at_most_p_episodes_and_comes_back_to_none(plan):
    """So that an episode is decoded once per lane, and few are held."""
    steps = [plan.batch(step, range(plan.batch_size)) for step in range(plan.steps_per_epoch)]
    for lane in range(plan.batch_size):
        read = [(w.pools[lane], w.rows[lane]) for w in steps if lane < len(w.rows)]
        runs = [pool for pool, _ in groupby(read, key=itemgetter(0))]
        assert len(runs) == len(set(runs))
        for pool in runs:
            episodes = {row for number, row in read if number == pool}
            assert len(episodes) <= (plan.pool or 1 if plan.training else 1)
        if plan.pool or not plan.training:
            assert len(set(read)) == len({row for _, row in read})


@quick
@given(plans(), st.integers(0, 3))
def test_an_episode_shows_one_camera_in_an_epoch(plan, epoch):
    epoch = epoch if plan.training else 0
    shown = {}
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        windows = plan.batch(step, range(plan.batch_size))
        for row, choice in zip(windows.rows.tolist(), windows.choices.tolist(), strict=True):
            assert shown.setdefault(row, choice) == choice < plan.choices


def test_cameras_are_chosen_evenly_over_episodes_and_epochs():
    plan = Plan(
        lengths=np.full(300, 5), shards=np.zeros(300, int), frames=2, batch_size=8, choices=3
    )
    shown = np.array([plan.batch(step, range(8)).choices for step in range(1500)])
    assert np.bincount(shown.ravel()) == pytest.approx([4000] * 3, rel=0.1)


@quick
@given(plans(training=True).filter(lambda plan: plan.pool))
def test_an_episode_is_in_one_lane_or_straddles_neighbours(plan):
    lanes = {}
    for batch in epoch_batches(plan):
        for lane, (row, _) in enumerate(batch):
            lanes.setdefault(row, set()).add(lane)
    for found in lanes.values():
        assert len(found) == max(found) - min(found) + 1
    borders = sum(len(found) - 1 for found in lanes.values())
    assert borders <= plan.batch_size - 1


def test_order_changes_with_epoch_seed_and_settings_only():
    base = dict(lengths=np.full(40, 9), shards=np.arange(40) // 4, frames=2, batch_size=8, seed=3)
    first = epoch_batches(Plan(**base))
    assert epoch_batches(Plan(**base)) == first
    assert epoch_batches(Plan(**base), epoch=1) != first
    assert epoch_batches(Plan(**{**base, "seed": 4})) != first
    assert epoch_batches(Plan(**base, pool=2)) != first
    assert epoch_batches(Plan(**base, shard_group=1)) != first


def test_no_two_of_many_epochs_have_the_same_order():
    plan = Plan(lengths=np.full(6, 4), shards=np.zeros(6, int), frames=2, batch_size=2, seed=0)
    orders = {tuple(map(tuple, epoch_batches(plan, epoch))) for epoch in range(200)}
    assert len(orders) == 200


def test_shards_are_read_group_by_group():
    plan = Plan(
        lengths=np.full(60, 5),
        shards=np.arange(60) // 5,
        frames=2,
        batch_size=1,
        shard_group=3,
        pool=1,
    )
    order = [int(row) for batch in epoch_batches(plan, 2) for row, _ in batch]
    groups = [sorted({plan.shards[row] for row in order[i : i + 60]}) for i in range(0, 240, 60)]
    assert all(len(group) == 3 for group in groups)
    assert sorted(shard for group in groups for shard in group) == list(range(12))
    assert groups != sorted(groups)


def test_the_order_is_pinned():
    """Resuming on another machine or numpy must not meet another order: these are the numbers."""
    assert position_hash(np.arange(3), 1, 2).tolist() == HASHES
    plan = Plan(
        lengths=np.array([5, 3, 6, 1, 4]),
        shards=np.array([0, 0, 1, 1, 2]),
        frames=2,
        batch_size=4,
        seed=7,
    )
    assert epoch_batches(plan) == ORDER


HASHES = [8684421853201259283, 16096896030790725433, 7497590239878647878]
ORDER = [
    [(1, 0), (0, 3), (2, 1), (2, 3)],
    [(1, 1), (0, 1), (2, 2), (4, 0)],
    [(0, 0), (0, 2), (2, 0), (2, 4)],
]


def test_hash_shuffles_evenly():
    """Each of 6 places holds each of 6 items about equally often over 6,000 epochs."""
    table = np.zeros((6, 6), int)
    for epoch in range(6000):
        order = np.argsort(position_hash(np.arange(6), 0, epoch, 1))
        table[np.arange(6), order] += 1
    assert abs(table - 1000).max() < 150  # 5 standard deviations


@quick
@given(st.integers(1, 2**63), st.integers(0, 100))
def test_replacements_are_episodes_with_windows(seed, row):
    plan = Plan(
        lengths=np.array([1, 9, 1, 4]), shards=np.zeros(4, int), frames=2, batch_size=1, seed=seed
    )
    found = [plan.replacement(row, attempt) for attempt in range(50)]
    assert set(found) == {1, 3}
    assert found == [fresh(plan).replacement(row, attempt) for attempt in range(50)]


def test_zero_windows_says_numbers_and_way_out():
    with pytest.raises(
        DataError, match=r"4 frames at interval 3 span 10 .*2 episodes has 9; lower"
    ):
        Plan(lengths=np.array([9, 4]), shards=np.zeros(2, int), frames=4, interval=3, batch_size=1)
    with pytest.raises(DataError, match="longest of 0 episodes"):
        Plan(lengths=np.array([], int), shards=np.array([], int), frames=2, batch_size=1)


def test_batch_beyond_the_windows_is_an_error_in_training_only():
    base = dict(lengths=np.array([4, 3]), shards=np.zeros(2, int), frames=2, batch_size=6)
    with pytest.raises(
        DataError, match=r"batch = 6, but 2 episodes hold only 5 windows.*at most 5"
    ):
        Plan(**base)
    assert [len(batch) for batch in epoch_batches(Plan(**base, training=False))] == [5]


def test_25k_episodes_restore_in_well_under_a_second():
    """800 k windows, 90 % into the third epoch: the plan's share of restoring."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 47, 25_000)
    plan = Plan(lengths=lengths, shards=np.arange(25_000) // 200, frames=2, batch_size=64)
    step = int(2.9 * plan.steps_per_epoch)
    begin = time.perf_counter()
    rows = plan.batch(step, range(64)).rows
    seconds = time.perf_counter() - begin
    assert len(rows) == 64 and plan.windows > 790_000
    assert seconds < 0.5, seconds


@quick
@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_a_shuffle_that_is_not_stored_is_a_shuffle(size, seed):
    places = np.arange(size)
    found = shuffled_places(places, size, seed)
    assert np.array_equal(np.sort(found), places)
    some = np.random.default_rng(seed).integers(0, size, 5)
    assert np.array_equal(shuffled_places(some, size, seed), found[some])


@pytest.mark.parametrize("size", [6, 50, 64])
def test_it_shuffles_evenly(size):
    """Every place holds every item about equally often, and neighbours do not stay neighbours."""
    count = 100 * size
    found = np.array([shuffled_places(np.arange(size), size, seed) for seed in range(count)])
    table = np.zeros((size, size), int)
    np.add.at(table, (np.arange(size), found), 1)
    assert abs(table - 100).max() < 55  # 5.5 standard deviations
    apart = np.bincount((np.diff(found, axis=1) % size).ravel(), minlength=size)[1:] / count
    assert abs(apart - 1).max() < 0.35, apart


def test_a_pool_of_the_whole_epoch_shuffles_all_windows_and_restores_at_once():
    """Two million windows: consecutive ones come from all over the epoch, and nothing is stored."""
    lengths = np.full(50_000, 41)
    base = dict(lengths=lengths, shards=np.arange(50_000) // 50, frames=2, batch_size=8, pool=0)
    plan = Plan(**base)
    begin = time.perf_counter()
    windows = plan.batch(int(1.9 * plan.steps_per_epoch), range(8))
    assert time.perf_counter() - begin < 0.5
    assert len(set(windows.pools.tolist())) == 8
    rows = np.array([plan.batch(step, range(8)).rows for step in range(500)])
    assert len(np.unique(rows)) > 3700  # of 4,000 draws
    assert np.histogram(rows, 10, (0, 50_000))[0] == pytest.approx([400] * 10, rel=0.3)
    assert max(pool.table.nbytes for pool in plan._pools.values()) < 20_000
