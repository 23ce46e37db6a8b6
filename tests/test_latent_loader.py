"""Latents through the loader and the trainer: slices of files, which train as videos do."""

import shutil

import numpy as np
import pytest
import torch

from cosmos_wds.data import latents as latents_module
from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.data.latents import LatentReader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.data.storage import storage
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.prepare.latents import write_latents
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.train.loop import train
from tests.conftest import moving_frames, write_episode
from tests.test_loader import damage, expected_windows, facts, joined, open_loader, take, windows_of
from tests.training import metrics, same, small_recipe, small_shards

pytestmark = pytest.mark.usefixtures("many_cores")

HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors"
    frames = torch.from_numpy(moving_frames(8, HEIGHT, WIDTH, seed=77)).permute(0, 3, 1, 2)
    PatchTokenizer.fit(frames).save(path)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory, tokenizer):
    """(shards, latents) of the same nine episodes of eight frames: 56 windows of two frames."""
    shards = small_shards(tmp_path_factory.mktemp("sets"), episodes=8)
    table = {"path": str(shards.parent / "latents"), "tokenizer": str(tokenizer)}
    table |= {"height": HEIGHT, "width": WIDTH, "device": "cpu"}
    write_latents(
        Pipeline.model_validate({"shards": {"path": str(shards), "workers": 1}, "latents": table})
    )
    return shards, shards.parent / "latents"


def loader_of(place, **settings):
    return open_loader(place, height=HEIGHT, width=WIDTH, **settings)


