"""Shards: what is in them, that anyone can read them, and that nothing shakes them."""

import gc
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from cosmos_wds.data.actions import ActionContract, relative_actions
from cosmos_wds.data.index import EpisodeRow, ShardIndex, SplitIndex, read_member
from cosmos_wds.data.jobs import UNFINISHED
from cosmos_wds.data.shards import ShardWriter, episode_key
from cosmos_wds.data.storage import storage
from cosmos_wds.data.video import decode
from cosmos_wds.errors import DataError, UserError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
from tests.broken import write_broken, write_odd
from tests.conftest import write_episode
from tests.killing import content, start_script, wait_for


def pipeline(source, shards, *, workers=1, megabytes=1, **actions):
    return Pipeline.model_validate(
        {
            "name": "test",
            "source": {"path": str(source)},
            "shards": {"path": str(shards), "workers": workers, "megabytes": megabytes},
            "actions": actions,
        }
    )


def rejected(folder):
    lines = (Path(folder) / "rejected.jsonl").read_text().splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_bridge):
    """(recordings, shards) of six small episodes."""
    root = tmp_path_factory.mktemp("small")
    tiny_bridge(root / "raw", train=12, cameras=2)
    shard(pipeline(root / "raw", root / "shards"))
    return root / "raw", root / "shards"


@pytest.fixture(scope="module")
def grainy(tmp_path_factory):
    """Recordings that fill several shards of one megabyte, and their shards."""
    root = tmp_path_factory.mktemp("grainy")
    for number in range(18):
        split = "train" if number < 15 else "val"
        write_episode(root / "raw", split, number, frames=20, height=128, width=160, grain=120)
    (root / "raw/annotation/train/3.json").write_text("{")
    shard(pipeline(root / "raw", root / "shards"))
    assert len(list((root / "shards").glob("train-*.tar"))) >= 4
    return root / "raw", root / "shards"


# What is in a set


def test_every_member_holds_what_the_recording_had(small):
    raw, shards = small
    index = SplitIndex.load(shards, "train")
    assert len(index.rows) == 12 and index.lengths.tolist() == [8] * 12
    for number, row in enumerate(index.rows):
        annotation = raw / f"annotation/train/{number}.json"
        table = json.loads(annotation.read_text())
        assert row.key == f"train_{number}" and row.frames == 8
        assert list(row.members) == ["mp4", "1.mp4", "action.npy", "state.npy", "json"]
        for member, name in (("mp4", "rgb.mp4"), ("1.mp4", "rgb1.mp4")):
            original = (raw / f"videos/train/{number}" / name).read_bytes()
            assert index.read(number, member) == original
        state = np.array(table["state"])
        found = index.read_array(number, "state.npy")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, state.astype(np.float32))
        action = index.read_array(number, "action.npy")
        assert action.dtype == np.float32 and action.shape == (7, 7)
        np.testing.assert_array_equal(action, relative_actions(state).astype(np.float32))
        about = index.read_json(number)
        assert about["id"] == f"train-{number}" and about["text"] == f"move block {number}"
        assert (about["frames"], about["height"], about["width"]) == (8, 32, 48)
        assert about["cameras"] == [0, 1] and about["fps"] == about["container_fps"] == 5.0
        assert about["source_file"] == f"annotation/train/{number}.json"
        assert about["source_sha256"] == hashlib.sha256(annotation.read_bytes()).hexdigest()
        assert about["extra"] == {"task": "robot_trajectory_prediction"}


