"""Shards far away: the same batches as from disk, whatever the store does, within the bound."""

import functools
import http.client
import http.server
import json
import os
import pickle
import random
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import s3fs

from cosmos_wds.data import cache, ranges, remote
from cosmos_wds.data.blocks import CHUNK, SUFFIX
from cosmos_wds.data.cache import CachedStorage, open_shards, prefetch
from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.loader import Loader
from cosmos_wds.data.storage import LocalStorage, storage
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import DataSettings
from cosmos_wds.train.loop import train
from tests.servers import serving
from tests.test_blocks import held
from tests.test_shards_elsewhere import put
from tests.training import same, small_recipe, small_shards

pytestmark = pytest.mark.usefixtures("many_cores")

STEPS = 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """12 episodes in one shard of some 200 kB."""
    return small_shards(tmp_path_factory.mktemp("small"), episodes=12)


@pytest.fixture(scope="module")
def url(shards, bucket):
    put(shards, f"{bucket}/set")
    return f"{bucket}/set"


@pytest.fixture(autouse=True)
def small_blocks_and_short_pauses(monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 8192)
    monkeypatch.setattr(cache, "SMALL_BLOCK", 4096)
    monkeypatch.setattr(cache, "RUN", 40_000)
    monkeypatch.setattr(ranges, "FIRST_PAUSE", 0.01)


def settings(folder, gigabytes=1.0):
    return DataSettings(cache=str(folder), cache_gb=gigabytes)


def batches(where, tmp_path, workers=0):
    """The first batches of a set, as plain values."""
    recipe = small_recipe("-", tmp_path, steps=2, data={"workers": workers})
    found = []
    with Loader(SplitIndex.load(where, "train"), recipe) as loader:
        for batch in loader:
            found.append((batch.key, batch.start, batch.video.numpy(), batch.action.numpy()))
            if len(found) == STEPS:
                return found


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one[:2] == other[:2]
        assert np.array_equal(one[2], other[2]) and np.array_equal(one[3], other[3])


@pytest.fixture(scope="module")
def wanted(shards, tmp_path_factory):
    return batches(shards, tmp_path_factory.mktemp("here"))


def test_a_folder_needs_no_cache(shards, tmp_path):
    assert open_shards(shards, settings(tmp_path / "c")) == LocalStorage(shards)
    prefetch(storage(shards), "train-000000.tar", [(0, 9)])
    assert not (tmp_path / "c").exists()


def test_from_s3_as_from_disk_and_again_from_the_cache(url, wanted, tmp_path):
    first = open_shards(url, settings(tmp_path))
    assert_same(batches(first, tmp_path), wanted)
    size = first.size("train-000000.tar")
    assert 0 < first.traffic.fetched < size + 10 * cache.BLOCK
    again = open_shards(url, settings(tmp_path))
    assert_same(batches(again, tmp_path), wanted)
    assert (
        again.traffic.requests < 10
        and again.traffic.fetched
        < 2 * len(again.read("index.json")) + len(again.read("train.idx.jsonl")) * 2
    )
    assert again.traffic.read == first.traffic.read > 0


def test_without_a_cache_what_is_read_is_fetched(url, wanted, tmp_path):
    where = open_shards(url, settings(tmp_path / "none", 0))
    assert_same(batches(where, tmp_path), wanted)
    assert not (tmp_path / "none").exists()
    assert where.traffic.read <= where.traffic.fetched


def test_workers_share_the_cache(url, wanted, tmp_path):
    where = open_shards(url, settings(tmp_path))
    assert_same(batches(where, tmp_path, workers=2), wanted)
    assert any(name.suffix == SUFFIX for name in (tmp_path / "blocks").iterdir())


def test_any_range_and_what_is_cached_is_not_asked_for(url, shards, tmp_path):
    where, here = open_shards(url, settings(tmp_path)), LocalStorage(shards)
    name, size = "train-000000.tar", here.size("train-000000.tar")
    rng = np.random.default_rng(0)
    for offset, length in [
        (0, 1),
        (size - 5, 99),
        (size, 9),
        (0, size + 9),
        (8191, 2),
        (8192, 8192),
    ]:
        assert where.read_range(name, offset, length) == here.read_range(name, offset, length)
    asked = where.traffic.requests
    for offset in rng.integers(0, size, 30).tolist():
        assert where.read_range(name, offset, 20_000) == here.read_range(name, offset, 20_000)
    assert where.traffic.requests == asked
    copied = pickle.loads(pickle.dumps(where))
    assert copied == where and copied.read_range(name, 3, 4) == here.read_range(name, 3, 4)


