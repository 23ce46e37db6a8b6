"""Latent sets: what is in them, that training would have computed the same, and that they hold."""

import json
import os
import shutil
import signal
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch

from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.data.jobs import UNFINISHED
from cosmos_wds.data.loader import Loader
from cosmos_wds.data.shards import ShardWriter
from cosmos_wds.data.storage import storage
from cosmos_wds.data.workers import run_jobs, worker_number
from cosmos_wds.errors import CheckpointError, ConfigError, DataError, UserError
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.model.tokenizer_torchscript import load_torchscript
from cosmos_wds.model.tokenizers import open_tokenizer
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import latent_job, shard
from cosmos_wds.prepare.latents import make_plan, write_latents
from tests.commands import run
from tests.conftest import moving_frames, write_episode
from tests.killing import content, start_script, wait_for
from tests.test_tokenizer import StandInDecoder, StandInEncoder, save_script
from tests.training import small_recipe

HEIGHT, WIDTH = 32, 48


def pipeline(shards, latents, tokenizer, *, workers=1, **settings):
    settings = {"height": HEIGHT, "width": WIDTH, "device": "cpu", **settings}
    return Pipeline.model_validate(
        {
            "shards": {"path": str(shards), "workers": workers},
            "latents": {"path": str(latents), "tokenizer": str(tokenizer), **settings},
        }
    )


def make_shards(root, raw):
    table = {"source": {"path": str(raw)}, "shards": {"path": str(root / "shards"), "megabytes": 1}}
    shard(Pipeline.model_validate({**table, "actions": {"scale": [3] * 7}}))
    return root / "shards"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The file of an embedded tokenizer, fitted on other pictures."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors"
    frames = torch.from_numpy(moving_frames(8, HEIGHT, WIDTH, seed=77)).permute(0, 3, 1, 2)
    PatchTokenizer.fit(frames).save(path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_bridge, tokenizer):
    """(shards, latents): a few episodes of two cameras, 11 frames of 36x60 pixels."""
    root = tmp_path_factory.mktemp("small")
    raw = tiny_bridge(root / "raw", train=4, frames=11, height=36, width=60, cameras=2)
    shards = make_shards(root, raw)
    write_latents(pipeline(shards, root / "latents", tokenizer))
    return shards, root / "latents"


@pytest.fixture(scope="module")
def grainy(tmp_path_factory, tokenizer):
    """(shards, latents): several shards of one megabyte."""
    root = tmp_path_factory.mktemp("grainy")
    for number in range(14):
        split = "train" if number < 12 else "val"
        write_episode(root / "raw", split, number, frames=20, height=128, width=160, grain=120)
    shards = make_shards(root, root / "raw")
    assert len(list(shards.glob("train-*.tar"))) >= 3
    write_latents(pipeline(shards, root / "latents", tokenizer))
    return shards, root / "latents"


# What is in a set


def test_keys_splits_and_shards_are_those_of_the_shard_set(grainy, tokenizer):
    shards, latents = map(ShardIndex.read, grainy)
    assert list(shards.splits) == list(latents.splits)
    for split in shards.splits:
        before, now = shards.split(split), latents.split(split)
        assert [(r.key, r.shard, r.frames) for r in before.rows] == [
            (r.key, r.shard, r.frames) for r in now.rows
        ]
        assert [s.name for s in before.shards] == [s.name for s in now.shards]
        for i, row in enumerate(now.rows):
            assert list(row.members) == ["latent.npy", "action.npy", "state.npy", "json"]
            for member in ("action.npy", "state.npy", "json"):
                assert now.read(i, member) == before.read(i, member)
            latent = now.read_array(i, "latent.npy")
            assert latent.shape == (row.frames, 16, 8, 12) and latent.dtype == np.float16
    assert sorted(p.name for p in grainy[0].iterdir()) == sorted(
        p.name for p in grainy[1].iterdir()
    )


