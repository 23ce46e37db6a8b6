"""Archives over a network that fails in every way: whole and verified, or one clear line.

Sizes are scaled down: blocks of 64 KiB, a place to go on from every 256 KiB.
"""

import gzip
import hashlib
import json
import random
import signal
import sys
import time

import numpy as np
import pytest

from cosmos_wds.errors import DownloadError, UserError
from cosmos_wds.sources import ask, gunzip, parts, work
from cosmos_wds.sources.addresses import find_archive
from cosmos_wds.sources.archive import Wanted, unpack
from cosmos_wds.sources.gunzip import Content, Point
from tests import forked
from tests.archives import STRIP, ordered, range_server, recordings, tar_of
from tests.commands import ROOT
from tests.killing import wait_for
from tests.test_archive import files, names, record

ANNOTATIONS, VIDEOS = recordings(10, size=200_000)
MEMBERS = ordered(ANNOTATIONS, VIDEOS, "walk")
EVERYTHING = ANNOTATIONS | VIDEOS
TARS = {ending: tar_of(MEMBERS, ending) for ending in ("tar", "tar.gz")}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", 1 << 16)
    monkeypatch.setattr(gunzip, "SLICE", 1 << 16)
    monkeypatch.setattr(gunzip, "SPACING", 1 << 18)
    monkeypatch.setattr(gunzip, "SEARCH", 1 << 17)
    monkeypatch.setattr(ask, "PAUSES", (0.0, 0.0, 0.01))
    monkeypatch.setattr(work.os, "sync", lambda: None)  # slow beside other work on this machine


@pytest.fixture
def server():
    with range_server(**{f"a.{ending}": content for ending, content in TARS.items()}) as state:
        yield state


def take(server, dest, ending="tar.gz", splits=(), episodes=0, **known):
    archive = find_archive(f"{server.url}/a.{ending}", f"a.{ending}", **known)
    unpack(archive, dest, Wanted(STRIP, tuple(splits), episodes))


def stop_after(server, count):
    """Break off for good after some bytes."""

    def fault(path, begin, body):
        return body if begin + len(body) <= count else b""

    server.fault = fault


@pytest.mark.parametrize("ending", TARS)
def test_it_comes_in_ranges_and_a_second_call_asks_nobody(server, tmp_path, ending):
    dest, content = tmp_path / "data" / "raw", TARS[ending]
    take(server, dest, ending)
    assert files(dest) == EVERYTHING and names(dest.parent) == ["raw"]
    assert sorted(server.asked) == list(range(0, len(content), 1 << 16))
    assert record(dest)["sha256"] == hashlib.sha256(content).hexdigest()
    how = "its length alone: no checksum is published" if ending == "tar" else "gzip's checksum"
    assert record(dest)["checked"] == f"all of the archive, by {how}"


@pytest.mark.parametrize("ending", TARS)
@pytest.mark.parametrize("seed", range(2))
def test_random_cuts_stalls_and_errors_change_nothing(server, tmp_path, ending, seed, monkeypatch):
    monkeypatch.setattr(ask, "TIMEOUT", 0.2)
    dice = random.Random(seed)

    def fault(path, begin, body):
        if len(body) > 1 and dice.random() < 0.3:
            return body[: dice.randrange(1, len(body))]
        if dice.random() < 0.01:
            time.sleep(0.3)
        return body

    server.fault = fault
    take(server, tmp_path / "raw", ending)
    assert files(tmp_path / "raw") == EVERYTHING


@pytest.mark.parametrize("ending", TARS)
@pytest.mark.parametrize("splits", [(), ("val",), ("train", "val")])
def test_a_broken_download_goes_on_behind_its_last_point(server, tmp_path, ending, splits):
    dest, size, dice = tmp_path / "raw", len(TARS[ending]), random.Random(0)
    reached = 0
    while reached < size:
        reached += dice.randrange(300_000, 900_000)
        stop_after(server, reached if reached < size else 2 * size)
        server.asked.clear()
        if reached < size:
            with pytest.raises(DownloadError, match="broke off; what came is kept, run again"):
                take(server, dest, ending, splits)
            assert not dest.exists(), "nothing is published before it was verified"
        else:
            take(server, dest, ending, splits)
    # One that the run before had sent may be noted late.
    again = [at for at in server.asked if at <= size - 1_800_000]
    assert len(again) < 4, "the start is not asked for again"
    kept = {n: c for n, c in EVERYTHING.items() if not splits or not n.endswith("npy")}
    if splits == ("val",):
        kept = {n: c for n, c in kept.items() if "/val/" in n}
    assert files(dest) == kept and names(tmp_path) == ["raw"]


def test_a_wrong_byte_is_noticed_at_the_end_though_runs_were_broken_off(server, tmp_path):
    dest, wrong = tmp_path / "raw", 700_000

    def fault(path, begin, body):
        if begin > 2_000_000:
            return b""
        at = wrong - begin
        return body if not 0 <= at < len(body) else body[:at] + b"?" + body[at + 1 :]

    # In what gzip stored as it is, so that nothing but the checksum tells.
    content = tar_of(MEMBERS, "tar")
    server.files["/a.tar.gz"] = gzip.compress(content, 0)
    server.fault = fault
    with pytest.raises(DownloadError, match="broke off"):
        take(server, dest)
    server.fault = lambda path, begin, body: body
    with pytest.raises(DownloadError, match="damaged or not a tar archive: its checksum is wrong"):
        take(server, dest)
    assert names(tmp_path) == [], "no byte of it can be trusted"
    take(server, dest)
    assert files(dest) == EVERYTHING


