"""Places of files: a folder and an object store behave alike, and refuse in one line."""

import os
import pickle

import pytest

from cosmos_wds.data.storage import LocalStorage, storage
from cosmos_wds.errors import ConfigError, DataError


@pytest.fixture(params=["folder", "s3"])
def where(request, tmp_path):
    if request.param == "folder":
        return storage(tmp_path / "root")
    return storage(request.getfixturevalue("bucket") + f"/{tmp_path.name}")


def test_files_come_and_go(where):
    assert where.list() == [] and where.size("a") == -1 and not where.has_folder()
    where.write("a/b.txt", b"0123456789")
    with where.writing("c.bin") as file:
        file.write(b"x" * 3_000_000)
    assert where.list() == ["a", "c.bin"] and where.list("a") == ["b.txt"]
    assert where.has_folder() and where.has_folder("a") and not where.has_folder("z")
    assert where.size("c.bin") == 3_000_000 and where.size("a") == -1
    assert where.read("a/b.txt") == b"0123456789"
    assert where.read_range("a/b.txt", 3, 4) == b"3456"
    assert where.read_range("a/b.txt", 8, 10) == b"89"
    where.move("a/b.txt", "b.txt")
    assert where.size("a/b.txt") == -1 and where.read("b.txt") == b"0123456789"
    where.write("b.txt", b"new")
    assert where.read("b.txt") == b"new"
    where.remove("gone")
    where.write("d/e/f", b"")
    where.remove("d")
    assert where.list() == ["b.txt", "c.bin"] or where.list() == ["a", "b.txt", "c.bin"]
    assert pickle.loads(pickle.dumps(where)).read("b.txt") == b"new"


def test_what_fails_leaves_nothing(where):
    with pytest.raises(ZeroDivisionError), where.writing("a.bin") as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert where.list() == [] and where.size("a.bin") == -1
    with pytest.raises(DataError, match=r"gone\.bin: (cannot be read: No such file|no such file)"):
        where.read("gone.bin")


def test_a_folder_is_held_against_a_second_run(tmp_path):
    where = LocalStorage(tmp_path)
    (tmp_path / ".old.tar.1.tmp").touch()
    with where.claimed(".work"):
        assert not (tmp_path / ".old.tar.1.tmp").exists()
        with (
            pytest.raises(DataError, match="another run is writing it"),
            where.claimed(".work"),
        ):
            pass
    with where.claimed(".work"):
        pass


def test_links_are_followed_to_their_end(tmp_path):
    where = LocalStorage(tmp_path / "root")
    where.write("videos/a.mp4", b"a")
    (tmp_path / "out.mp4").touch()
    (tmp_path / "root/videos/out.mp4").symlink_to(tmp_path / "out.mp4")
    (tmp_path / "root/videos/in.mp4").symlink_to("a.mp4")
    assert where.is_inside("videos/a.mp4") and where.is_inside("videos/in.mp4")
    assert not where.is_inside("videos/out.mp4")
    (tmp_path / "root/out.mp4").symlink_to(tmp_path / "out.mp4")
    assert not where.is_inside("out.mp4")


def test_addresses_that_cannot_be(bucket, tmp_path):
    with pytest.raises(ConfigError, match="nonsense://: no such kind of address"):
        storage("nonsense://a/b")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x: (cannot be read|no such file)"):
        storage("s3://no-such-bucket").read("x")
    assert storage(f"file://{tmp_path}") == LocalStorage(tmp_path)
    assert storage("s3://bucket/folder/") == storage("s3://bucket/folder")
    assert os.fspath(tmp_path) == str(storage(tmp_path))