def test_the_index_says_what_the_latents_are(small, tokenizer):
    shards, latents = map(ShardIndex.read, small)
    for key in ("contract", "statistics", "concerns", "source"):
        assert latents.table[key] == shards.table[key], key
    assert "video" not in latents.table and shards.latents is None
    assert latents.table["latents"] == {
        "tokenizer": "patch",
        "digest": PatchTokenizer.load(tokenizer).digest,
        "shards": shards.digest,
        "camera": 0,
        "height": HEIGHT,
        "width": WIDTH,
        "shape": [16, 8, 12],
        "batch": 8,
        "dtype": "float16",
    }
    assert latents.latents.shape == (16, 8, 12)


def test_latents_can_be_mapped_into_memory_where_they_are(small):
    index = SplitIndex.load(small[1], "train")
    for i, row in enumerate(index.rows):
        offset, size = row.members["latent.npy"]
        wanted = index.read_array(i, "latent.npy")
        begin = offset + size - wanted.nbytes
        assert offset % 512 == 0 and begin % 64 == 0
        mapped = np.memmap(small[1] / row.shard, "<f2", "r", begin, wanted.shape)
        np.testing.assert_array_equal(mapped, wanted)


def batches(shards, *, frames, batch, **window):
    """What a training gets from the shards."""
    recipe = small_recipe(
        *(shards, shards.parent),
        steps=2,
        window={"frames": frames, **window},
        batch=batch,
        model={"max_frames": frames, "max_width": 8},
    )
    return iter(Loader(SplitIndex.load(shards, "train"), recipe))


@pytest.mark.parametrize(("frames", "batch"), [(8, 1), (2, 4)])
def test_they_are_what_training_computes_from_the_videos(small, tokenizer, frames, batch):
    """Eight frames are what is encoded together, so there the bits are equal; elsewhere they may
    differ by what float16 cannot tell."""
    loaded, latents = PatchTokenizer.load(tokenizer), SplitIndex.load(small[1], "train")
    loader = batches(small[0], frames=frames, batch=batch)
    rows = {row.key: i for i, row in enumerate(latents.rows)}
    starts = set()
    for found in islice(loader, 8):
        computed = loaded.encode(found.video).transpose(1, 2).to(torch.float16).numpy()
        for key, start, wanted in zip(found.key, found.start, computed, strict=True):
            starts.add(start)
            stored = latents.read_array(rows[key], "latent.npy")[start : start + frames]
            if frames == 8 and start == 0:
                np.testing.assert_array_equal(stored, wanted)
            else:
                np.testing.assert_allclose(stored, wanted, rtol=2e-3, atol=1e-3)
    assert 0 in starts


def test_another_camera(small, tmp_path, tokenizer):
    write_latents(pipeline(small[0], tmp_path / "one", tokenizer, camera=1))
    first, second = SplitIndex.load(small[1], "val"), SplitIndex.load(tmp_path / "one", "val")
    assert first.rows[0].key == second.rows[0].key
    assert (first.read_array(0, "latent.npy") != second.read_array(0, "latent.npy")).any()
    with pytest.raises(
        DataError, match=r"no episode can be used.*train_0\.2\.mp4: there is only mp4, 1\.mp4"
    ):
        write_latents(pipeline(small[0], tmp_path / "two", tokenizer, camera=2))


def test_from_url_to_url(small, tokenizer):
    for path in small[0].iterdir():
        storage("memory://latents/shards").write(path.name, path.read_bytes())
    write_latents(pipeline("memory://latents/shards", "memory://latents/made", tokenizer))
    made = storage("memory://latents/made")
    assert made.list() == sorted(p.name for p in small[1].iterdir())
    assert all(made.read(p.name) == p.read_bytes() for p in small[1].iterdir())


# Tokenizers


@pytest.fixture
def released(tmp_path):
    """NVIDIA's three files around stand-ins."""
    folder = tmp_path / "cosmos"
    folder.mkdir()
    torch.manual_seed(0)
    save_script(StandInEncoder(torch.randn(16, 3)), folder / "encoder.jit")
    save_script(StandInDecoder(torch.randn(3, 16)), folder / "decoder.jit")
    torch.save((torch.zeros(256), torch.ones(256)), folder / "mean_std.pt")
    return folder


