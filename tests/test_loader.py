"""The loader on real shards: the same global batches for any ranks, workers and history."""

import gc
import multiprocessing
import operator
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import reduce
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cosmos_wds.data.actions import relative_actions
from cosmos_wds.data.cut import Cutter
from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.loader import Loader
from cosmos_wds.data.loader import open_loader as open_by_recipe
from cosmos_wds.data.processes import worker_context
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.data.video import decode, resize
from cosmos_wds.errors import CheckpointError, DataError
from cosmos_wds.pipeline import ActionSettings, Pipeline, ShardSettings, SourceSettings
from cosmos_wds.prepare import shard
from cosmos_wds.recipe import DataSettings, Recipe, TrainSettings, WindowSettings
from tests import forked
from tests.commands import ROOT
from tests.conftest import write_episode
from tests.killing import wait_for

pytestmark = pytest.mark.usefixtures("many_cores")

LENGTHS = (7, 5, 9, 2, 6, 8, 5, 3, 7, 6)  # 48 windows of 2 frames
PADDING = "x" * 350_000  # so that a shard of one megabyte holds two episodes


def make_shards(root, *, signal="state", accumulate=False, name="shards", splits=("train", "val")):
    """Shards of the recordings below `root`; existing ones are taken as they are."""
    pipeline = Pipeline(
        source=SourceSettings(path=str(root / "raw"), splits=splits),
        actions=ActionSettings(signal=signal, accumulate=accumulate),
        shards=ShardSettings(path=str(root / name), megabytes=1, workers=1),
    )
    shard(pipeline)
    return root / name


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    for number, frames in enumerate(LENGTHS):
        write_episode(root / "raw", "train", number, frames=frames, cameras=2, note=PADDING)
    for number in range(3):
        write_episode(root / "raw", "val", number, frames=5 + number, cameras=2)
    return root


@pytest.fixture(scope="session")
def shards(recordings):
    return make_shards(recordings)


@pytest.fixture
def copied(shards, tmp_path):
    """Shards of one's own to damage."""
    return shutil.copytree(shards, tmp_path / "shards")


def recipe_of(*, batch=4, workers=0, kind="thread", pool=2, seed=5, on_bad="error", **window):
    window = {"frames": 2, "height": 16, "width": 24, **window}
    return Recipe(
        seed=seed,
        data=DataSettings(
            workers=workers, worker_kind=kind, pool=pool, shard_group=2, on_bad=on_bad
        ),
        window=WindowSettings(**window),
        train=TrainSettings(batch=batch),
    )


def open_loader(shards, *, split="train", training=True, rank=0, world=1, **settings):
    index = SplitIndex.load(shards, split)
    return Loader(index, recipe_of(**settings), rank=rank, world=world, training=training)


def facts(batch):
    """All that a batch holds, comparable bit for bit."""
    tensors = (batch.video.numpy().tobytes(), batch.action.numpy().tobytes(), batch.fps.tolist())
    return (*tensors, batch.key, batch.start)


def joined(parts):
    """The global batch of all ranks' shares."""
    shares = [facts(part) for part in parts]
    return tuple(reduce(operator.add, column) for column in zip(*shares, strict=True))


def take(loader, count):
    return [facts(batch) for batch in islice(loader, count)]


def windows_of(batches):
    return Counter(w for batch in batches for w in zip(batch[3], batch[4], strict=True))


def expected_windows(shards, split="train", span=2):
    rows = SplitIndex.load(shards, split).rows
    return Counter((row.key, start) for row in rows for start in range(row.frames - span + 1))


def test_the_set_has_several_shards(shards):
    index = SplitIndex.load(shards, "train")
    assert len(index.shards) == 5 and sum(n - 1 for n in LENGTHS) == 48


