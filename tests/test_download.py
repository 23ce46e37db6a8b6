"""Downloads against servers on this machine that behave badly; archives that try to escape."""

import hashlib
import http.server
import io
import tarfile
from collections import namedtuple

import numpy as np
import pytest

from cosmos_wds.errors import DownloadError
from cosmos_wds.sources import http as fetching
from cosmos_wds.sources.http import download, extract
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
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0, 0.01))
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
    with pytest.raises(DownloadError, match=r"connection broke off; 1\.0 MB are kept, run again"):
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
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
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
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: Usage(0, 0, 1000))
    with pytest.raises(DownloadError, match=r"0\.0 GB are to come and 0\.0 GB are free"):
        download(server.file, tmp_path / "e")


def test_two_downloads_into_one_file_do_not_mix(server, tmp_path):
    with (
        fetching._locked(tmp_path / "a.part"),
        pytest.raises(DownloadError, match="another download is writing it"),
    ):
        download(server.file, tmp_path / "a")


# Archives


def archive(path, members, mode="w:gz"):
    """A tar of (name, content or TarInfo changes) pairs."""
    with tarfile.open(path, mode) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                for key, value in what.items():
                    setattr(info, key, value)
                tar.addfile(info)
    return path


GOOD = [
    ("top/bridge/annotation/train/0.json", b"{}"),
    ("top/bridge/videos/a.mp4", b"video"),
    ("top/other/readme", b"hello"),
]


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
def test_an_archive_is_unpacked_once(tmp_path, ending):
    mode = "w:" + ending.partition(".")[2]
    path = archive(tmp_path / f"a.{ending}", GOOD, mode)
    dest = tmp_path / "deep" / "raw"
    for _ in range(2):
        assert extract(path, dest, strip="top/bridge") == dest
        files = sorted(p.relative_to(dest).as_posix() for p in dest.rglob("*") if p.is_file())
        assert files == [".extracted.json", "annotation/train/0.json", "videos/a.mp4"]
        (path.with_name("x")).touch()
    assert names(dest.parent) == ["raw"]
    (dest / "videos/a.mp4").write_bytes(b"mine")
    extract(path, dest, strip="top/bridge")
    assert (dest / "videos/a.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("top/bridge/../../evil", b"x"),
        ("top/bridge/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("top/bridge/link", {"type": tarfile.SYMTYPE, "linkname": "../../../evil"}),
        ("top/bridge/link", {"type": tarfile.LNKTYPE, "linkname": "../evil"}),
        ("top/bridge/link", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("top/bridge/pipe", {"type": tarfile.FIFOTYPE}),
        ("top/bridge/dev", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
    ],
)
@pytest.mark.parametrize("strip", ["", "top/bridge"])
def test_nothing_escapes(tmp_path, name, what, strip):
    box = tmp_path / "box"
    box.mkdir()
    path = archive(box / "a.tar.gz", [*GOOD, (name, what)])
    with pytest.raises(DownloadError, match="unsafe member, nothing was unpacked"):
        extract(path, box / "raw", strip=strip)
    assert names(box) == ["a.tar.gz"] and names(tmp_path) == ["box"]


def test_members_beside_the_stripped_folder_do_not_matter(tmp_path):
    path = archive(tmp_path / "a.tar", [("../evil", b"x"), ("/evil", b"x"), *GOOD], "w")
    with pytest.raises(DownloadError, match="unsafe member"):
        extract(path, tmp_path / "raw")
    extract(path, tmp_path / "raw", strip="top/bridge")
    assert names(tmp_path) == ["a.tar", "raw"]


def test_links_inside_stay(tmp_path):
    links = [
        ("top/bridge/same", {"type": tarfile.LNKTYPE, "linkname": "top/bridge/videos/a.mp4"}),
        ("top/bridge/way", {"type": tarfile.SYMTYPE, "linkname": "videos/a.mp4"}),
    ]
    path = archive(tmp_path / "a.tar", [*GOOD, *links], "w")
    for strip, inside in (("", "top/bridge/"), ("top/bridge", "")):
        root = extract(path, tmp_path / f"raw{len(strip)}", strip=strip)
        assert (root / f"{inside}same").read_bytes() == b"video"
        assert (root / f"{inside}way").read_bytes() == b"video"


def test_a_killed_extraction_is_done_again(tmp_path):
    path = archive(tmp_path / "a.tar.gz", GOOD)
    (tmp_path / ".raw.extracting/annotation").mkdir(parents=True)
    (tmp_path / ".raw.extracting/half").touch()
    extract(path, tmp_path / "raw", strip="top/bridge")
    assert not (tmp_path / "raw/half").exists()
    assert names(tmp_path) == ["a.tar.gz", "raw"]


def test_folders_with_other_files_are_left_alone(tmp_path):
    path = archive(tmp_path / "a.tar.gz", GOOD)
    (tmp_path / "raw").mkdir()
    extract(path, tmp_path / "raw")  # an empty folder is welcome
    with pytest.raises(DownloadError, match="was unpacked from a.tar.gz"):
        extract(path, tmp_path / "raw", strip="top/bridge")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(DownloadError, match="not unpacked by this tool"):
        extract(path, tmp_path / "mine")


def test_damaged_archives_leave_nothing(tmp_path):
    big = [("a", np.random.default_rng(0).bytes(100_000))]
    whole = archive(tmp_path / "a.tar.gz", big).read_bytes()
    for content in (b"", b"no archive", whole[:50_000], whole[:100] + b"x" + whole[101:]):
        (tmp_path / "a.tar.gz").write_bytes(content)
        with pytest.raises(DownloadError, match="damaged or not a tar archive"):
            extract(tmp_path / "a.tar.gz", tmp_path / "raw")
        assert names(tmp_path) == ["a.tar.gz"]
    with pytest.raises(DownloadError, match="no such archive"):
        extract(tmp_path / "gone.tar", tmp_path / "raw")
    archive(tmp_path / "a.tar.gz", GOOD)
    with pytest.raises(DownloadError, match="no files below bridge; it holds top/bridge"):
        extract(tmp_path / "a.tar.gz", tmp_path / "raw", strip="bridge")
