"""`bench loader`: what it counts, and that the reference's loader it is held against is honest."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch

from cosmos_wds.config import dump
from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.data.loader import Loader
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.prepare.latents import write_latents
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.train import bench_loader, meter
from cosmos_wds.train.bench_passes import LoaderBenchRequest, measure_ours, measure_reference
from cosmos_wds.train.bench_reference import ReferenceSet, _resized, reference_loader
from tests.commands import run
from tests.conftest import write_episode
from tests.golden_vectors import read_golden
from tests.test_shards_elsewhere import put
from tests.training import small_recipe

HEIGHT, WIDTH = 64, 80  # decord reads no pictures of 48
WINDOW = WindowSettings(height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recordings, shards): 12 train episodes of 8 frames."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(12):
        write_episode(folder / "raw", "train", number, height=HEIGHT, width=WIDTH)
    table = {"source": {"path": str(folder / "raw")}, "shards": {"path": str(folder / "shards")}}
    shard(Pipeline.model_validate(table))
    return folder / "raw", folder / "shards"


def recipe_of(shards, output, **data):
    sizes = {"max_height": HEIGHT // 8, "max_width": WIDTH // 8}
    window = {"height": HEIGHT, "width": WIDTH}
    return small_recipe(
        shards, output, steps=2, window=window, model=sizes, data={"pool": 12, **data}
    )


def test_the_references_windows_are_ours(made, tmp_path):
    """The same windows in another order; pictures of the windows' size survive unchanged."""
    raw, shards = made
    recipe = recipe_of(shards, tmp_path)
    ours = {}
    with Loader(SplitIndex.load(shards, "train"), recipe, training=False) as loader:
        for batch in loader:
            for i, key in enumerate(batch.key):
                ours[key, batch.start[i]] = batch.video[i], batch.action[i]
    theirs = ReferenceSet(raw, "train", WINDOW)
    assert len(theirs) == len(ours) == 12 * 7
    names = [path.rpartition("/")[2] for path, _ in theirs.samples[::7]]
    assert names[:4] == ["0.json", "1.json", "10.json", "11.json"]  # as text
    for number, (path, start) in enumerate(theirs.samples):
        sample = theirs[number]
        key = f"train_{path.rpartition('/')[2].removesuffix('.json')}"
        video, action = ours[key, start]
        assert torch.equal(sample["video"], video)
        torch.testing.assert_close(sample["action"], action, atol=2e-6, rtol=0)
    [first, *_] = reference_loader(raw, "train", WINDOW, 4)
    assert first["video"].shape == (4, 3, 2, HEIGHT, WIDTH) and first["fps"].tolist() == [4] * 4


@pytest.mark.parametrize("case", ["aspect", "down_480x640", "same", "up"])
def test_resize_is_the_references(case):
    golden, _ = read_golden("resize")
    frames, wanted = golden[f"{case}.in"], golden[f"{case}.uint8"]
    found = torch.stack([_resized(frame, wanted.shape[2:]) for frame in frames])
    is_other = found != wanted
    assert is_other.float().mean() < 1e-3  # another build of torch may round the last bit
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_a_folder_without_recordings_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no annotation/train/\*\.json; --recordings names"):
        ReferenceSet(tmp_path, "train", WINDOW)


def test_a_pass_counts_what_was_read(made, tmp_path):
    raw, shards = made
    recipe = recipe_of(shards, tmp_path)
    request = LoaderBenchRequest(recipe=recipe, recordings=raw)
    ours = measure_ours(request, time.time() - 5)
    assert ours.samples == 84 and ours.first_batch_seconds > 5
    assert ours.windows_per_decode <= 7 and ours.cpu_ms_per_sample > 0
    videos = sum(path.stat().st_size for path in raw.rglob("train/*/*.mp4"))
    assert ours.read_kb_per_sample > videos / 84 / 1000
    assert ours.peak_mb > 100 and 0 < ours.decode_share < 1
    assert measure_ours(LoaderBenchRequest(recipe=recipe, samples=10), time.time()).samples == 8
    theirs = measure_reference(request, time.time())
    assert theirs.samples == 84 and theirs.windows_per_decode == 1
    assert theirs.read_kb_per_sample > 2 * ours.read_kb_per_sample