@pytest.mark.parametrize(
    ("world", "workers", "kind"),
    [
        *((world, workers, "thread") for world in (1, 2, 4) for workers in (0, 1, 2, 3)),
        *((1, 3, "process"), (2, 2, "process"), (4, 1, "process")),
    ],
)
def test_global_batches_are_the_same_for_any_ranks_and_workers(
    shards, world, workers, kind, reference
):
    loaders = [
        open_loader(shards, workers=workers, kind=kind, rank=rank, world=world)
        for rank in range(world)
    ]
    assert {loader.steps_per_epoch for loader in loaders} == {12}
    streams = [islice(loader, 15) for loader in loaders]
    assert [joined(parts) for parts in zip(*streams, strict=True)] == reference[:15]
    for loader in loaders:
        loader.close()


@pytest.fixture(scope="session")
def reference(shards):
    """Two epochs and a half, read in this process in one go."""
    return take(open_loader(shards), 30)


def test_an_epoch_holds_each_window_once_and_the_next_has_another_order(shards, reference):
    assert windows_of(reference[:12]) == windows_of(reference[12:24]) == expected_windows(shards)
    assert reference[:12] != reference[12:24]


def test_restoring_at_every_step_goes_on_bit_for_bit(shards, reference):
    loader = open_loader(shards)
    for step in range(29):
        assert loader.state_dict()["step"] == step
        others = [open_loader(shards, rank=rank, world=2) for rank in range(2)]
        for other in others:
            other.load_state_dict(loader.state_dict())
        parts = zip(*(islice(other, 2) for other in others), strict=True)
        assert [joined(part) for part in parts] == reference[step : step + 2]
        take(loader, 1)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_state_counts_batches_handed_out_not_prefetched(shards, reference, kind):
    with open_loader(shards, workers=2, kind=kind) as loader:
        for step in (0, 1, 5):
            assert loader.step == step
            assert take(loader, 1) == [reference[step]]
            loader.load_state_dict({**loader.state_dict(), "step": {0: 1, 1: 5, 5: 11}[step]})
        assert take(loader, 14) == reference[11:25]  # over two epochs' ends
        assert loader.epoch == 2


def test_breaking_off_and_iterating_again_loses_nothing(shards, reference):
    with open_loader(shards, workers=1) as loader:
        seen = []
        for stop in (1, 3, 2):
            seen += take(loader, stop)
        assert seen == reference[:6]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_all_windows_once_in_order_and_ends(shards, workers):
    with open_loader(shards, split="val", training=False, workers=workers) as loader:
        first = [facts(batch) for batch in loader]
        assert [len(batch[3]) for batch in first] == [4, 4, 4, 3]
        assert windows_of(first) == expected_windows(shards, "val")
        lanes = [batch[3][lane] for lane in range(4) for batch in first if lane < len(batch[3])]
        assert lanes == sorted(lanes)
        assert [facts(batch) for batch in loader] == first


def test_every_rank_of_an_evaluation_makes_the_same_steps(shards):
    whole = [facts(batch) for batch in open_loader(shards, split="val", training=False, batch=8)]
    loaders = [
        open_loader(shards, split="val", training=False, batch=8, rank=rank, world=4)
        for rank in range(4)
    ]
    shares = list(zip(*loaders, strict=True))
    assert [joined(parts) for parts in shares] == whole
    assert [len(part.key) for part in shares[-1]] == [2, 2, 2, 1]
    wide = open_loader(shards, split="val", training=False, batch=32, rank=3, world=4)
    [empty] = list(wide)
    assert empty.video.shape == (0, 3, 2, 16, 24) and empty.key == ()


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(2, 4),
    interval=st.integers(1, 2),
    camera=st.integers(0, 1),
    size=st.sampled_from([(32, 48), (16, 24), (24, 16), (64, 80)]),
    batch=st.integers(1, 6),
    pool=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_pixels_and_actions_are_those_of_the_episode(
    shards, frames, interval, camera, size, batch, pool, seed
):
    """Against decoding, resizing and computing each window by itself."""
    height, width = size
    window = dict(frames=frames, interval=interval, camera=camera, height=height, width=width)
    index = SplitIndex.load(shards, "train")
    batch = min(batch, sum(max(0, n - (frames - 1) * interval) for n in LENGTHS))
    loader = open_loader(shards, batch=batch, pool=pool, seed=seed, **window)
    rows = {row.key: number for number, row in enumerate(index.rows)}
    scale = np.array([20, 20, 20, 20, 20, 20, 1])
    for shares in islice(loader, 2):
        assert shares.video.shape == (batch, 3, frames, height, width)
        assert shares.video.dtype == torch.uint8 and shares.action.dtype == torch.float32
        assert shares.video.permute(0, 2, 3, 4, 1).is_contiguous()
        assert shares.fps.tolist() == pytest.approx([5 / interval] * batch)
        for i, (key, start) in enumerate(zip(shares.key, shares.start, strict=True)):
            picked = range(start, start + (frames - 1) * interval + 1, interval)
            data = index.read(rows[key], "1.mp4" if camera else "mp4")
            pictures = resize(decode(data, picked), height, width)
            assert np.array_equal(shares.video[i].numpy().transpose(1, 2, 3, 0), pictures)
            state = index.read_array(rows[key], "state.npy")[list(picked)]
            action = shares.action[i].numpy()
            assert np.allclose(action, relative_actions(state) * scale, atol=3e-6)
            if interval == 1:
                rows_of = index.read_array(rows[key], "action.npy")[start : start + frames - 1]
                assert np.array_equal(action, (rows_of.astype(float) * scale).astype(np.float32))