def test_the_index_says_what_is_there(small):
    _, shards = small
    whole = ShardIndex.read(shards)
    assert list(whole.splits) == ["train", "val"] and whole.contract == ActionContract()
    for split, files in whole.splits.items():
        index = whole.split(split)
        for file in files:
            tar = (shards / file.name).read_bytes()
            assert file.bytes == len(tar) and file.sha256 == hashlib.sha256(tar).hexdigest()
        assert sum(f.frames for f in files) == index.lengths.sum()
        assert sum(f.episodes for f in files) == len(index.rows)
        assert index.shard_numbers.tolist() == [0] * len(index.rows)
        assert index.digest == whole.split_digest(split)
    assert whole.table["totals"] == {
        "episodes": 14,
        "frames": 14 * 8,
        "bytes": sum(path.stat().st_size for path in shards.glob("*.tar")),
        "shards": 2,
        "rejected": 0,
    }
    assert whole.table["tool"].startswith("cosmos-wds ")
    assert sorted(p.name for p in shards.iterdir()) == [
        "index.json",
        "rejected.jsonl",
        "train-000000.tar",
        "train.idx.jsonl",
        "val-000000.tar",
        "val.idx.jsonl",
    ]


def test_statistics_are_those_of_the_training_actions(small):
    _, shards = small
    index = SplitIndex.load(shards, "train")
    actions = np.concatenate([index.read_array(i, "action.npy") for i in range(12)], dtype=float)
    found = ShardIndex.read(shards).table["statistics"]
    assert found["split"] == "train" and found["actions"] == len(actions) == 84
    for name, wanted in {
        "mean": actions.mean(0),
        "std": actions.std(0),
        "min": actions.min(0),
        "max": actions.max(0),
        "q01": np.quantile(actions, 0.01, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0),
    }.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-7)