def test_prefetched_blocks_are_fetched_once(url, shards, tmp_path):
    where, here = open_shards(url, settings(tmp_path)), LocalStorage(shards)
    name, size = "train-000000.tar", here.size("train-000000.tar")
    prefetch(where, name, [(0, size), (size - 10, 10**6)])
    assert where.read_range(name, 0, size) == here.read(name)
    end = time.monotonic() + 10
    while where._live.threads:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert where.traffic.fetched == size + here.size("index.json")
    where.prefetch("gone.tar", [(0, 9)])  # is told when it is read
    with pytest.raises(DataError, match=r"set/gone\.tar: no such file"):
        where.read_range("gone.tar", 0, 9)


def test_many_threads_read_one_shard(url, shards, tmp_path):
    where, here = open_shards(url, settings(tmp_path)), LocalStorage(shards)
    name, whole, wrong = "train-000000.tar", here.read("train-000000.tar"), []

    def read(seed):
        for offset in np.random.default_rng(seed).integers(0, len(whole), 20).tolist():
            if where.read_range(name, offset, 30_000) != whole[offset : offset + 30_000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not where._live.flying


def test_the_cache_stays_within_its_bound_while_training_reads(url, wanted, tmp_path, monkeypatch):
    limit = 6 * cache.BLOCK
    where = open_shards(url, settings(tmp_path, limit / 1e9))
    original, most = CachedStorage.read_range, []

    def read_range(self, *words):
        content = original(self, *words)
        most.append(held(tmp_path / "blocks"))
        return content

    monkeypatch.setattr(CachedStorage, "read_range", read_range)
    assert_same(batches(where, tmp_path), wanted)
    assert limit // 2 < max(most) <= limit
    assert where._step == cache.SMALL_BLOCK  # the set does not fit


def test_a_damaged_block_is_fetched_again(url, wanted, tmp_path, capsys):
    where = open_shards(url, settings(tmp_path))
    batches(where, tmp_path)
    for path in (tmp_path / "blocks").glob(f"*{SUFFIX}"):
        path.write_bytes(path.read_bytes()[:100] + b"?" + path.read_bytes()[101:])
    assert_same(batches(where, tmp_path), wanted)
    assert "damaged on the disk, fetched again" in capsys.readouterr().err


@pytest.fixture
def replaceable(shards, bucket, tmp_path):
    """A set in the bucket through a cache, a function that replaces the shard, its content."""
    place = f"{bucket}/{tmp_path.name}"
    put(shards, place)
    where = open_shards(place, settings(tmp_path))

    def replace(content):
        storage(place).write("train-000000.tar", content)

    return where, replace, (shards / "train-000000.tar").read_bytes()


def test_a_shard_replaced_under_us_is_named(replaceable, tmp_path):
    where, replace, content = replaceable
    index = SplitIndex.load(where, "train")
    row = index.rows[0]
    assert index.read(0, "mp4")
    replace(content[:-1] + b"!")
    last = len(index.rows) - 1
    with pytest.raises(
        DataError, match=r"train-000000\.tar: was replaced while it .*put back what"
    ):
        index.read(last, "mp4")
    assert index.read(0, "mp4")  # from the cache: of the version that the run began with
    replace(content)
    assert index.read(last, "mp4") and row.shard == "train-000000.tar"
    where.remove("train-000000.tar")
    (tmp_path / "blocks").rename(tmp_path / "emptied")
    with pytest.raises(DataError, match=r"train-000000\.tar: no such file"):
        index.read(3, "mp4")


def test_a_shard_of_another_size_than_the_index_says(replaceable):
    where, replace, content = replaceable
    replace(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"train-000000\.tar: \d+ bytes, and index\.json says \d+"):
        SplitIndex.load(where, "train").read(0, "mp4")


def test_a_new_version_is_not_read_from_the_old_ones_blocks(replaceable, tmp_path):
    where, replace, content = replaceable
    assert where.read_range("train-000000.tar", 0, 9) == content[:9]
    replace(b"other" + content[5:])
    now = open_shards(str(where), settings(tmp_path))
    assert now.read_range("train-000000.tar", 0, 9) == b"other" + content[5:9]


def test_a_set_made_anew_on_a_store_that_tells_no_versions(replaceable, tmp_path, monkeypatch):
    """The checksums in index.json then tell the old blocks from the new shard."""
    monkeypatch.setattr(ranges, "VERSIONS", ())
    where, replace, content = replaceable
    assert where.read_range("train-000000.tar", 0, 9) == content[:9]
    replace(b"other" + content[5:])
    index = json.loads(where.read("index.json"))
    index["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    where.write("index.json", json.dumps(index).encode())
    now = open_shards(str(where), settings(tmp_path))
    assert now.read_range("train-000000.tar", 0, 9) == b"other" + content[5:9]


def test_stores_without_conditions_are_looked_at_again(replaceable, monkeypatch):
    where, replace, content = replaceable
    monkeypatch.setattr(ranges, "S3", set())  # as gs:// or hf://
    assert where.read_range("train-000000.tar", 0, 9)
    replace(content[:-1] + b"!")
    assert where.read_range("train-000000.tar", 20_000, 9)
    monkeypatch.setattr(ranges, "LOOK_AGAIN_SECONDS", 0.0)
    with pytest.raises(DataError, match="was replaced while it was being read"):
        where.read_range("train-000000.tar", 60_000, 9)


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the store at `state.port`, but for those that it fails or stalls."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state = self.server.state
        with state.lock:
            state.count += 1
            fate = state.fate(state.count)
            state.met[fate] = state.met.get(fate, 0) + 1
        if fate == "broken":
            self.close_connection = True
            return
        if fate == "stall" and state.released.wait(2):
            return
        if fate == "refused":
            self._answer(503, {}, b"")
            return
        there = http.client.HTTPConnection("127.0.0.1", state.port)
        there.request(self.command, self.path, headers=dict(self.headers))
        answer = there.getresponse()
        content = answer.read()
        headers = {
            k: v
            for k, v in answer.getheaders()
            if k.lower() not in ("connection", "server", "date", "transfer-encoding")
        }
        if fate == "cut" and self.command == "GET":
            self._answer(answer.status, headers, content, content[: len(content) // 2])
            self.close_connection = True
            return
        self._answer(answer.status, headers, content)

    do_HEAD = do_GET

    def _answer(self, status, headers, content, sent=None):
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if sent is None else sent)

    def log_message(self, *words):
        pass


@contextmanager
def another_endpoint(patch, url):
    """s3:// leads to `url` for a while."""
    patch.setenv("AWS_ENDPOINT_URL", url)
    forget_file_systems()
    try:
        yield
    finally:
        patch.undo()
        forget_file_systems()


def forget_file_systems():
    s3fs.S3FileSystem.clear_instance_cache()
    remote._system_of.cache_clear()


def every_tenth(fates):
    """Fates of the requests with these last digits."""
    return lambda count: fates.get(count % 10)


def at_random(seed):
    """One request in ten fails, in one way or another, and one in twenty stalls.

    With the seeds below each of that comes within the first two dozen.
    """
    chance = random.Random(seed)
    fates = ["refused", "broken", "cut", "stall", None]
    return lambda count: chance.choices(fates, [4, 3, 3, 5, 85])[0]


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        (every_tenth({3: "refused"}), {"refused"}),
        (every_tenth({3: "broken", 7: "cut"}), {"broken", "cut"}),
        (every_tenth({3: "stall"}), {"stall"}),
        *((at_random(seed), {"refused", "broken", "cut", "stall"}) for seed in (7, 9)),
    ],
)
def test_a_store_that_fails_and_stalls(url, wanted, tmp_path, fate, expected):

    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    patch = pytest.MonkeyPatch()
    patch.setattr(cache, "BLOCK", 4096)
    patch.setattr(ranges, "FIRST_PAUSE", 0.01)
    patch.setattr(ranges, "REQUEST_SECONDS", 0.6)
    state = {"port": port, "fate": fate, "count": 0, "met": {}, "lock": threading.Lock()}
    with serving(Proxy, **state) as proxy, another_endpoint(patch, proxy.url):
        where = open_shards(url, settings(tmp_path))
        assert_same(batches(where, tmp_path, workers=2), wanted)
        assert expected <= set(proxy.met) and proxy.count > 20


def test_a_store_that_does_not_come_back_is_one_line(url, tmp_path, capsys):
    patch = pytest.MonkeyPatch()
    patch.setattr(ranges, "FIRST_PAUSE", 0.001)
    patch.setattr(ranges, "REQUEST_SECONDS", 0.1)  # s3fs has pauses of its own
    state = {
        "port": 0,
        "fate": lambda _: "refused",
        "count": 0,
        "met": {},
        "lock": threading.Lock(),
    }
    with serving(Proxy, **state) as proxy, another_endpoint(patch, proxy.url):
        where = open_shards(url, settings(tmp_path))
        with pytest.raises(
            DataError, match=r"index\.json: cannot be read: asked 7 times, no answer in 0.1 s;"
        ):
            SplitIndex.load(where, "train")
    assert "failed 3 times, trying on" in capsys.readouterr().err


class Files(http.server.SimpleHTTPRequestHandler):
    """A web server: no listing, ranges as `state.ranges` says, conditions honoured."""

    def send_head(self):
        self.server.state.requests.append((self.command, self.path))
        path = self.translate_path(self.path)
        if self.path.endswith("/") or not path.endswith((".tar", "json", "jsonl")):
            return self.send_error(404)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return self.send_error(404)
        tag = f'"{hash(content)}"'
        if self.headers.get("If-Match", tag) != tag:
            return self.send_error(412)
        asked = self.headers.get("Range") if self.server.state.ranges else None
        first, last = map(int, asked[6:].split("-")) if asked else (0, len(content) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", tag)
        part = content[first : last + 1]
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)
        return None

    def log_message(self, *words):
        pass


@contextmanager
def web(folder, **state):
    handler = functools.partial(Files, directory=str(folder))
    with serving(handler, requests=[], **{"ranges": True, **state}) as server:
        yield server


def test_from_a_web_server_as_from_disk(shards, wanted, tmp_path):
    with web(shards) as server:
        assert_same(batches(open_shards(server.url, settings(tmp_path)), tmp_path), wanted)
        with pytest.raises(DataError, match=r"gone\.tar: no such file"):
            open_shards(server.url, settings(tmp_path)).read_range("gone.tar", 0, 9)
        asked = len(server.requests)
        with pytest.raises(DataError, match="nothing: no such folder; `cosmos-wds shard` makes"):
            SplitIndex.load(open_shards(f"{server.url}/nothing", settings(tmp_path)), "train")
        assert len(server.requests) - asked < 6  # what is refused is not asked for again


def test_a_file_replaced_on_a_web_server(shards, tmp_path):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with web(tmp_path) as server:
        index = SplitIndex.load(open_shards(server.url, settings(tmp_path / "c")), "train")
        assert index.read(0, "mp4")
        shard = tmp_path / "train-000000.tar"
        shard.write_bytes(shard.read_bytes()[:-1] + b"!")
        with pytest.raises(DataError, match=r"train-000000\.tar: was replaced while .*ETag"):
            index.read(len(index.rows) - 1, "mp4")


def test_a_web_server_without_ranges_is_refused(shards, tmp_path):
    with web(shards, ranges=False) as server:
        index = SplitIndex.load(open_shards(server.url, settings(tmp_path)), "train")
        with pytest.raises(DataError, match="sends whole files where parts are asked for"):
            index.read(0, "mp4")


def test_blocks_are_whole_chunks():
    """Or a part could not be checked without its neighbours."""
    assert 2**20 % CHUNK == 0


def test_training_reads_a_url_as_a_folder(url, shards, tmp_path):
    far = {"cache": str(tmp_path / "cache")}
    for place, output, data in ((shards, "here", {}), (url, "far", far)):
        train(small_recipe(place, tmp_path / output, steps=2, data=data))
    here, there = (next((tmp_path / name).rglob("recipe.toml")).parent for name in ("here", "far"))
    same(here, there, step=2)
    assert list((tmp_path / "cache" / "blocks").glob(f"*{SUFFIX}"))