def test_accumulated_actions_begin_anew_in_each_window(recordings):
    shards = make_shards(recordings, accumulate=True, name="accumulated")
    index = SplitIndex.load(shards, "train")
    rows = {row.key: number for number, row in enumerate(index.rows)}
    batch = next(iter(open_loader(shards, frames=4)))
    for action, key, start in zip(batch.action, batch.key, batch.start, strict=True):
        state = index.read_array(rows[key], "state.npy")[start : start + 4]
        expected = index.contract.scaled(relative_actions(state, accumulate=True))
        assert np.array_equal(action.numpy(), expected)


def test_recorded_commands_are_taken_as_they_are_and_do_not_skip_frames(recordings):
    shards = make_shards(recordings, signal="command", name="commands")
    index = SplitIndex.load(shards, "train")
    rows = {row.key: number for number, row in enumerate(index.rows)}
    batch = next(iter(open_loader(shards, frames=3)))
    for action, key, start in zip(batch.action, batch.key, batch.start, strict=True):
        command = index.read_array(rows[key], "action.npy")[start : start + 2]
        assert np.array_equal(action.numpy(), index.contract.scaled(command))
    with pytest.raises(DataError, match="interval = 2: recorded commands cannot be joined"):
        open_loader(shards, interval=2)


@pytest.mark.parametrize("pool", [1, 3, 100])
def test_an_episode_is_decoded_once_but_where_lanes_part(shards, pool):
    """In one epoch; an episode that straddles lanes is decoded once more per border at most."""
    for batch in (1, 3, 6):
        loader = open_loader(shards, batch=batch, pool=pool)
        batches = take(loader, loader.steps_per_epoch)
        lanes = Counter(
            key for lane in range(batch) for key in {share[3][lane] for share in batches}
        )
        assert len(lanes) <= loader.decoded <= lanes.total() <= len(lanes) + batch - 1


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_workers_decode_no_more_than_none_would(shards, kind):
    alone, several = open_loader(shards), open_loader(shards, workers=2, kind=kind)
    take(alone, 12), take(several, 12)
    several.close()
    assert several.decoded == alone.decoded


