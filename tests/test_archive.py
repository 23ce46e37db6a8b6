"""Archives: those that try to escape, damaged ones, subsets in any order, their records."""

import contextlib
import gzip
import json
import tarfile
import zlib

import numpy as np
import pytest

from cosmos_wds.errors import ConfigError, DownloadError
from cosmos_wds.sources.addresses import find_archive
from cosmos_wds.sources.archive import Wanted, is_there, unpack
from cosmos_wds.sources.work import Work
from tests.archives import STRIP, ordered, recordings, tar_of
from tests.conftest import write_episode

GOOD = [
    ("top/bridge/annotation/train/0.json", b"{}"),
    ("top/bridge/videos/a.mp4", b"video"),
    ("top/other/readme", b"hello"),
]


def take(path, dest, strip="", splits=(), episodes=0):
    """Unpack from a file on this disk; the archive as it was read."""
    archive = find_archive(str(path), path.name)
    unpack(archive, dest, Wanted(strip, tuple(splits), episodes))
    return archive


def put(path, members, ending="tar.gz"):
    path.write_bytes(tar_of(members, ending))
    return path


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".extracted.json"
    }


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def record(dest):
    return json.loads((dest / ".extracted.json").read_text())


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_an_archive_is_unpacked_once(tmp_path, ending):
    path = put(tmp_path / f"a.{ending}", GOOD, ending)
    dest = tmp_path / "deep" / "raw"
    take(path, dest, "top/bridge")
    assert files(dest) == {"annotation/train/0.json": b"{}", "videos/a.mp4": b"video"}
    assert names(dest.parent) == ["raw"]
    assert record(dest)["checked"].startswith("all of the archive")
    assert record(dest)["sha256"] and record(dest)["crc32"]
    (dest / "videos/a.mp4").write_bytes(b"mine")
    take(path, dest, "top/bridge")
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
    path = put(box / "a.tar.gz", [*GOOD, (name, what)])
    with pytest.raises(DownloadError, match="unsafe member, nothing unpacked"):
        take(path, box / "raw", strip)
    assert names(box) == ["a.tar.gz"] and names(tmp_path) == ["box"]


def test_members_beside_the_stripped_folder_do_not_matter(tmp_path):
    path = put(tmp_path / "a.tar", [("../evil", b"x"), ("/evil", b"x"), *GOOD], "tar")
    with pytest.raises(DownloadError, match="unsafe member"):
        take(path, tmp_path / "raw")
    take(path, tmp_path / "raw", "top/bridge")
    assert names(tmp_path) == ["a.tar", "raw"]


def test_links_inside_stay(tmp_path):
    links = [
        ("top/bridge/same", {"type": tarfile.LNKTYPE, "linkname": "top/bridge/videos/a.mp4"}),
        ("top/bridge/way", {"type": tarfile.SYMTYPE, "linkname": "videos/a.mp4"}),
    ]
    path = put(tmp_path / "a.tar", [*GOOD, *links], "tar")
    for strip, inside in (("", "top/bridge/"), ("top/bridge", "")):
        root = tmp_path / f"raw{len(strip)}"
        take(path, root, strip)
        assert (root / f"{inside}same").read_bytes() == b"video"
        assert (root / f"{inside}way").read_bytes() == b"video"


def test_folders_with_other_files_are_left_alone(tmp_path):
    path = put(tmp_path / "a.tar.gz", GOOD)
    (tmp_path / "raw").mkdir()
    take(path, tmp_path / "raw")  # an empty folder is welcome
    with pytest.raises(DownloadError, match="was unpacked from a.tar.gz"):
        take(path, tmp_path / "raw", "top/bridge")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(DownloadError, match="not unpacked by this tool"):
        take(path, tmp_path / "mine")


def test_damaged_archives_leave_nothing(tmp_path):
    path = tmp_path / "a.tar.gz"
    whole = tar_of([("a", np.random.default_rng(0).bytes(100_000))])
    bare = tar_of([("a", b"a"), ("b", b""), ("c", b"c")], "tar")
    broken = [b"no archive", whole[:50_000], whole[:100] + b"x" + whole[101:], whole[:-1] + b"x"]
    broken += [bare[:1024] + b"x" + bare[1025:], bare[:2000], bare[:2048], bare[:-1] + b"x"]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(DownloadError, match="damaged or not a tar archive"):
            take(path, tmp_path / "raw")
        assert names(tmp_path) == ["a.tar.gz"]
    with pytest.raises(ConfigError, match="not an http"):
        take(tmp_path / "gone.tar", tmp_path / "raw")
    put(path, GOOD)
    with pytest.raises(DownloadError, match="no files below bridge; it holds top/bridge"):
        take(path, tmp_path / "raw", "bridge")


def test_any_single_wrong_byte_is_noticed(tmp_path):
    path, good = tmp_path / "a.tar.gz", tar_of(GOOD)
    dest = tmp_path / "raw"
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :]
        with contextlib.suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(bad) == gzip.decompress(good):
                continue  # gzip's time and system, or another way to write the same
        path.write_bytes(bad)
        with pytest.raises(DownloadError):
            take(path, dest)
        assert not dest.exists()


