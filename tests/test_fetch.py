"""`download` as a whole: weights, archive, generated episodes; the second call does nothing."""

import http.server
import tarfile
import threading
from functools import partial

import pytest

from cosmos_wds.errors import ConfigError, DownloadError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.sources import fetch as fetching
from cosmos_wds.sources import open_source
from cosmos_wds.sources.fetch import fetch

STRIP = "opensource_robotdata/bridge"


@pytest.fixture
def site(tmp_path, tiny_bridge):
    """A server on this machine with a small Bridge archive: its address, and who came."""
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


def bridge(tmp_path, url, *more):
    """The bridge pipeline, pointed at a small server and a temporary folder, without weights."""
    root = tmp_path / "data" / "raw"
    changes = [f"download.url={url}", "download.weights=[]", f"source.path={root}", *more]
    return load_pipeline("bridge", changes)


def test_the_archive_is_fetched_unpacked_and_readable(tmp_path, site):
    url, visits = site
    pipeline = bridge(tmp_path, url)
    root = fetch(pipeline)
    source = open_source(pipeline)
    assert [len(source.list(split)) for split in ("train", "val", "test")] == [2, 1, 0]
    assert source.read(source.list("train")[0]).videos[0].is_relative_to(root)
    assert (root.parent / "bridge.tar.gz").is_file()

    count = len(visits)
    assert fetch(pipeline) == root
    (root.parent / "bridge.tar.gz").unlink()
    assert fetch(pipeline) == root
    assert len(visits) == count, "what is there is not asked for again, also without its archive"


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


def test_a_pipeline_of_one_s_own_recordings_has_nothing_to_fetch(tmp_path):
    with pytest.raises(ConfigError, match="download.url is empty"):
        fetch(bridge(tmp_path, '""'))


def test_an_address_must_end_in_a_file(tmp_path):
    with pytest.raises(ConfigError, match="ends in no file name"):
        fetch(bridge(tmp_path, "http://127.0.0.1:1/"))


def test_demo_episodes_are_made_here(tmp_path):
    sizes = ("generate.train=2", "generate.val=1", "generate.height=32", "generate.width=48")
    pipeline = load_pipeline("demo", [*sizes, f"source.path={tmp_path / 'raw'}"])
    assert fetch(pipeline, workers=1) == tmp_path / "raw"
    source = open_source(pipeline)
    assert [len(source.list(split)) for split in ("train", "val")] == [2, 1]