def test_recorded_commands_when_the_contract_says_so(small, tmp_path):
    raw, _ = small
    shard(pipeline(raw, tmp_path / "s", signal="command"))
    index = SplitIndex.load(tmp_path / "s", "train")
    assert index.contract.signal == "command"
    table = json.loads((raw / "annotation/train/0.json").read_text())
    wanted = np.array(table["action"], np.float32)
    np.testing.assert_array_equal(index.read_array(0, "action.npy"), wanted)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_webdataset_and_tar_read_them(small, tmp_path):
    wds = pytest.importorskip("webdataset")
    raw, shards = small
    samples = list(wds.WebDataset(str(shards / "train-000000.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"train_{i}" for i in range(12)]
    for i, sample in enumerate(samples):
        assert {"mp4", "1.mp4", "action.npy", "state.npy", "json"} <= set(sample)
        assert sample["mp4"] == (raw / f"videos/train/{i}/rgb.mp4").read_bytes()
        assert np.load(io.BytesIO(sample["action.npy"])).shape == (7, 7)
    assert decode(samples[0]["mp4"]).shape == (8, 32, 48, 3)
    gc.collect()
    tar = shards / "train-000000.tar"
    done = subprocess.run(["tar", "-xvf", tar, "-C", tmp_path], capture_output=True, check=True)
    assert not done.stderr and len(done.stdout.splitlines()) == 60
    assert (tmp_path / "train_3.mp4").read_bytes() == samples[3]["mp4"]
    with tarfile.open(tar) as file:
        for member in file:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.mode == 0o644


def test_hugging_face_datasets_reads_them(small, tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    raw, shards = small
    files = {"train": str(shards / "train-*.tar"), "validation": str(shards / "val-*.tar")}
    found = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path), streaming=True
    )
    for column in ("mp4", "1.mp4"):
        found = found.cast_column(column, datasets.Video(decode=False))
    samples = list(found)
    assert [s["__key__"] for s in samples] == [f"train_{i}" for i in range(12)]
    for i, sample in enumerate(samples):
        assert sample["mp4"]["bytes"] == (raw / f"videos/train/{i}/rgb.mp4").read_bytes()
        assert sample["1.mp4"]["bytes"] == (raw / f"videos/train/{i}/rgb1.mp4").read_bytes()
        assert sample["json"]["id"] == f"train-{i}"
        assert np.shape(sample["action.npy"]) == (7, 7) == np.shape(sample["state.npy"][1:])


# Keys and headers


def test_keys_are_unique_plain_and_short():
    names = ["0", "a.b", "a_b", "a-b", "a b", "A", "ä", "a=b", "手" * 40, "x" * 300]
    names += ["x" * 299 + "y", "手" * 39 + "足"]
    keys = {episode_key(s, n) for s in ("train", "a_b", "a") for n in names}
    assert len(keys) == 3 * len(names)
    assert all(len(key) <= 80 for key in keys)
    assert all(set(key) <= set(map(chr, range(33, 127))) - set("./") for key in keys)
    assert episode_key("train", "12") == "train_12"


def test_headers_are_those_of_tarfile():
    for key, name, size in (("train_0", "mp4", 0), ("k" * 80, "11.mp4", 70_000), ("a", "json", 1)):
        file = io.BytesIO()
        writer = ShardWriter(file)
        assert writer.add(key, {name: b"x" * size}) == {name: (512, size)}
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size, info.mode = size, 0o644
        assert file.getvalue()[:512] == info.tobuf(tarfile.USTAR_FORMAT)
        assert writer.bytes == len(file.getvalue()) and writer.bytes % 512 == 0


def test_a_member_that_fits_no_tar_is_an_error():
    writer = ShardWriter(io.BytesIO())
    with pytest.raises(DataError, match="does not fit a tar"):
        writer.add("k" * 90, {"action.npy" * 3: b""})


# Broken and odd episodes


@pytest.mark.parametrize("workers", [1, 2])
def test_the_broken_are_listed_and_the_odd_are_kept(tmp_path, workers):
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    broken, odd = write_broken(raw), write_odd(raw)
    summary = shard(pipeline(raw, shards, workers=workers))
    found = rejected(shards)
    assert set(found) == set(broken)
    for file, reason in broken.items():
        assert reason.search(found[file]["reason"]), found[file]
        assert found[file]["split"] == "train" and found[file]["episode"]
        assert file not in found[file]["reason"]
    assert {entry.file for entry in summary.rejected} == set(broken)
    present = {}
    for split in ("train", "val"):
        index = SplitIndex.load(shards, split)
        for i, row in enumerate(index.rows):
            about = index.read_json(i)
            present[about["source_file"]] = about["id"]
            longer = about["source_file"] == "annotation/train/long-mp4.json"
            assert decode(index.read(i, "mp4")).shape[0] == row.frames + longer
            assert len(index.read_array(i, "state.npy")) == row.frames
    assert present.pop("annotation/train/twin1.json") == "same"
    assert present == odd
    lines = "\n".join(summary.lines())
    assert f"{len(broken)} rejected in all" in lines and "5 more" not in lines
    assert summary.splits["train"]["episodes"] == len(odd)


def test_strict_stops_at_the_first(tmp_path, small):
    raw = tmp_path / "raw"
    write_episode(raw, "train", 0)
    for name, reason in (("1", "json: not JSON"), ("2", "rgb.mp4: empty video")):
        path = write_episode(raw, "train", name)
        victim = path if name == "1" else raw / f"videos/train/{name}/rgb.mp4"
        whole = victim.read_bytes()
        victim.write_bytes(b"")
        with pytest.raises(DataError, match=f"annotation/train/{name}.json: .*{reason}|{reason}"):
            shard(pipeline(raw, tmp_path / "shards"), strict=True)
        assert not (tmp_path / "shards/index.json").exists()
        victim.write_bytes(whole)
    shard(pipeline(raw, tmp_path / "shards"), strict=True)
    assert len(SplitIndex.load(tmp_path / "shards", "train").rows) == 3


def test_shards_without_a_good_episode_leave_no_gap(tmp_path, grainy):
    raw = tmp_path / "raw"
    shutil.copytree(grainy[0], raw)
    before = SplitIndex.load(grainy[1], "train")
    second = [row for row in before.rows if row.shard == "train-000001.tar"]
    for row in second:
        video = raw / f"videos/train/{row.key.removeprefix('train_')}/rgb.mp4"
        damaged = bytearray(video.read_bytes())
        damaged[40:4000] = bytes(3960)
        video.write_bytes(damaged)  # the size stays, so that the shards are cut as before
    shard(pipeline(raw, tmp_path / "shards"))
    index = SplitIndex.load(tmp_path / "shards", "train")
    assert len(rejected(tmp_path / "shards")) == len(second) + 1
    assert len(index.rows) == len(before.rows) - len(second)
    names = [file.name for file in index.shards]
    assert names == [f"train-{i:06d}.tar" for i in range(len(before.shards) - 1)]
    assert sorted(p.name for p in (tmp_path / "shards").glob("train-*.tar")) == names
    for i in range(len(index.rows)):
        assert index.read_json(i)["split"] == "train"


def test_no_good_episode_at_all_is_an_error(tmp_path):
    write_episode(tmp_path / "raw", "train", 0, state=None)
    with pytest.raises(DataError, match=r"no episode can be used.*0\.json: state: missing key"):
        shard(pipeline(tmp_path / "raw", tmp_path / "shards"))
    write_episode(tmp_path / "raw", "train", 0)
    shard(pipeline(tmp_path / "raw", tmp_path / "shards"))
    with pytest.raises(DataError, match="no such folder; run `cosmos-wds download bridge`"):
        shard(pipeline(tmp_path / "gone", tmp_path / "other"))
    (tmp_path / "empty/annotation/train").mkdir(parents=True)
    with pytest.raises(DataError, match="no episodes in train, val, test"):
        shard(pipeline(tmp_path / "empty", tmp_path / "other"))
    assert not (tmp_path / "other").exists()


# The same bytes, always


def test_any_number_of_workers_writes_the_same_bytes(grainy, tmp_path):
    raw, shards = grainy
    for workers in (2, 3):
        shard(pipeline(raw, tmp_path / str(workers), workers=workers))
        assert content(tmp_path / str(workers)) == content(shards)


def test_a_copy_of_the_recordings_gives_the_same_bytes(small, tmp_path):
    raw, shards = small
    shutil.copytree(raw, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    shard(pipeline(tmp_path / "elsewhere", tmp_path / "shards"))
    assert content(tmp_path / "shards") == content(shards)


RUN = """
import sys
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
shard(Pipeline.model_validate_json(sys.argv[1]))
"""


def start(settings):
    """The same run in a process of its own."""
    return start_script(RUN, settings)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_killed_run_goes_on_and_redoes_no_finished_shard(grainy, tmp_path, workers):
    raw, shards = grainy
    settings = pipeline(raw, tmp_path / "s", workers=workers)
    process = start(settings)
    wait_for(lambda: list((tmp_path / "s").glob("*.tar")) or process.poll() is not None)
    process.kill()
    process.communicate()
    assert not (tmp_path / "s/index.json").exists()
    time.sleep(0.3)  # workers notice and leave
    first = {p.name: p.stat().st_ino for p in (tmp_path / "s").glob("*.tar")}
    summary = shard(settings)
    assert first and summary.kept == len(first)
    assert {name: (tmp_path / "s" / name).stat().st_ino for name in first} == first
    assert content(tmp_path / "s") == content(shards)


@pytest.mark.slow
def test_random_kills_leave_no_trace(grainy, tmp_path):
    """`COSMOS_WDS_KILLS=100 pytest -k random_kills` for the long way."""
    raw, shards = grainy
    rng = random.Random(0)
    settings = pipeline(raw, tmp_path / "s", workers=4)
    for _ in range(int(os.environ.get("COSMOS_WDS_KILLS", "4"))):
        process = start(settings)
        time.sleep(rng.uniform(0.2, 1.2))
        process.kill()
        process.communicate()
        if (tmp_path / "s/index.json").exists() and rng.random() < 0.8:
            shutil.rmtree(tmp_path / "s")
    shard(settings)
    assert content(tmp_path / "s") == content(shards)


def test_ctrl_c_stops_at_once_and_can_be_continued(grainy, tmp_path):
    raw, shards = grainy
    settings = pipeline(raw, tmp_path / "s", workers=4)
    process = start(settings)
    wait_for(lambda: list((tmp_path / "s").glob(".*.tar.*.tmp")) or process.poll())
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGINT, 130, 1) and "KeyboardInterrupt" in words
    assert words.count("Traceback") == 1  # none of a worker's
    assert time.monotonic() - began < 10
    shard(settings)
    assert content(tmp_path / "s") == content(shards)


def test_a_worker_that_dies_is_told_and_nothing_is_lost(grainy, tmp_path, monkeypatch):
    raw, shards = grainy
    settings = pipeline(raw, tmp_path / "s", workers=2)
    monkeypatch.setattr("cosmos_wds.prepare.run.write_shard", die)
    with pytest.raises(UserError, match="a worker process died.*run again to go on"):
        shard(settings)
    monkeypatch.undo()
    shard(settings)
    assert content(tmp_path / "s") == content(shards)


def die(job, tick):
    os.kill(os.getpid(), signal.SIGKILL)


def test_recordings_mended_between_two_runs(grainy, tmp_path):
    """An unfinished set adapts: shards of changed recordings are made anew, stale ones go."""
    raw = tmp_path / "raw"
    shutil.copytree(grainy[0], raw)
    settings = pipeline(raw, tmp_path / "s")
    shard(settings)
    (tmp_path / "s/index.json").unlink()
    (tmp_path / "s" / UNFINISHED).mkdir()  # as if killed right before the end, notes lost
    (tmp_path / "s/train-000099.tar").touch()
    table = (raw / "annotation/train/4.json").read_text()
    (raw / "annotation/train/3.json").write_text(table.replace("train-4", "train-3"))
    shutil.copy(raw / "videos/train/4/rgb.mp4", raw / "videos/train/3/rgb.mp4")
    summary = shard(settings)
    assert summary.rejected == () and summary.splits["train"]["episodes"] == 15
    shard(pipeline(raw, tmp_path / "t"))
    assert content(tmp_path / "s") == content(tmp_path / "t")


# Destinations


def test_a_finished_set_is_left_alone(small, tmp_path, capsys):
    raw, shards = small
    before = {p: p.stat().st_mtime_ns for p in shards.iterdir()}
    summary = shard(pipeline(raw, shards, workers=2))
    assert not summary.is_new and summary.splits["train"]["episodes"] == 12
    assert str(summary) == str(shards)
    assert {p: p.stat().st_mtime_ns for p in shards.iterdir()} == before
    assert "nothing to do" in capsys.readouterr().err


def test_a_finished_set_of_other_things_is_not_touched(small, tmp_path):
    raw, shards = small
    before = content(shards)
    for settings, says in (
        (pipeline(raw, shards, megabytes=2), r"shards\.megabytes \(was 1, is 2\)"),
        (pipeline(raw, shards, fps=3), r"actions\.fps: 5\.0 here, 3\.0 there"),
    ):
        with pytest.raises(DataError, match=f"{says}.*Remove the folder.*or give another"):
            shard(settings)
    shutil.copytree(raw, tmp_path / "raw")
    write_episode(tmp_path / "raw", "train", 99)
    with pytest.raises(DataError, match=r"the recordings \(14 then, 15 now, or changed\)"):
        shard(pipeline(tmp_path / "raw", shards))
    assert content(shards) == before


def test_two_runs_at_once(small, tmp_path):
    from cosmos_wds.prepare.run import _claimed

    with (
        _claimed(storage(tmp_path / "s")),
        pytest.raises(DataError, match="another run is writing it"),
    ):
        shard(pipeline(small[0], tmp_path / "s"))


def test_destinations_that_cannot_be(small, tmp_path):
    raw, _ = small
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/s: cannot be written: Not a directory"):
        shard(pipeline(raw, tmp_path / "file" / "s"))
    with pytest.raises(DataError, match=r"cannot be written"):
        shard(pipeline(raw, "/proc/cosmos-wds"))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/mine.tar").touch()
    with pytest.raises(DataError, match="holds tar files of something else"):
        shard(pipeline(raw, tmp_path / "tars"))
    assert [p.name for p in (tmp_path / "tars").iterdir()] == ["mine.tar"]


def test_a_read_only_destination(small, tmp_path, monkeypatch):
    def refuse(self, **settings):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(
        "cosmos_wds.data.storage.Path.mkdir", refuse
    )  # root may write everywhere else
    with pytest.raises(DataError, match="/s: cannot be written: Read-only file system"):
        shard(pipeline(small[0], tmp_path / "s"))


def test_a_full_disk_is_one_line_and_continues(small, tmp_path, monkeypatch):
    raw, shards = small
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    with monkeypatch.context() as patch:
        patch.setattr("cosmos_wds.data.storage.shutil.disk_usage", lambda path: usage)
        with pytest.raises(DataError, match=r"GB are to be written and 0\.00 GB are free"):
            shard(pipeline(raw, tmp_path / "s"))

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_write", full)
        with pytest.raises(DataError, match="No space left on device; nothing finished is lost"):
            shard(pipeline(raw, tmp_path / "s"))
    shard(pipeline(raw, tmp_path / "s"))
    assert content(tmp_path / "s") == content(shards)


# Reading


def test_what_is_not_there_is_said(small, tmp_path):
    _, shards = small
    with pytest.raises(DataError, match="gone: no such folder; `cosmos-wds shard` makes"):
        ShardIndex.read(tmp_path / "gone")
    with pytest.raises(DataError, match="has no index.json: unfinished"):
        ShardIndex.read(tmp_path)
    with pytest.raises(DataError, match="no split 'test'; there is train, val"):
        SplitIndex.load(shards, "test")
    with pytest.raises(DataError, match=r"train_0: no latent.npy; it has mp4, 1.mp4"):
        SplitIndex.load(shards, "train").read(0, "latent.npy")


def test_damaged_sets_are_noticed(small, tmp_path):
    shards = tmp_path / "s"
    shutil.copytree(small[1], shards)
    index = SplitIndex.load(shards, "train")
    tar, whole = shards / "train-000000.tar", (shards / "train-000000.tar").read_bytes()
    tar.write_bytes(whole[:-5000])
    with pytest.raises(DataError, match=r"train-000000\.tar: train_11\.json: .*cut off"):
        index.read(11, "json")
    tar.write_bytes(whole[512:])
    with pytest.raises(DataError, match=r"train_5\.mp4: not at its place"):
        index.read(5, "mp4")
    tar.unlink()
    with pytest.raises(
        DataError,
        match=r"train-000000\.tar: cannot be read: No such file or directory \(for train_5\.mp4\)",
    ):
        index.read(5, "mp4")
    (shards / "train.idx.jsonl").write_text("")
    with pytest.raises(DataError, match="is not what index.json says"):
        SplitIndex.load(shards, "train")
    for broken in ("", "{}", "[]", '{"format": 1}'):
        (shards / "index.json").write_text(broken)
        with pytest.raises(DataError, match="not an index of shards"):
            ShardIndex.read(shards)
    (shards / "index.json").write_text('{"format": 9}')
    with pytest.raises(DataError, match="format 9; this version reads format 1"):
        ShardIndex.read(shards)


def test_25_thousand_episodes_load_in_a_second(tmp_path, small):
    table = json.loads((small[1] / "index.json").read_text())
    members = {
        n: (i * 10**5, 9999) for i, n in enumerate(("mp4", "action.npy", "state.npy", "json"))
    }
    rows = [
        EpisodeRow(f"train_{i}", f"train-{i // 200:06d}.tar", 35, members) for i in range(25_000)
    ]
    lines = "".join(row.to_line() + "\n" for row in rows)
    (tmp_path / "train.idx.jsonl").write_text(lines)
    shards = [
        {"name": f"train-{i:06d}.tar", "bytes": 1, "sha256": "", "episodes": 200, "frames": 7000}
        for i in range(125)
    ]
    table["splits"] = {
        "train": {"index_sha256": hashlib.sha256(lines.encode()).hexdigest(), "shards": shards}
    }
    (tmp_path / "index.json").write_text(json.dumps(table))
    began = time.process_time()
    index = SplitIndex.load(tmp_path, "train")
    assert index.lengths.sum() == 25_000 * 35 and index.shard_numbers[-1] == 124
    assert time.process_time() - began < 1
    with pytest.raises(DataError, match="cannot be read"):
        read_member(storage(tmp_path), index.rows[-1], "mp4")