@pytest.mark.slow
def test_the_command(made, tmp_path):
    raw, shards = made
    recipe = tmp_path / "small.toml"
    recipe.write_text(dump(recipe_of(shards, tmp_path)))
    words = ("bench", "loader", recipe, "--repeats", 1, "--against", "reference", "--recordings")
    ended = run(*words, raw, "--json", cwd=tmp_path)
    assert not ended.returncode, ended.stderr
    found = json.loads(ended.stdout)
    ours, reference = found["loaders"]
    assert (ours["loader"], reference["loader"]) == ("ours", "reference")
    ratio = reference["cpu_ms_per_sample"] / ours["cpu_ms_per_sample"]
    assert found["times_less_cpu"] == pytest.approx(ratio)
    assert "ours, 1 of 1: " in ended.stderr


def test_what_the_measuring_process_says_is_one_line(made, tmp_path, capfd):
    recipe = recipe_of(made[1], tmp_path)
    request = LoaderBenchRequest(recipe=recipe, recordings=tmp_path / "gone")
    with pytest.raises(DataError, match=r"gone: no annotation/train/\*\.json"):
        bench_loader._in_a_process("reference", request)
    assert "Traceback" not in capfd.readouterr().err


def burn(seconds, began, end):
    start = time.process_time()
    while time.process_time() < start + seconds:
        pass
    np.ones(10**7).sum()
    began.set()
    end.wait(20)


def test_the_meter_counts_children_that_still_run(tmp_path):
    context = multiprocessing.get_context("spawn")
    began, end = context.Event(), context.Event()
    child = context.Process(target=burn, args=(0.5, began, end))
    before, memory = meter.cpu_seconds(), meter.peak_bytes()
    child.start()
    assert began.wait(60)
    assert meter.cpu_seconds() - before > 0.4
    assert meter.peak_bytes() - memory > 8e7
    end.set()
    child.join()
    assert meter.cpu_seconds() - before > 0.4
    (tmp_path / "a").write_bytes(bytes(10**6))
    before = meter.read_bytes()
    (tmp_path / "a").read_bytes()
    assert 10**6 <= meter.read_bytes() - before < 2 * 10**6
    assert os.getpid() not in list(meter._descendants(os.getpid()))


def test_latents_are_mapped_and_a_url_is_counted(made, tmp_path, bucket):
    settings = {"path": str(tmp_path / "latents"), "tokenizer": "cosmos-tiny"}
    size = {"height": HEIGHT, "width": WIDTH}
    table = {"shards": {"path": str(made[1]), "workers": 1}, "latents": {**settings, **size}}
    write_latents(Pipeline.model_validate(table))
    found = measure_ours(LoaderBenchRequest(recipe=recipe_of(tmp_path / "latents", tmp_path)), 0)
    channels, rows, columns = ShardIndex.read(tmp_path / "latents").latents.shape
    window = 2 * channels * rows * columns * 2 / 1e3
    assert window < found.read_kb_per_sample < 1.5 * window
    assert found.decode_share is found.resize_share is None and found.copy_share > 0

    put(made[1], f"{bucket}/{tmp_path.name}")
    recipe = recipe_of(f"{bucket}/{tmp_path.name}", tmp_path, cache=str(tmp_path / "cache"))
    far = measure_ours(LoaderBenchRequest(recipe=recipe), 0)
    again = measure_ours(LoaderBenchRequest(recipe=recipe), 0)
    size = sum(path.stat().st_size for path in made[1].iterdir()) / 84 / 1e3
    assert far.fetched_kb_per_sample > 0.9 * size > again.fetched_kb_per_sample > 0
    assert far.read_kb_per_sample == again.read_kb_per_sample > 0