def test_nvidias_tokenizer(small, tmp_path, released):
    write_latents(pipeline(small[0], tmp_path / "l", released, width=64))
    index = ShardIndex.read(tmp_path / "l")
    loaded = load_torchscript(released)
    assert (index.latents.tokenizer, index.latents.digest) == ("cosmos", loaded.digest)
    assert index.latents.shape == (16, 4, 8)
    found = next(b for b in batches(small[0], frames=8, batch=1, width=64) if b.start == (0,))
    split = index.split("train")
    row = next(i for i, row in enumerate(split.rows) if row.key == found.key[0])
    stored = split.read_array(row, "latent.npy")[:8]
    wanted = loaded.encode(found.video)[0].transpose(0, 1).to(torch.float16).numpy()
    np.testing.assert_array_equal(stored, wanted)


def test_a_tokenizer_is_told_by_its_files(tmp_path, tokenizer, released):
    for place in (tokenizer, tokenizer.parent):
        kind, loaded = open_tokenizer(str(place))
        assert kind == "patch" and loaded.digest == PatchTokenizer.load(tokenizer).digest
    assert open_tokenizer("cosmos-tiny")[0] == "patch"
    assert open_tokenizer(str(released))[0] == "cosmos"
    (released / "decoder.jit").unlink()
    for place, says in (
        (released, r"decoder\.jit: no such file"),
        (tmp_path, "holds no tokenizer; name a folder with tokenizer.safetensors"),
        (tmp_path / "gone", "gone: no such tokenizer"),
        ("cosmos-tyni", "cosmos-tyni: no such tokenizer"),
    ):
        with pytest.raises(CheckpointError, match=says):
            open_tokenizer(str(place))


def test_a_folder_of_diffusers_is_told_by_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises((CheckpointError, ConfigError), match="AutoencoderKLCosmos|diffusers"):
        open_tokenizer(str(tmp_path))


def test_pixels_that_the_tokenizer_does_not_take(small, tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="height = 30, width = 48: .* takes multiples of 4"):
        write_latents(pipeline(small[0], tmp_path / "l", tokenizer, height=30))
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize("factor", [1e-6, float("nan")])
def test_numbers_that_float16_does_not_hold(small, tmp_path, tokenizer, factor):
    good = PatchTokenizer.load(tokenizer)
    wild = PatchTokenizer(good.mean, good.components, good.spread * factor)
    wild.save(tmp_path / "wild.safetensors")
    with pytest.raises(DataError, match=r"train-000000\.tar: train_0: .*beyond what float16 holds"):
        write_latents(pipeline(small[0], tmp_path / "l", tmp_path / "wild.safetensors"))
    assert [p.name for p in (tmp_path / "l").iterdir()] == [UNFINISHED]


def test_a_tokenizer_that_changes_on_the_way(small, tmp_path, tokenizer):
    mine = tmp_path / "tokenizer.safetensors"
    shutil.copy(tokenizer, mine)
    settings = pipeline(small[0], tmp_path / "l", mine)
    [job, *_] = make_plan(ShardIndex.read(small[0]), settings.latents).jobs(storage(tmp_path / "l"))
    good = PatchTokenizer.load(mine)
    PatchTokenizer(good.mean, good.components, good.spread * 2).save(mine)
    with pytest.raises(CheckpointError, match="changed since this run began"):
        job.sample(0)


# The same bytes, always


def test_any_number_of_workers_and_threads_writes_the_same_bytes(grainy, tmp_path, tokenizer):
    before = torch.get_num_threads()
    try:
        for workers in (1, 3):
            torch.set_num_threads(workers + 1)
            write_latents(pipeline(grainy[0], tmp_path / str(workers), tokenizer, workers=workers))
            assert content(tmp_path / str(workers)) == content(grainy[1])
            assert torch.get_num_threads() == workers + 1
    finally:
        torch.set_num_threads(before)


RUN = """
import sys
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import latent_job
from cosmos_wds.prepare.latents import write_latents
if __name__ == "__main__":
    write_latents(Pipeline.model_validate_json(sys.argv[1]))
"""