def test_of_several_cameras_an_episode_shows_one_another_one_from_epoch_to_epoch(shards):
    index = SplitIndex.load(shards, "train")
    rows = {row.key: number for number, row in enumerate(index.rows)}
    seen = [
        [resize(decode(index.read(row, name)), 16, 24) for name in ("mp4", "1.mp4")]
        for row in range(len(rows))
    ]
    shown = Counter()
    with open_loader(shards, camera=(0, 1), workers=2) as loader:
        for step, batch in enumerate(islice(loader, 48)):
            windows = loader.order.batch(step, range(4))
            for video, key, start, choice in zip(
                batch.video, batch.key, batch.start, windows.choices.tolist(), strict=True
            ):
                wanted = seen[rows[key]][choice][start : start + 2]
                assert np.array_equal(video.permute(1, 2, 3, 0).numpy(), wanted)
                shown[key, step // 12, choice] += 1
    assert len(shown) == 4 * 10  # one camera of each episode in each epoch
    assert len({(key, choice) for key, _, choice in shown}) > 10


def test_several_cameras_are_stacked(shards):
    both = open_loader(shards, camera=(1, 0), stacked=True)
    single = [open_loader(shards, camera=camera) for camera in (1, 0)]
    for batch, *parts in islice(zip(both, *single, strict=True), 5):
        assert batch.video.shape == (4, 3, 2, 32, 24)
        assert torch.equal(batch.video, torch.cat([part.video for part in parts], dim=3))


def test_an_exact_resize_is_asked_for_in_the_window(shards):
    index = SplitIndex.load(shards, "train")
    held = open_loader(shards, resize="exact").read(0)
    frames = decode(index.read(0, "mp4"))
    assert np.array_equal(held.frames, resize(frames, 16, 24, exact=True))
    assert not np.array_equal(held.frames, resize(frames, 16, 24))


def test_several_sets_are_mixed_by_weight_on_any_ranks_and_from_any_step(recordings, shards):
    other = make_shards(recordings, splits=("val",), name="other")
    sets = ShardSets((SplitIndex.load(shards, "train"), SplitIndex.load(other, "val")))
    recipe = recipe_of(batch=8, workers=2)
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"weights": (3.0, 1.0)})}
    )

    def streams(world):
        return [Loader(sets, recipe, rank=rank, world=world) for rank in range(world)]

    [alone] = streams(1)
    whole = take(alone, 24)
    assert all(sum(key.startswith("val") for key in batch[3]) == 2 for batch in whole)
    assert windows_of(whole[:8]) >= expected_windows(shards)  # 48 windows, 6 in a batch
    small = Counter(w for w in windows_of(whole[:7]).elements() if w[0].startswith("val"))
    assert set(small.values()) == {1} and small.total() == 14  # of 15, 2 in a batch
    for world, step in ((2, 5), (4, 17)):
        loaders = streams(world)
        for loader in loaders:
            loader.load_state_dict({**alone.state_dict(), "step": step})
        parts = zip(*(islice(loader, 4) for loader in loaders), strict=True)
        assert [joined(part) for part in parts] == whole[step : step + 4]
        for loader in loaders:
            loader.close()
    alone.close()
    unequal = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"weights": (1.0, 1.0)})}
    )
    with pytest.raises(CheckpointError, match=r"lanes = 6\+2 then, 4\+4 now"):
        Loader(sets, unequal).load_state_dict(alone.state_dict())
    with pytest.raises(DataError, match="2 shard sets: evaluation reads one at a time"):
        Loader(sets, recipe, training=False)


def test_sets_whose_actions_mean_other_things_do_not_mix(recordings, shards):
    other = make_shards(recordings, accumulate=True, name="accumulated")
    with pytest.raises(DataError, match="do not mean the same: frame: previous here, first there"):
        ShardSets(tuple(SplitIndex.load(place, "train") for place in (shards, other)))


def test_a_recipe_opens_its_loader(recordings, shards, reference):
    recipe = recipe_of(workers=1)
    data = recipe.data.model_copy(update={"shards": str(shards)})
    with open_by_recipe(recipe.model_copy(update={"data": data})) as loader:
        assert take(loader, 3) == reference[:3]
    data = data.model_copy(update={"shards": (str(shards), str(shards))})
    with open_by_recipe(recipe.model_copy(update={"data": data}), split="val", batch=2) as loader:
        assert [plan.batch_size for plan in loader.order.plans] == [1, 1]


