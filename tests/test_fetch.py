"""`download` as a whole: weights, archive, generated episodes; the second call does nothing."""

import http.server
import json
import tarfile
import threading
from functools import partial

import pytest

from cosmos_wds.errors import ConfigError, DownloadError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.sources import ask, gunzip, open_source, parts
from cosmos_wds.sources import fetch as fetching
from cosmos_wds.sources.fetch import fetch, fetch_named
from tests.archives import STRIP, hub_files, in_parts, ordered, range_server, recordings, tar_of
from tests.test_archive import files, names, record

REPOSITORY = "fangqi/IRASim"
ANNOTATIONS, VIDEOS = recordings(6, size=100_000)
NAME, EVALUATION = "bridge_train_data.tar.gz", "bridge_evaluation_data.tar.gz"
CONTENT = tar_of(ordered(ANNOTATIONS, VIDEOS, "walk"))


@pytest.fixture
def site(tmp_path, tiny_bridge):
    """A plain server without ranges with a small Bridge archive: its address, and who came."""
    served, visits = tmp_path / "served", []
    raw = tiny_bridge(tmp_path / "made", train=2, val=1)
    served.mkdir()
    with tarfile.open(served / "bridge.tar.gz", "w:gz") as tar:
        tar.add(raw, arcname=STRIP)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            visits.append(self.path)

    handler = partial(Handler, directory=served)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/bridge.tar.gz?version=1", visits
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(monkeypatch):
    """A hub with both of Bridge's archives, in parts."""
    shards = in_parts(NAME, CONTENT, 200_000)
    shards |= in_parts(EVALUATION, tar_of([(f"{STRIP}/evaluation_videos/0.mp4", b"video")]), 100)
    with range_server(**hub_files(REPOSITORY, shards)) as state:
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.setattr(parts, "BLOCK", 1 << 16)
        monkeypatch.setattr(gunzip, "SPACING", 1 << 16)
        monkeypatch.setattr(gunzip, "SEARCH", 1 << 16)
        monkeypatch.setattr(gunzip, "SLICE", 1 << 15)
        monkeypatch.setattr(ask, "PAUSES", (0.0, 0.0))
        yield state


def bridge(tmp_path, url, *more):
    """The bridge pipeline, pointed at a small server and a temporary folder, without weights."""
    root = tmp_path / "data" / "raw"
    changes = [f"download.url={url}", "download.weights=[]", f"source.path={root}", *more]
    return load_pipeline("bridge", changes)


def test_the_archive_is_unpacked_while_it_comes_and_readable(tmp_path, site):
    url, visits = site
    pipeline = bridge(tmp_path, url)
    root = fetch(pipeline)
    source = open_source(pipeline)
    assert [len(source.list(split)) for split in ("train", "val", "test")] == [2, 1, 0]
    assert names(root.parent) == ["raw"], "no copy of the archive is kept"

    count = len(visits)
    assert fetch(pipeline) == root
    assert len(visits) == count, "what is there is not asked for again"