@pytest.mark.parametrize("order", ["walk", "annotations first", "videos first", "turns", "random"])
@pytest.mark.parametrize("cameras", [1, 2])
def test_a_subset_is_of_whole_episodes_whatever_the_order(tmp_path, order, cameras):
    annotations, videos = recordings(6, cameras=cameras)
    path = put(tmp_path / "a.tar.gz", ordered(annotations, videos, order))
    dest = tmp_path / "raw"
    for count in (2, 5, 6, 0):
        take(path, dest, STRIP, ["val"], count)
        found = files(dest)
        kept = sorted(name for name in found if name.startswith("annotation/"))
        assert len(kept) == (count or 6)
        assert all(name.startswith("annotation/val/") for name in kept)
        wanted = {e["video_path"] for name in kept for e in json.loads(found[name])["videos"]}
        assert found.keys() == {*kept, *wanted}, "whole episodes, and nothing else"
        assert all(found[name] == (annotations | videos)[name] for name in found)
        assert record(dest)["subset"] == {"val": {"episodes": count or 6, "all": not count}}
    assert is_there(dest, path.name, Wanted(STRIP, ("val",), 1000))
    take(path, dest, STRIP)
    assert files(dest) == annotations | videos
    assert "subset" not in record(dest) and names(tmp_path) == ["a.tar.gz", "raw"]


@pytest.mark.parametrize(
    ("order", "splits", "episodes", "share"),
    [
        ("walk", ["train"], 0, 0.6),
        ("walk", ["train"], 3, 0.35),
        ("annotations first", ["train"], 3, 0.35),
        ("videos first", ["train", "val"], 3, 1),
        ("turns", ["train", "val"], 3, 0.35),
    ],
)
def test_reading_stops_when_all_is_there(tmp_path, order, splits, episodes, share):
    path = put(tmp_path / "a.tar", ordered(*recordings(10, size=300_000), order), "tar")
    archive = take(path, tmp_path / "raw", STRIP, splits, episodes)
    assert archive.position <= share * archive.size + (2 << 20 if share < 1 else 0)
    text = "was not compared" if share < 1 else "all of the archive"
    assert (text in record(tmp_path / "raw")["checked"]) or order == "videos first"


def test_what_ends_early_in_a_walk_may_go_on_elsewhere(tmp_path):
    """Folders' entries first, or episodes in turns: then the end of a folder proves nothing."""
    annotations, videos = recordings(3)
    members = ordered(annotations, videos, "walk")
    members.sort(key=lambda member: isinstance(member[1], bytes))
    for number, each in enumerate((members, ordered(annotations, videos, "turns"))):
        take(put(tmp_path / "a.tar", each, "tar"), tmp_path / f"raw{number}", STRIP, ["train"])
        assert record(tmp_path / f"raw{number}")["subset"]["train"]["episodes"] == 3


def test_damaged_episodes_are_left_out_with_a_word(tmp_path, capfd):
    root = tmp_path / "made"
    for number in range(4):
        write_episode(root, "val", number, frames=4)
    content = {n: c for n, c in files(root).items() if n.startswith(("annotation", "videos"))}
    cut = content["videos/val/0/rgb.mp4"]
    content |= {"videos/val/0/rgb.mp4": cut[:-100], "annotation/val/1.json": b'{"videos": '}
    members = [(name, content[name]) for name in sorted(content)]
    take(put(tmp_path / "a.tar.gz", members), tmp_path / "raw", "", ["val"])
    said = capfd.readouterr().err
    assert "videos/val/0/rgb.mp4: a damaged video" in said
    assert "annotation/val/1.json: not an annotation" in said
    kept = [n for n in files(tmp_path / "raw") if n.startswith("annotation")]
    assert sorted(kept) == ["annotation/val/2.json", "annotation/val/3.json"]


def test_annotations_cannot_name_files_elsewhere(tmp_path):
    text = json.dumps({"videos": [{"video_path": "../../etc/passwd"}]}).encode()
    path = put(tmp_path / "a.tar", [("annotation/val/0.json", text)], "tar")
    with pytest.raises(DownloadError, match="no whole episodes of val"):
        take(path, tmp_path / "raw", "", ["val"])
    assert names(tmp_path) == ["a.tar"]


def test_a_subset_does_not_grow_from_another_archive(tmp_path):
    path = put(tmp_path / "a.tar.gz", ordered(*recordings(3), "walk"))
    take(path, tmp_path / "raw", STRIP, ["val"], 1)
    put(path, ordered(*recordings(4), "walk"))
    with pytest.raises(DownloadError, match="was taken from an archive of"):
        take(path, tmp_path / "raw", STRIP, ["val"], 2)


def test_one_at_a_time(tmp_path):
    path = put(tmp_path / "a.tar.gz", GOOD)
    with (
        Work(tmp_path / "raw").locked(),
        pytest.raises(DownloadError, match="another download is unpacking into it; wait"),
    ):
        take(path, tmp_path / "raw")
    take(path, tmp_path / "raw")


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    path = put(tmp_path / "a.tar.gz", GOOD)

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", full)
        with pytest.raises(DownloadError, match="No space left on device; run again to go on"):
            take(path, tmp_path / "raw")
    assert names(tmp_path) == ["a.tar.gz"]
    take(path, tmp_path / "raw")