@pytest.mark.parametrize(("frames", "interval"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("pool", [0, 2])
def test_a_batch_holds_slices_of_the_latents(sets, frames, interval, pool):
    index = SplitIndex.load(sets[1], "train")
    rows = {row.key: i for i, row in enumerate(index.rows)}
    with loader_of(sets[1], frames=frames, interval=interval, pool=pool, workers=1) as loader:
        batches = [batch for batch, _ in zip(loader, range(loader.steps_per_epoch), strict=False)]
        dropped = loader.order.plans[0].dropped(0)
    for batch in batches:
        assert batch.video is None and batch.latent.dtype == torch.float16
        assert batch.latent.shape == (4, 16, frames, 8, 12) and batch.latent.is_contiguous()
        for latent, key, start in zip(batch.latent, batch.key, batch.start, strict=True):
            whole = index.read_array(rows[key], "latent.npy")
            wanted = whole[start : start + 1 + (frames - 1) * interval : interval]
            assert np.array_equal(latent.numpy().transpose(1, 0, 2, 3), wanted)
    read = windows_of([facts_of(batch) for batch in batches])
    span = 1 + (frames - 1) * interval
    assert read.total() + len(dropped[0]) == expected_windows(sets[1], span=span).total()
    assert set(read.values()) == {1}


def facts_of(batch):
    return (None, None, None, batch.key, batch.start)


def latents_of(batch):
    """All that a batch of latents holds, comparable bit for bit."""
    return facts(batch.__class__(**{**vars(batch), "video": batch.latent}))


def test_actions_and_order_are_those_of_the_shards(sets):
    for interval in (1, 2):
        streams = [loader_of(place, interval=interval) for place in sets]
        for (_, *video), (_, *latent) in zip(
            take(streams[0], 9), map(latents_of, islice_of(streams[1], 9)), strict=True
        ):
            assert video == latent


def islice_of(loader, count):
    return [batch for _, batch in zip(range(count), loader, strict=False)]


def test_a_shuffle_of_the_whole_epoch_is_the_same_on_any_ranks_and_resumes(sets):
    whole = [latents_of(batch) for batch in islice_of(loader_of(sets[1], pool=0), 30)]
    assert whole[:14] != whole[14:28]
    for world, kind in ((2, "thread"), (4, "thread"), (2, "process")):
        loaders = [
            loader_of(sets[1], pool=0, workers=2, kind=kind, rank=rank, world=world)
            for rank in range(world)
        ]
        for loader in loaders:
            loader.load_state_dict({"step": 11})
        shares = zip(*(islice_of(loader, 6) for loader in loaders), strict=True)
        got = [joined(with_latents(part) for part in parts) for parts in shares]
        assert got == whole[11:17]
        for loader in loaders:
            loader.close()


def with_latents(batch):
    return batch.__class__(**{**vars(batch), "video": batch.latent})


def test_a_shuffle_of_the_whole_epoch_is_not_for_videos(sets):
    with pytest.raises(DataError, match="pool = 0 shuffles the whole epoch, and would decode"):
        loader_of(sets[0], pool=0)


def test_reading_copies_nothing(sets):
    loader = loader_of(sets[1])
    held = loader.read(3)
    assert not held.frames.flags.owndata and not held.frames.flags.writeable
    assert np.shares_memory(held.frames, loader.read(3).frames)


def test_elsewhere_than_on_this_machine_members_are_read(sets, bucket):
    far = storage(f"{bucket}/latents")
    for path in sets[1].iterdir():
        if path.is_file():
            far.write(path.name, path.read_bytes())
    near = loader_of(sets[1])
    index = ShardIndex.read(far).split("train")
    reader = LatentReader(ShardSets((index,)), WindowSettings(height=HEIGHT, width=WIDTH))
    assert not reader.is_instant
    assert np.array_equal(reader.read(5).frames, near.read(5).frames)


def test_pages_of_the_files_are_let_go(sets, monkeypatch):
    monkeypatch.setattr(latents_module, "PAGES_BYTES", -1)
    monkeypatch.setattr(latents_module, "LOOK_EVERY", 3)
    assert list(map(latents_of, islice_of(loader_of(sets[1], pool=0), 14))) == list(
        map(latents_of, islice_of(loader_of(sets[1], pool=0), 14))
    )


@pytest.mark.parametrize("kind", ["truncated", "other", "actions", "missing"])
def test_bad_latents_are_an_error_that_names_shard_and_key(sets, tmp_path, kind):
    copied = shutil.copytree(sets[1], tmp_path / "latents")
    row, path = damage(copied, kind, member="latent.npy")
    with pytest.raises(DataError) as error:
        take_latents(loader_of(copied, pool=0), 14)
    assert path.name in str(error.value) and "train_" in str(error.value)
    with loader_of(copied, pool=0, on_bad="skip", workers=1) as loader:
        if kind == "missing":  # there is one shard only
            return
        first = take_latents(loader, 14)
    again = take_latents(loader_of(copied, pool=0, on_bad="skip"), 14)
    assert first == again and row.key not in {key for batch in first for key in batch[3]}


def take_latents(loader, count):
    return list(map(latents_of, islice_of(loader, count)))


def test_a_shard_cut_off_while_it_is_read_is_an_error_and_no_crash(sets, tmp_path):
    copied = shutil.copytree(sets[1], tmp_path / "latents")
    loader = loader_of(copied)
    held = loader.read(7)
    row = SplitIndex.load(copied, "train").rows[7]
    with open(copied / row.shard, "r+b") as file:
        file.truncate(row.members["latent.npy"][0] + 1000)
    del held
    with pytest.raises(DataError, match=rf"{row.key}.*the tar is cut off"):
        loader.read(7)


def test_windows_of_other_pictures_are_refused(sets):
    with pytest.raises(DataError, match=r"latents of height 32, and \[window\] height = 64"):
        open_loader(sets[1], height=64, width=WIDTH)
    with pytest.raises(DataError, match=r"latents of camera 0, and \[window\] camera = 0, 1"):
        loader_of(sets[1], camera=(0, 1))
    index = [SplitIndex.load(place, "train") for place in sets]
    with pytest.raises(DataError, match="videos there, latents of 32x48 by tokenizer .* here; mix"):
        ShardSets(tuple(index))


def train_on(place, folder, *, tokenizer, **changes):
    recipe = small_recipe(
        *(place, folder),
        steps=6,
        name=place.name,
        tokenizer={"kind": "patch", "path": str(tokenizer), **changes},
    )
    return train(recipe)


def test_training_on_latents_is_training_on_videos_but_for_rounding(sets, tmp_path, tokenizer):
    videos, latents = (
        [line["loss"] for line in metrics(train_on(place, tmp_path, tokenizer=tokenizer))]
        for place in sets
    )
    assert len(videos) == 6 and latents == pytest.approx(videos, rel=2e-3) and latents != videos


def test_latents_of_another_tokenizer_are_refused_by_digest(sets, tmp_path, tokenizer):
    other = tmp_path / "other.safetensors"
    frames = torch.from_numpy(moving_frames(8, HEIGHT, WIDTH, seed=1)).permute(0, 3, 1, 2)
    PatchTokenizer.fit(frames).save(other)
    made, runs = PatchTokenizer.load(tokenizer).digest[:16], PatchTokenizer.load(other).digest[:16]
    with pytest.raises(DataError, match=rf"latents made by tokenizer {made} .* is {runs}; name"):
        train_on(sets[1], tmp_path, tokenizer=other)
    with pytest.raises(ConfigError, match="latents hold no frames to fit a tokenizer on; set"):
        train_on(sets[1], tmp_path, tokenizer="")
    train_on(sets[1], tmp_path, tokenizer=tokenizer)  # the refused folder can be gone on with


def test_a_run_shuffles_the_whole_epoch_with_any_workers(sets, tmp_path, tokenizer):
    def run(name, workers):
        return train(
            small_recipe(
                *(sets[1], tmp_path),
                steps=4,
                name=name,
                save_every=2,
                data={"pool": 0, "workers": workers},
                tokenizer={"kind": "patch", "path": str(tokenizer)},
            )
        )

    whole, parts = run("whole", 0), run("parts", 1)
    same(whole, parts, step=4)


def test_training_takes_several_sets_and_stacked_cameras(sets, tmp_path):
    mixed = small_recipe(sets[0], tmp_path, steps=2, name="mixed")
    data = {"shards": (str(sets[0]), str(sets[0])), "workers": 1}
    train(mixed.model_copy(update={"data": mixed.data.model_copy(update=data)}))
    for number in range(2):
        write_episode(tmp_path / "raw", "train", number, cameras=2)
    table = {"source": {"path": str(tmp_path / "raw")}, "shards": {"path": str(tmp_path / "two")}}
    shard(Pipeline.model_validate(table))
    stacked = small_recipe(
        *(tmp_path / "two", tmp_path),
        steps=2,
        name="stacked",
        window={"camera": [0, 1], "stacked": True, "resize": "exact"},
        model={"max_height": 8},
    )
    assert len(metrics(train(stacked))) == 2
    with pytest.raises(ConfigError, match="height = 64: the model's position tables end at 32"):
        small_recipe(tmp_path, tmp_path, steps=2, window={"camera": [0, 1], "stacked": True})