def test_files_behind_the_last_point_are_unpacked_again(server, tmp_path):
    """What the stopped run wrote there is not covered by the checksum that is carried on."""
    dest = tmp_path / "raw"
    stop_after(server, 2_000_000)
    with pytest.raises(DownloadError):
        take(server, dest)
    coming = tmp_path / ".raw.coming"
    taken = [json.loads(line) for line in (coming / "taken.txt").read_text().splitlines()]
    covered = json.loads((coming / "point.json").read_text())["taken"]
    assert 0 < covered < len(taken)
    for name in taken[covered:]:
        (coming / "files" / name).write_bytes(b"half")
    stop_after(server, 1 << 30)
    take(server, dest)
    assert files(dest) == EVERYTHING


@pytest.mark.parametrize("ending", TARS)
def test_a_file_that_changes_at_the_server(server, tmp_path, ending):
    dest = tmp_path / "raw"
    other = tar_of(ordered(*recordings(10, size=200_000, seed=1), "walk"), ending)

    def fault(path, begin, body):
        if begin > 1_500_000:
            server.files[path] = other
        return body

    server.fault = fault
    with pytest.raises(DownloadError, match="changed at the server meanwhile"):
        take(server, dest, ending)
    assert not dest.exists()
    take(server, dest, ending)
    assert files(dest)["videos/val/3/state.npy"] != EVERYTHING["videos/val/3/state.npy"]


def test_servers_that_lie_about_ranges_or_have_none(server, tmp_path):
    server.lie = 7
    with pytest.raises(DownloadError, match="the server sent 'bytes 7-"):
        take(server, tmp_path / "raw")
    server.lie, server.has_ranges = 0, False
    cuts = iter([500_000, 1_500_000, 2_500_000])
    server.fault = lambda path, begin, body: body[: next(cuts, None)]
    take(server, tmp_path / "raw")
    assert files(tmp_path / "raw") == EVERYTHING


def test_what_the_network_says_is_one_line(server, tmp_path, monkeypatch):
    for address, told in {
        f"{server.url}/b.tar": "answers 404 Not Found$",
        "http://127.0.0.1:9/a.tar": "Connection refused",
        "ftp://x/a.tar": "not an http",
    }.items():
        with pytest.raises(UserError, match=told):
            find_archive(address, "a.tar")
    with pytest.raises(DownloadError, match="bytes there, 12 expected"):
        take(server, tmp_path / "raw", expected_bytes=12)
    with pytest.raises(DownloadError, match="checksum .* instead of 000"):
        take(server, tmp_path / "raw", sha256="0" * 64)
    monkeypatch.setattr(ask, "RESERVE", 1 << 60)
    with pytest.raises(DownloadError, match="GB are to come and .* GB are free; make room"):
        take(server, tmp_path / "raw")
    assert names(tmp_path) == []


def test_a_killed_process_goes_on_where_it_was(server, tmp_path):
    slow = lambda path, begin, body: time.sleep(0.05) or body  # noqa: E731
    server.fault = slow
    code = (
        "import sys; from tests import test_archive_stream as t; from pathlib import Path\n"
        "t.parts.BLOCK = t.gunzip.SLICE = 1 << 16; t.gunzip.SPACING = 1 << 18\n"
        "t.parts.CONNECTIONS = 2\n"
        "a = t.find_archive(sys.argv[1], 'a.tar.gz')\n"
        "t.unpack(a, Path(sys.argv[2]), t.Wanted(t.STRIP))"
    )
    words = [sys.executable, "-c", code, f"{server.url}/a.tar.gz", tmp_path / "raw"]
    for number in range(2):
        process = forked.Process(words, cwd=ROOT)
        point = tmp_path / ".raw.coming" / "point.json"
        before = point.read_text() if point.exists() else ""
        wait_for(lambda p=point, b=before: p.exists() and p.read_text() != b, process)
        process.send_signal(signal.SIGKILL if number else signal.SIGINT)
        process.wait()
        process.end()
    server.fault = lambda path, begin, body: body
    server.asked.clear()
    take(server, tmp_path / "raw")
    assert min(server.asked) > 1 << 18
    assert files(tmp_path / "raw") == EVERYTHING


def stuff(kind, size, rng):
    """Content that compresses in another way each: blocks with codes, stored ones, both, runs."""
    if kind == "text":
        return json.dumps(rng.random(size // 19).round(6).tolist()).encode()
    if kind == "noise":
        return rng.bytes(size)
    if kind == "runs":
        return bytes(np.repeat(rng.integers(0, 3, size // 500, np.uint8), 500))
    return b"".join(stuff("text", 20_000, rng) + rng.bytes(30_000) for _ in range(size // 50_000))


@pytest.mark.parametrize("kind", ["text", "noise", "mixed", "runs"])
@pytest.mark.parametrize("level", [1, 6])
def test_gzip_can_be_entered_at_every_point(kind, level):
    rng = np.random.default_rng(0)
    content = stuff(kind, 2_000_000, rng)
    packed = gzip.compress(content, level) + gzip.compress(b"more" * 9, level) + bytes(100)
    whole = content + b"more" * 9

    def chunks(begin):
        return (packed[at : at + 50_000] for at in range(begin, len(packed), 50_000))

    reading, points = Content(chunks(0), Point()), {}
    read = b""
    for piece in reading:
        read += piece
        points.update({point.compressed: point for point in reading.points})
    assert read == whole
    assert len(points) >= min(2, len(packed) // (1 << 19))
    for point in points.values():
        assert b"".join(Content(chunks(point.compressed), point)) == whole[point.content :]