def start(settings):
    """The same run in a process of its own."""
    return start_script(RUN, settings)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_and_redoes_no_finished_shard(grainy, tmp_path, tokenizer, workers):
    settings = pipeline(grainy[0], tmp_path / "l", tokenizer, workers=workers)
    process = start(settings)
    wait_for(lambda: list((tmp_path / "l").glob("*.tar")) or process.poll() is not None)
    process.kill()
    process.communicate()
    assert not (tmp_path / "l/index.json").exists()
    time.sleep(0.3)  # workers notice and leave
    first = {p.name: p.stat().st_ino for p in (tmp_path / "l").glob("*.tar")}
    summary = write_latents(settings)
    assert first and summary.kept == len(first)
    assert {name: (tmp_path / "l" / name).stat().st_ino for name in first} == first
    assert content(tmp_path / "l") == content(grainy[1])


def test_a_killed_run_with_another_tokenizer_begins_again(grainy, tmp_path, tokenizer):
    """The notes of its shards belong to the first tokenizer."""
    shutil.copytree(grainy[1], tmp_path / "l")
    good = PatchTokenizer.load(tokenizer)
    PatchTokenizer(good.mean, good.components, good.spread * 2).save(tmp_path / "t.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cosmos_wds.prepare.run.publish", stop)
        (tmp_path / "l/index.json").unlink()
        (tmp_path / "l" / UNFINISHED).mkdir()
        with pytest.raises(KeyboardInterrupt):
            write_latents(pipeline(grainy[0], tmp_path / "l", tokenizer))
    summary = write_latents(pipeline(grainy[0], tmp_path / "l", tmp_path / "t.safetensors"))
    assert summary.kept == 0
    index = SplitIndex.load(tmp_path / "l", "val")
    wanted = SplitIndex.load(grainy[1], "val").read_array(0, "latent.npy") / 2
    np.testing.assert_allclose(index.read_array(0, "latent.npy"), wanted, rtol=2e-3, atol=1e-3)


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_at_once_and_can_be_continued(grainy, tmp_path, tokenizer, workers):
    settings = pipeline(grainy[0], tmp_path / "l", tokenizer, workers=workers)
    process = start(settings)
    wait_for(lambda: list((tmp_path / "l").glob(".*.tmp")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGINT, 130, 1) and "KeyboardInterrupt" in words
    write_latents(settings)
    assert content(tmp_path / "l") == content(grainy[1])


# Episodes and shards that are not as they should be


def damaged(shards, folder, change):
    """A copy of a shard set with the first training video changed where it lies."""
    shutil.copytree(shards, folder)
    row = SplitIndex.load(folder, "train").rows[0]
    offset, size = row.members["mp4"]
    tar = bytearray((folder / row.shard).read_bytes())
    change(tar, offset, size)
    (folder / row.shard).write_bytes(tar)
    return folder


def scribble(tar, offset, size):
    tar[offset : offset + size] = bytes(size)


def test_a_video_that_does_not_decode_is_listed(small, tmp_path, tokenizer):
    shards = damaged(small[0], tmp_path / "s", scribble)
    settings = pipeline(shards, tmp_path / "l", tokenizer)
    with pytest.raises(DataError, match=r"train-000000\.tar: train_0\.mp4: .*does not decode"):
        write_latents(settings, strict=True)
    assert not (tmp_path / "l/index.json").exists()
    summary = write_latents(settings)
    [line] = (tmp_path / "l/rejected.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["episode"], entry["split"]) == ("train-0", "train")
    assert entry["file"] == "train-000000.tar: train_0.mp4"
    assert summary.rejected[0].reason == entry["reason"] and "decode" in entry["reason"]
    rows = SplitIndex.load(tmp_path / "l", "train").rows
    assert [row.key for row in rows] == ["train_1", "train_2", "train_3"]
    table = ShardIndex.read(tmp_path / "l").table
    assert table["statistics"]["actions"] == 30 and table["totals"]["rejected"] == 1


def test_a_damaged_shard_is_an_error_and_nothing_is_left_out(small, tmp_path, tokenizer):
    def move(tar, offset, size):
        del tar[offset - 512 : offset]

    shards = damaged(small[0], tmp_path / "s", move)
    with pytest.raises(DataError, match=r"train-000000\.tar: train_0\.\S+: not at its place"):
        write_latents(pipeline(shards, tmp_path / "l", tokenizer))
    assert not (tmp_path / "l/index.json").exists()


def test_what_is_no_shard_set(small, tmp_path, tokenizer):
    with pytest.raises(DataError, match="gone: no such folder; `cosmos-wds shard` makes"):
        write_latents(pipeline(tmp_path / "gone", tmp_path / "l", tokenizer))
    with pytest.raises(DataError, match="holds latents; name the shards"):
        write_latents(pipeline(small[1], tmp_path / "l", tokenizer))


# Destinations


def test_a_finished_set_is_left_alone(small, tokenizer, capsys):
    before = {p: p.stat().st_mtime_ns for p in small[1].iterdir()}
    summary = write_latents(pipeline(*small, tokenizer, workers=2))
    assert not summary.is_new and "nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in small[1].iterdir()} == before


def test_a_finished_set_of_other_things_is_not_touched(small, tmp_path, tokenizer, tiny_bridge):
    shards, latents = small
    before = content(latents)
    more = make_shards(tmp_path, tiny_bridge(tmp_path / "raw", train=1))
    for settings, says in (
        (pipeline(shards, latents, "cosmos-tiny"), r"digest \(was \w{16}, is \w{16}\)"),
        (pipeline(*small, tokenizer, height=64), r"height \(was 32, is 64\); shape"),
        (pipeline(*small, tokenizer, batch=4), r"batch \(was 8, is 4\)"),
        (pipeline(*small, tokenizer, camera=1), r"camera \(was 0, is 1\)"),
        (pipeline(more, latents, tokenizer), r"shards \(was \w{16}, is \w{16}\)"),
    ):
        with pytest.raises(DataError, match=f"differ in {says}.*Remove the folder"):
            write_latents(settings)
    assert content(latents) == before


def test_shards_and_latents_do_not_take_each_others_place(small, tmp_path, tokenizer):
    shards, latents = small
    before = content(shards), content(latents)
    with pytest.raises(DataError, match=r"what they hold \(videos then, latents now\)"):
        write_latents(pipeline(shards, shards, tokenizer))
    raw = shards.parent / "raw"
    table = {"source": {"path": str(raw)}, "shards": {"path": str(latents), "megabytes": 1}}
    with pytest.raises(DataError, match=r"what they hold \(latents then, videos now\)"):
        shard(Pipeline.model_validate({**table, "actions": {"scale": [3] * 7}}))
    assert (content(shards), content(latents)) == before


def test_two_runs_at_once(small, tmp_path, tokenizer):
    with (
        storage(tmp_path / "l").claimed(UNFINISHED),
        pytest.raises(DataError, match="another run is writing it"),
    ):
        write_latents(pipeline(small[0], tmp_path / "l", tokenizer))


def test_a_full_disk_is_one_line_and_continues(small, tmp_path, tokenizer, monkeypatch):
    settings = pipeline(small[0], tmp_path / "l", tokenizer)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    with monkeypatch.context() as patch:
        patch.setattr("cosmos_wds.data.storage.shutil.disk_usage", lambda path: usage)
        with pytest.raises(DataError, match=r"GB are to be written and 0\.00 GB are free"):
            write_latents(settings)

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_write", full)
        with pytest.raises(DataError, match="No space left on device; nothing finished is lost"):
            write_latents(settings)
    write_latents(settings)
    assert content(tmp_path / "l") == content(small[1])


def test_a_dry_run_knows_the_size_and_writes_nothing(small, tmp_path, tokenizer):
    summary = write_latents(pipeline(small[0], tmp_path / "l", tokenizer), dry_run=True)
    assert not (tmp_path / "l").exists()
    end = 1024  # bytes of a tar's end
    for split, files in ShardIndex.read(small[1]).splits.items():
        assert summary.splits[split]["bytes"] == sum(file.bytes - end for file in files)
        assert summary.splits[split]["frames"] == sum(file.frames for file in files)
    assert "nothing was written" in "\n".join(summary.lines())


# Devices


def test_each_process_takes_a_gpu_of_its_own(small, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = pipeline(small[0], tmp_path / "l", tokenizer, device="auto").latents
    plan = make_plan(ShardIndex.read(small[0]), settings)
    job = plan.jobs(storage(tmp_path / "l"))[0]

    def opened(place, digest, device):
        raise UserError(device)

    monkeypatch.setattr(latent_job, "_opened", opened)
    for number, device in ((0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")):
        monkeypatch.setattr(latent_job, "worker_number", lambda number=number: number)
        with pytest.raises(UserError, match=device):
            job.sample(0)
    settings = pipeline(small[0], tmp_path / "l", tokenizer, device="cpu").latents
    assert make_plan(ShardIndex.read(small[0]), settings).gpus == 0


def numbered(folder, tick):
    """Which process this is; it waits for the other."""
    (folder / str(os.getpid())).touch()
    wait_for(lambda: len(list(folder.iterdir())) == 2)
    return worker_number()


def test_processes_are_numbered(tmp_path):
    jobs = [tmp_path, tmp_path]
    found = run_jobs(numbered, jobs, processes=2, on_progress=lambda count: None)
    assert sorted(number for _, number in found) == [0, 1]
    assert worker_number() == 0


def blocked(_, tick):
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_processes_are_born_deaf_to_ctrl_c_and_this_one_hears_it():
    found = run_jobs(blocked, [0, 1], processes=2, on_progress=lambda count: None)
    assert [is_blocked for _, is_blocked in found] == [True, True]
    assert not blocked(0, None)


def test_a_gpu_that_is_not_there_or_too_small(small, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"device = \"cuda\", but torch sees no GPU"):
        write_latents(pipeline(small[0], tmp_path / "l", tokenizer, device="cuda"))

    def encode(self, video):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(PatchTokenizer, "encode", encode)
    with pytest.raises(UserError, match="train_0: cpu has no memory for 8 frames.*latents.batch"):
        write_latents(pipeline(small[0], tmp_path / "l", tokenizer, device="auto"))


def test_decoding_runs_ahead_of_encoding(small, tmp_path, tokenizer, monkeypatch):
    """While an episode is encoded, the next ones are decoded by other threads."""
    decoded, met = threading.Event(), []
    real = latent_job.decode

    def decode(*words, **more):
        met.append(threading.current_thread())
        if len(met) == 2:
            decoded.set()
        return real(*words, **more)

    def encode(self, video, real=PatchTokenizer.encode):
        assert decoded.wait(30)  # fails where decoding waits for encoding
        return real(self, video)

    monkeypatch.setattr(latent_job, "decode", decode)
    monkeypatch.setattr(PatchTokenizer, "encode", encode)
    write_latents(pipeline(small[0], tmp_path / "l", tokenizer))
    assert threading.current_thread() not in met
    assert content(tmp_path / "l") == content(small[1])


# The command


def test_the_command(small, tmp_path, tokenizer):
    words = ["shard", "--latents", small[0], "latents", "--tokenizer", tokenizer, "--workers", 1]
    words += ["--height", HEIGHT, "--width", WIDTH, "--device", "cpu"]
    done = run(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "latents\n"), done.stderr
    assert "latents: 16x8x12 a frame, patch tokenizer" in done.stderr
    assert content(tmp_path / "latents") == content(small[1])
    again = run(*words, "--set", "latents.batch=4", cwd=tmp_path)
    assert again.returncode == 1 and again.stderr.count("\n") == 1
    assert "differ in batch (was 8, is 4)" in again.stderr
    for extra, says in (
        (
            ["shard", small[0], "x", "--height", 32],
            "--tokenizer, --height, --width, --device: only",
        ),
        (["shard", "--latents", small[0], "x", "--engine", "ray"], "--engine ray: not with"),
        (["shard", "--latents", small[0], "x"], "no such tokenizer; name a folder"),
    ):
        refused = run(*extra, cwd=tmp_path)
        assert refused.returncode == 1 and says in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1
