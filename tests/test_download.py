"""Downloads of single files against servers on this machine that behave badly."""

import hashlib
import http.server
from collections import namedtuple

import numpy as np
import pytest

from cosmos_wds.errors import DownloadError
from cosmos_wds.sources import ask as asking
from cosmos_wds.sources import http as fetching
from cosmos_wds.sources.http import download
from tests.servers import serving

Usage = namedtuple("Usage", "total used free")
CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content` by ranges; `server.faults` are taken one by one, a request each."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state = self.server.state
        state.ranges.append(self.headers.get("Range"))
        fault = state.faults.pop(0) if state.faults else ""
        content, begin = state.content, 0
        if fault.startswith("status "):
            return self.reply(int(fault.split()[1]), {}, b"no")
        given = self.headers.get("If-Range")
        is_range = self.headers.get("Range") and given in (None, state.etag)
        if is_range and fault != "no ranges":
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                return self.reply(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            begin += 7 if fault == "lie" else 0
        headers = {"ETag": state.etag} if state.etag else {}
        if is_range and fault != "no ranges":
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body = content[begin:]
        headers["Content-Length"] = str(len(body))
        if fault.startswith("cut "):
            body = body[: int(fault.split()[1])]
            self.close_connection = True
        if fault == "stall":
            state.released.wait(5)
        self.reply(206 if is_range and fault != "no ranges" else 200, headers, body)

    def reply(self, status, headers, body):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(asking, "PAUSES", (0.0, 0.0, 0.01))
    with serving(Handler, content=CONTENT, faults=[], ranges=[], etag='"one"') as state:
        state.file = f"{state.url}/data.tar"
        yield state


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_fetched_recorded_and_then_left_alone(server, tmp_path):
    dest = tmp_path / "new" / "data.tar"
    assert download(server.file, dest, expected_bytes=len(CONTENT)) == dest
    assert dest.read_bytes() == CONTENT
    assert (tmp_path / "new/data.tar.sha256").read_text() == f"{SHA}  data.tar\n"
    assert names(dest.parent) == ["data.tar", "data.tar.sha256"]
    download(server.file, dest, sha256=SHA.upper())
    assert server.ranges == [None]


def test_a_cut_connection_is_continued_where_it_broke(server, tmp_path):
    server.faults = ["cut 1000000", "cut 500000", "status 503"]
    download(server.file, tmp_path / "a", sha256=SHA)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges[:2] == [None, "bytes=1000000-"]
    assert server.ranges[2:] == ["bytes=1500000-", "bytes=1500000-"]


def test_a_later_run_goes_on_with_the_part(server, tmp_path):
    server.faults = ["cut 1000000", *["cut 0"] * 9]
    with pytest.raises(DownloadError, match=r"connection broke off; what came is kept, run again"):
        download(server.file, tmp_path / "a", sha256=SHA)
    assert names(tmp_path) == ["a.part", "a.part.tag"]
    server.faults, server.ranges = [], []
    download(server.file, tmp_path / "a", sha256=SHA)
    assert server.ranges == ["bytes=1000000-"]
    assert names(tmp_path) == ["a", "a.sha256"]


def test_ctrl_c_keeps_what_came(server, tmp_path, monkeypatch):
    def interrupted(fetch, response):
        fetch.file.write(response.read(1_000_000))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(server.file, tmp_path / "a")
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:1_000_000]
    download(server.file, tmp_path / "a", sha256=SHA)
    assert server.ranges[-1] == "bytes=1000000-"


def test_all_of_it_had_come_when_the_last_run_stopped(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT)
    download(server.file, tmp_path / "a", sha256=SHA)
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("etag", ['"two"', ""])
def test_a_file_that_changed_at_the_server_starts_over(server, tmp_path, etag):
    server.faults = ["cut 1000000", *["cut 0"] * 9]
    with pytest.raises(DownloadError):
        download(server.file, tmp_path / "a")
    server.content, server.etag, server.faults = CONTENT[::-1] + b"more", etag, []
    download(server.file, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1] + b"more"


@pytest.mark.parametrize("fault", ["lie", "no ranges"])
def test_servers_that_lie_about_ranges_or_have_none(server, tmp_path, fault):
    server.faults = ["cut 1000000", fault]
    download(server.file, tmp_path / "a", sha256=SHA)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_that_stays_broken_ends_it(server, tmp_path):
    server.faults = ["cut 1000000", *["status 500"] * 20]
    with pytest.raises(DownloadError, match="the server answers 500"):
        download(server.file, tmp_path / "a")
    assert len(server.ranges) == 5


def test_a_stalled_server_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "TIMEOUT", 0.2)
    server.faults = ["cut 1000000", "stall"]
    download(server.file, tmp_path / "a", sha256=SHA)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_byte_never_gets_the_final_name(server, tmp_path):
    with pytest.raises(DownloadError, match=f"checksum {SHA} instead of {'0' * 64}"):
        download(server.file, tmp_path / "a", sha256="0" * 64)
    assert names(tmp_path) == []


def test_sizes_and_checksums_of_files_that_are_there(server, tmp_path):
    dest = tmp_path / "a"
    dest.write_bytes(CONTENT)  # brought by hand
    download(server.file, dest, sha256=SHA)
    assert (tmp_path / "a.sha256").read_text().startswith(SHA)
    with pytest.raises(DownloadError, match="3000000 bytes, 5 expected; move it away"):
        download(server.file, dest, expected_bytes=5)
    with pytest.raises(DownloadError, match="checksum .* expected; move it away"):
        download(server.file, dest, sha256="0" * 64)
    assert server.ranges == []


def test_an_unexpected_size_is_told_before_anything_is_written(server, tmp_path):
    with pytest.raises(DownloadError, match="3000000 bytes at the server, 12 expected"):
        download(server.file, tmp_path / "a", expected_bytes=12)


def test_what_the_network_says_is_one_line(server, tmp_path, monkeypatch):
    server.faults = ["status 404"]
    with pytest.raises(DownloadError, match=r"data\.tar: the server answers 404 Not Found$"):
        download(server.file, tmp_path / "a")
    with pytest.raises(DownloadError, match="Connection refused"):
        download("http://127.0.0.1:9/x", tmp_path / "b")
    with pytest.raises(DownloadError, match="not an http"):
        download("", tmp_path / "c")
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be written"):
        download(server.file, tmp_path / "file" / "d")
    monkeypatch.setattr(asking.shutil, "disk_usage", lambda path: Usage(0, 0, 1000))
    with pytest.raises(DownloadError, match=r"0\.0 GB are to come and 0\.0 GB are free"):
        download(server.file, tmp_path / "e")


def test_two_downloads_into_one_file_do_not_mix(server, tmp_path):
    with (
        fetching._locked(tmp_path / "a.part"),
        pytest.raises(DownloadError, match="another download is writing it"),
    ):
        download(server.file, tmp_path / "a")