def test_torch_s_dataloader_takes_it_as_a_data_set(shards, reference):
    loader = open_loader(shards, workers=1)
    batches = DataLoader(loader, batch_size=None)
    assert [facts(batch) for batch in islice(batches, 3)] == reference[:3]
    assert loader.state_dict()["step"] == 3
    loader.close()
    doubled = DataLoader(
        loader, batch_size=None, num_workers=1, multiprocessing_context=worker_context()
    )
    batches = iter(doubled)
    with pytest.raises(DataError, match="brings its own workers; give it to a DataLoader with"):
        next(batches)
    batches._shutdown_workers()  # it takes five seconds when the collector does it


@pytest.mark.parametrize("workers", [0, 2])
def test_any_other_error_names_shard_and_key_too(shards, workers, monkeypatch):
    def broken(*_, **__):
        raise MemoryError("out of it")

    monkeypatch.setattr("cosmos_wds.data.reader.resize", broken)
    with (
        pytest.raises(RuntimeError, match=r"train-\d+\.tar: train_\d: MemoryError\('out of it'\)"),
        open_loader(shards, workers=workers) as loader,
    ):
        take(loader, 1)


@pytest.mark.parametrize(("cores", "ranks", "readers"), [(2, 1, 0), (3, 1, 2), (8, 4, 0)])
def test_a_core_is_left_to_training(shards, cores, ranks, readers, monkeypatch):
    """One worker is one thread, which also cuts; of more, each reads and a further one cuts.

    The first step, which training waits for, is read on all cores: here four episodes.
    """
    names, read, both = [], Cutter.read, threading.Barrier(2)

    def noted(*arguments):
        names.append(threading.current_thread().name)
        if len(names) <= 2:
            both.wait(timeout=60)
        return read(*arguments)

    monkeypatch.setattr(Cutter, "read", noted)
    monkeypatch.setattr("cosmos_wds.data.threads.cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    with open_loader(shards, workers=4) as loader:
        take(loader, 6)
    assert {*names[:2]} == {"reader_0", "reader_1"}
    if readers:
        assert {*names} <= {f"reader_{number}" for number in range(readers)}
    else:
        (name,) = {*names[4:]}
        assert not name.startswith(("reader", "MainThread"))


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_iterating_leaves_the_random_state_alone(shards, kind):
    before = torch.get_rng_state()
    with open_loader(shards, workers=1, kind=kind) as loader:
        take(loader, 2)
    assert torch.equal(torch.get_rng_state(), before)


def damage(shards, kind, key_number=4, member="mp4"):
    """Break one episode of the set, or its whole shard; returns (row, shard's file)."""
    row = SplitIndex.load(shards, "train").rows[key_number]
    path = shards / row.shard
    offset, size = row.members[member]
    content = bytearray(path.read_bytes())
    if kind == "zeros":
        content[offset : offset + size] = bytes(size)
    elif kind == "truncated":
        del content[offset + size // 2 :]
    elif kind == "other":
        content[offset - 512 : offset - 500] = b"another-name"
    elif kind == "actions":
        place, _ = row.members["action.npy"]
        content[place : place + 6] = b"BROKEN"
    path.write_bytes(content)
    if kind == "missing":
        path.unlink()
    return row, path


KINDS = ["zeros", "truncated", "other", "actions", "missing"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_episode_is_an_error_that_names_shard_and_key(copied, kind):
    row, path = damage(copied, kind)
    loader = open_loader(copied, on_bad="error")
    with pytest.raises(DataError) as error:
        take(loader, 12)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    index = SplitIndex.load(copied, "train")
    assert row.key in str(error.value) or kind in ("truncated", "missing")
    assert any(r.key in str(error.value) for r in index.rows if r.shard == row.shard)


def test_a_worker_s_error_arrives_at_its_step_as_one_line(copied, reference):
    damage(copied, "zeros")
    messages = set()
    for workers, kind in ((0, "thread"), (2, "thread"), (2, "process")):
        with open_loader(copied, workers=workers, kind=kind) as loader:
            good = []
            with pytest.raises(DataError) as error:
                for batch in loader:
                    good.append(facts(batch))
            assert good == reference[: len(good)] and loader.step == len(good)
            messages.add((str(error.value), len(good)))
            with pytest.raises(DataError, match="cannot decode|does not decode"):
                take(loader, 1)  # the step is still to come, and still bad
    assert len(messages) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_replaces_alike_on_every_run(copied, reference, kind, capfd):
    damage(copied, kind)
    runs = []
    for world, workers, of in ((1, 0, "thread"), (2, 2, "thread"), (1, 2, "process")):
        loaders = [
            open_loader(copied, on_bad="skip", workers=workers, kind=of, rank=rank, world=world)
            for rank in range(world)
        ]
        parts = zip(*(islice(loader, 12) for loader in loaders), strict=True)
        runs.append(([joined(part) for part in parts], sum(x.skipped for x in loaders)))
        for loader in loaders:
            loader.close()
    assert runs[0] == runs[1] == runs[2]
    batches, skipped = runs[0]
    lost = windows_of(reference[:12]) - windows_of(batches)
    assert lost.total() == skipped > 0
    same = [old == new for old, new in zip(reference, batches, strict=False)]
    assert any(same) and not all(same)
    assert "bad episode replaced" in capfd.readouterr().err


def test_a_rank_tells_its_own_bad_episodes(copied, capfd, monkeypatch):
    damage(copied, "zeros")
    monkeypatch.setenv("RANK", "1")
    loaders = [open_loader(copied, on_bad="skip", rank=rank, world=4) for rank in range(4)]
    for loader in loaders:
        take(loader, 12)
    told = capfd.readouterr().err
    for rank, loader in enumerate(loaders):
        assert (f"rank {rank}: bad episode replaced, 1 so far: " in told) == (loader.skipped > 0)
    assert "rank 1" in told or "rank 2" in told or "rank 3" in told


def test_skipping_resumes_alike(copied):
    damage(copied, "missing")
    whole = take(open_loader(copied, on_bad="skip"), 12)
    for step in range(12):
        loader = open_loader(copied, on_bad="skip")
        loader.load_state_dict({"step": step})
        assert take(loader, 1) == [whole[step]]


def test_when_nothing_is_left_skipping_ends(copied):
    for path in copied.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(DataError, match="100 episodes tried instead are bad too"):
        take(open_loader(copied, on_bad="skip"), 1)


def test_a_camera_that_is_not_there_is_named(shards):
    with pytest.raises(DataError, match=r"train-.*\.tar: train_.: no camera 2; it has 0, 1"):
        take(open_loader(shards, camera=2), 1)


def test_settings_that_do_not_go_together_are_errors(shards):
    with pytest.raises(DataError, match=r"split train: no windows: 20 frames .*has 9"):
        open_loader(shards, frames=20)
    with pytest.raises(DataError, match=r"batch = 64, but 10 episodes hold only 48 windows"):
        open_loader(shards, batch=64)
    with pytest.raises(DataError, match="batch = 4: 3 ranks cannot share it evenly; use 3 or 6"):
        open_loader(shards, world=3)
    with pytest.raises(DataError, match="batch = 4: 8 ranks cannot share it evenly; use 8, or"):
        open_loader(shards, world=8)


def test_a_position_in_another_order_is_refused(shards):
    state = open_loader(shards).state_dict()
    assert all(isinstance(value, int | str) for value in state.values())
    open_loader(shards, workers=1, rank=1, world=4).load_state_dict(state)
    for settings_, names in (
        (dict(seed=6), "seed = 5 then, 6 now"),
        (dict(batch=8, frames=3), "batch = 4 then, 8 now; frames = 2 then, 3 now"),
        (dict(split="val"), "index = "),
        (dict(height=32), "height = 16 then, 32 now"),
        (dict(camera=(0, 1)), r"camera = 0 then, \(0, 1\) now"),
    ):
        with pytest.raises(CheckpointError, match=names):
            open_loader(shards, **settings_).load_state_dict(state)


def test_the_windows_left_out_are_told_once_an_epoch(shards, capfd):
    loader = open_loader(shards, batch=9)
    batches = take(loader, 2 * loader.steps_per_epoch)
    lines = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 2 and lines[0].startswith("epoch 0: 3 of 48 windows fill no batch")
    missing = expected_windows(shards) - windows_of(batches[:5])
    assert all(f"{key} " in lines[0] for key, _ in missing)


def test_a_killed_worker_is_a_clear_error_and_a_new_start_goes_on(shards, reference):
    with open_loader(shards, workers=2, kind="process") as loader:
        seen = take(loader, 2)
        victim = multiprocessing.active_children()[0].pid
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(DataError, match=rf"worker \d of 2 \(process {victim}\) died"):
            seen += [facts(batch) for batch in loader]
        seen = seen[: loader.step] + take(loader, 3)
        assert seen[-3:] == reference[loader.step - 3 : loader.step]


def test_closing_ends_the_threads(shards):
    before = set(threading.enumerate())
    loader = open_loader(shards, workers=2)
    take(loader, 1)
    assert len(set(threading.enumerate()) - before) == 3  # two readers, and one that cuts
    loader.close()
    assert not set(threading.enumerate()) - before
    loader.close()


def test_a_loader_that_is_dropped_leaves_no_thread(shards):
    before = set(threading.enumerate())
    take(open_loader(shards, workers=2), 1)
    gc.collect()
    assert not set(threading.enumerate()) - before


def test_closing_ends_the_processes(shards):
    loader = open_loader(shards, workers=2, kind="process")
    take(loader, 1)
    mine = {p.pid for p in multiprocessing.active_children()}
    assert len(mine) == 2
    loader.close()
    assert not multiprocessing.active_children()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in mine)
    loader.close()


SCRIPT = """
import sys, time
from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.loader import Loader
from cosmos_wds.data.loader import open_loader as open_by_recipe
from cosmos_wds.data.processes import worker_context
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.recipe import DataSettings, Recipe, TrainSettings

if __name__ == "__main__":
    data = DataSettings(workers=2, worker_kind=sys.argv[2])
    recipe = Recipe(data=data, train=TrainSettings(batch=4))
    try:
        for batch in Loader(SplitIndex.load(sys.argv[1], "train"), recipe):
            print(batch.start, flush=True)
            time.sleep(0.01)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize(
    "number, delay",
    [(signal.SIGINT, 0.3), (signal.SIGINT, 1.5), (signal.SIGINT, None), (signal.SIGKILL, None)],
)
def test_when_the_parent_ends_so_do_all_its_workers(shards, tmp_path, number, delay, kind):
    """SIGINT to the whole group, as a terminal sends it, and SIGKILL to the parent alone.

    delay   seconds from the start; None waits for batches
    """
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    words = [sys.executable, script, shards, kind]
    options = {"start_new_session": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    if delay is None:
        process = forked.Process(words, **options)
        wait_for(lambda: process.said()[0], process)
        time.sleep(0.5)
    else:  # in the middle of its imports
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([*map(str, words)], text=True, **pipes, **options)
        time.sleep(delay)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGINT and delay is None:
        assert out.endswith("interrupted\n") and process.returncode == 0
    # One traceback may be the script's own, when torch was still being imported.
    assert err.count("Traceback") <= (delay is not None)
    assert "Exception ignored" not in err
    wait_for(lambda: not living_of_group(process.pid), seconds=10)
    if delay is None:
        process.end()


def living_of_group(group):
    """Processes of a group that have not ended, from Linux' /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(path.parent.name)
    return found


def test_readme_s_loader_runs(shards, capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [code] = [part for part in readme.split("```") if part.startswith("python\nfrom")]
    for here, there in (("data/bridge/shards", str(shards)), ("64", "4"), ("256", "16")):
        code = code.replace(here, there)
    exec(code.removeprefix("python\n"), {})
    assert capsys.readouterr().out.startswith("torch.Size([4, 3, 2, 16, 320]) torch.Size([4, 1, 7]")
