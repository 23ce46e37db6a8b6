"""Shards from and to an object store, and by a Ray cluster: the same bytes as here."""

import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.storage import storage
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.prepare import shard
from cosmos_wds.prepare.engines import ray_engine
from tests.conftest import write_episode
from tests.killing import content
from tests.test_shards import pipeline, start


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recordings, shards): two broken episodes, several shards."""
    root = tmp_path_factory.mktemp("made")
    for number in range(14):
        split = "train" if number < 11 else "val"
        write_episode(root / "raw", split, number, frames=20, height=128, width=160, grain=120)
    (root / "raw/annotation/train/3.json").write_text("{")
    (root / "raw/videos/train/5/rgb.mp4").write_bytes(b"")
    shard(pipeline(root / "raw", root / "shards"))
    return root / "raw", root / "shards"


def put(folder, url):
    where = storage(url)
    for path in folder.rglob("*"):
        if path.is_file():
            where.write(path.relative_to(folder).as_posix(), path.read_bytes())


def remote_content(url):
    """As tests.test_shards.content, of a prefix."""
    where, found = storage(url), {}
    for name in where.list():
        if where.size(name) >= 0:
            found[name] = hashlib.sha256(where.read(name)).hexdigest()
    return found


def test_from_and_to_an_object_store(made, bucket, capsys):
    raw, shards = made
    put(raw, f"{bucket}/raw")
    settings = pipeline(f"{bucket}/raw", f"{bucket}/shards")
    summary = shard(settings)
    assert remote_content(f"{bucket}/shards") == content(shards)
    assert str(summary) == f"{bucket}/shards" and len(summary.rejected) == 2
    assert not storage(f"{bucket}/shards").has_folder(".unfinished")
    index = SplitIndex.load(f"{bucket}/shards", "val")
    assert index.read(0, "mp4") == (raw / "videos/val/11/rgb.mp4").read_bytes()
    assert not shard(settings).is_new and "nothing to do" in capsys.readouterr().err


def test_to_an_object_store_by_several_processes_and_killed(made, bucket):
    raw, shards = made
    settings = pipeline(raw, f"{bucket}/killed", workers=2)
    process = start(settings)
    where = storage(f"{bucket}/killed")
    end = time.monotonic() + 60
    while not any(name.endswith(".tar") for name in where.list()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert where.size("index.json") < 0
    time.sleep(0.5)  # workers notice and leave
    summary = shard(settings)
    assert summary.kept > 0
    assert remote_content(f"{bucket}/killed") == content(shards)


def test_a_bucket_that_is_not_there_is_one_line(made, bucket):
    raw, _ = made
    with pytest.raises(DataError, match="s3://no-such-bucket"):
        shard(pipeline(raw, "s3://no-such-bucket/shards"))
    with pytest.raises(DataError, match="no such folder; run `cosmos-wds download"):
        shard(pipeline(f"{bucket}/nothing", f"{bucket}/other"))


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two cores on this machine, for as long as the tests take."""
    ray = pytest.importorskip("ray", reason="pip install 'cosmos-wds[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parent.parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_bytes(made, cluster, tmp_path):
    raw, shards = made
    shard(pipeline(raw, tmp_path / "s"), engine=ray_engine())
    assert content(tmp_path / "s") == content(shards)
    with pytest.raises(DataError, match=r"annotation/train/3\.json: not JSON"):
        shard(pipeline(raw, tmp_path / "strict"), engine=ray_engine(), strict=True)


@pytest.mark.slow
def test_a_lost_ray_worker_is_replaced(made, cluster, tmp_path):
    raw, shards = made
    killed = []
    killer = threading.Thread(target=kill_writers, args=(tmp_path / "s", killed))
    killer.start()
    shard(pipeline(raw, tmp_path / "s"), engine=ray_engine())
    killer.join()
    assert killed, "no worker was killed"
    assert content(tmp_path / "s") == content(shards)


def kill_writers(folder, killed, most=2):
    """Kill processes as they write a shard: a temporary file's name holds its writer's pid."""
    end = time.monotonic() + 60
    while time.monotonic() < end and len(killed) < most and not (folder / "index.json").exists():
        for path in folder.glob(".*.tar.*.tmp"):
            pid = int(path.name.split(".")[-2])
            if pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)


def test_ray_that_is_not_installed_or_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'cosmos-wds\[ray\]'"):
        ray_engine()