def test_the_folder_may_be_a_link_to_another_disk(tmp_path, site):
    (tmp_path / "data").mkdir()
    (tmp_path / "large" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw").symlink_to(tmp_path / "large" / "raw")
    root = fetch(bridge(tmp_path, site[0]))
    assert names(tmp_path / "large") == ["raw"] and root.is_symlink()
    assert (tmp_path / "large/raw/annotation/val/0.json").is_file()


def test_an_archive_on_this_disk_is_unpacked_too(tmp_path, site):
    path = tmp_path / "served" / "bridge.tar.gz"
    root = fetch(bridge(tmp_path, path, 'download.splits=["val"]'))
    assert [p.name for p in (root / "annotation").rglob("*.json")] == ["0.json"]
    assert path.exists()


def test_the_mirror_in_parts_is_joined_and_each_part_compared(tmp_path, hub):
    root = fetch(bridge(tmp_path, "http://127.0.0.1:9/x.tar.gz", "download.prefer=mirror"))
    assert files(root) == ANNOTATIONS | VIDEOS
    said = record(root)
    assert [name.rpartition(".")[2] for name in said["published"]][:2] == ["sfpart_aa", "sfpart_ab"]
    assert said["checked"] == "all of the archive, by published checksums"
    assert len(said["published"]) == -(-len(CONTENT) // 200_000)


def test_the_mirror_serves_when_the_address_does_not_answer(tmp_path, hub, capfd):
    root = fetch(bridge(tmp_path, "http://127.0.0.1:9/bridge_train_data.tar.gz"))
    assert files(root) == ANNOTATIONS | VIDEOS
    assert "Connection refused" in capfd.readouterr().err


def test_a_download_that_was_begun_goes_on_where_it_came_from(tmp_path, hub):
    """Though the first address answers again: it may have another version."""
    hub.files["/x.tar.gz"] = CONTENT
    hub.fault = lambda path, begin, body: b"" if "_ad" in path else body
    with pytest.raises(DownloadError, match="sfpart_ad: the connection broke off"):
        fetch(bridge(tmp_path, "http://127.0.0.1:9/x.tar.gz"))
    hub.fault = lambda path, begin, body: body
    root = fetch(bridge(tmp_path, f"{hub.url}/x.tar.gz"))
    assert record(root)["from"].startswith("hf://")
    assert files(root) == ANNOTATIONS | VIDEOS


def test_a_damaged_part_is_fetched_again_and_those_before_it_are_not(tmp_path, hub):
    pipeline = bridge(tmp_path, '""', "download.prefer=mirror", "download.url=x")
    path = next(p for p in hub.files if p.endswith("sfpart_ad"))
    good = hub.files[path]
    hub.files[path] = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    with pytest.raises(DownloadError, match=r"sfpart_ad: checksum .* instead of .*; run again"):
        fetch(pipeline)
    assert names(tmp_path / "data") == [".raw.coming"]
    hub.files[path], hub.paths = good, []
    hub.fault = lambda path, begin, body: hub.paths.append(path) or body
    root = fetch(pipeline)
    assert not any(path.endswith("sfpart_aa") for path in hub.paths)
    assert files(root) == ANNOTATIONS | VIDEOS and names(tmp_path / "data") == ["raw"]


def test_episodes_of_splits_and_more_of_them_later(tmp_path, hub):
    changes = ["download.url=x", "download.prefer=mirror", "download.weights=[]"]
    changes += [f"source.path={tmp_path / 'raw'}", "download.episodes=2"]
    root = fetch_named("bridge", changes)
    kept = sorted(name for name in files(root) if name.startswith("annotation"))
    assert kept == [f"annotation/{s}/{n}.json" for s in ("train", "val") for n in (0, 1)]
    count = len(hub.asked)
    fetch_named("bridge", [*changes, 'download.splits=["val"]', "download.episodes=1"])
    assert len(hub.asked) == count
    fetch_named("bridge", [*changes, 'download.splits=["val"]', "download.episodes=5"])
    found = {split: len([*(root / "annotation" / split).iterdir()]) for split in ("train", "val")}
    assert found == {"train": 2, "val": 5}
    assert {s: v["episodes"] for s, v in record(root)["subset"].items() if v["episodes"]} == found


def test_the_evaluation_archive_lies_beside_the_recordings(tmp_path, hub):
    more = ["download.prefer=mirror", "download.archive=evaluation"]
    root = fetch(bridge(tmp_path, f"http://127.0.0.1:9/{NAME}", *more))
    assert root == tmp_path / "data" / "evaluation"
    assert files(root) == {"evaluation_videos/0.mp4": b"video"}


def test_a_repository_without_the_archive(tmp_path, hub):
    hub.files[f"/api/datasets/{REPOSITORY}"] = json.dumps({"id": REPOSITORY, "sha": "1"}).encode()
    with pytest.raises(DownloadError, match="datasets/fangqi/IRASim: has no bridge_train"):
        fetch(bridge(tmp_path, "http://127.0.0.1:9/y.tar"))


def test_weights_come_first_so_that_a_licence_is_told_before_the_long_download(
    tmp_path, site, monkeypatch
):
    url, visits = site
    asked = []

    def fetch_weights(repository, folder):
        asked.append((repository, folder))
        raise DownloadError("accept the licence")

    monkeypatch.setattr(fetching, "fetch_weights", fetch_weights)
    pipeline = bridge(tmp_path, url, 'download.weights=["a/b"]', f"download.weights_to={tmp_path}")
    with pytest.raises(DownloadError, match="accept the licence"):
        fetch(pipeline)
    assert asked == [("a/b", tmp_path)] and not visits


def test_what_cannot_be_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="download.url is empty"):
        fetch(bridge(tmp_path, '""'))
    with pytest.raises(ConfigError, match="ends in no file name"):
        fetch(bridge(tmp_path, "http://127.0.0.1:1/"))
    with pytest.raises(ConfigError, match="generated, not chosen"):
        fetch(load_pipeline("demo", ["download.episodes=3"]))
    with pytest.raises(ConfigError, match="weights have no episodes"):
        fetch_named("cosmos-tokenize1-cv8x8x8-720p", ["download.episodes=3"])
    with pytest.raises(ConfigError, match="has no episodes to choose from"):
        bridge(tmp_path, "x", "download.archive=evaluation", "download.episodes=3")


def test_demo_episodes_are_made_here(tmp_path):
    sizes = ("generate.train=2", "generate.val=1", "generate.height=32", "generate.width=48")
    pipeline = load_pipeline("demo", [*sizes, f"source.path={tmp_path / 'raw'}"])
    assert fetch(pipeline, workers=1) == tmp_path / "raw"
    source = open_source(pipeline)
    assert [len(source.list(split)) for split in ("train", "val")] == [2, 1]
