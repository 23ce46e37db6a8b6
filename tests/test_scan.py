"""Shards without an index: found by their heads, once, and read as with it."""

import shutil

import pytest

from cosmos_wds.data import scan
from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.jobs import UNFINISHED
from cosmos_wds.data.loader import open_loader
from cosmos_wds.data.shards import array_bytes
from cosmos_wds.data.storage import storage
from cosmos_wds.errors import DataError
from tests.test_loader import recipe_of, recordings, reference, shards, take  # noqa: F401


@pytest.fixture
def bare(shards, tmp_path):  # noqa: F811
    """The shards without their index."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for path in shards.glob("*.tar"):
        shutil.copy(path, folder)
    return folder


def open_bare(folder, **changes):
    recipe = recipe_of(workers=1)
    data = {"shards": str(folder), "cache": str(folder.parent / "cache"), **changes}
    return open_loader(recipe.model_copy(update={"data": recipe.data.model_copy(update=data)}))


def test_what_is_read_is_what_the_index_would_give(bare, shards, reference, capfd):  # noqa: F811
    with open_bare(bare) as loader:
        assert take(loader, 14) == reference[:14]
    index, found = SplitIndex.load(shards, "train"), loader.sets.parts[0]
    assert [row.to_line() for row in found.rows] == [row.to_line() for row in index.rows]
    assert found.contract.digest == index.contract.digest
    told = capfd.readouterr().err
    assert "no index.json: 10 episodes found in 5 tars" in told
    assert "no index.json says what the actions mean: taken as Bridge's, 5 frames a second" in told
    assert sorted(path.suffix for path in bare.iterdir()) == [".tar"] * 6


def test_elsewhere_too(bare, bucket, reference):  # noqa: F811
    far = storage(f"{bucket}/bare")
    for path in bare.iterdir():
        far.write(path.name, path.read_bytes())
    with open_bare(bare, shards=f"{bucket}/bare") as loader:
        assert take(loader, 3) == reference[:3]


def test_a_set_is_scanned_once_and_again_when_a_tar_changed(bare, monkeypatch, capfd):
    digest = open_bare(bare).sets.digest
    with monkeypatch.context() as patch:
        patch.setattr(scan, "find_rows", None)
        assert open_bare(bare).sets.digest == digest
        assert open_bare(bare, split="train").sets.digest == digest
    (bare / "train-000004.tar").unlink()
    assert open_bare(bare).sets.digest != digest


def test_a_position_of_one_scan_is_good_for_another_one(bare):
    with open_bare(bare) as loader:
        take(loader, 3)
        state = loader.state_dict()
    shutil.rmtree(bare.parent / "cache")
    with open_bare(bare) as loader:
        loader.load_state_dict(state)
        assert loader.step == 3


def test_a_cache_that_cannot_be_written_is_told_and_no_obstacle(bare, capfd):
    (bare.parent / "cache").touch()
    assert open_bare(bare).sets.episodes == 10
    assert "cannot be written" in capfd.readouterr().err


def test_what_is_not_ours_is_refused_by_name(bare, tmp_path):
    with pytest.raises(DataError, match="no split 'test': no tar has it in its name"):
        open_bare(bare, split="test")
    with open(bare / "train-000002.tar", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(DataError, match=r"train-000002.tar: .*cut off.*`cosmos-wds shard`"):
        open_bare(bare)
    (bare / "train-000002.tar").unlink()
    with pytest.raises(DataError, match="has no index.json: unfinished, or no shards"):
        empty = tmp_path / "empty"
        empty.mkdir()
        open_bare(empty)


def test_a_set_that_is_being_written_is_not_read(bare):
    (bare / UNFINISHED).mkdir()
    with pytest.raises(DataError, match="has no index.json: unfinished"):
        open_bare(bare)


def test_actions_of_other_robots_need_their_index(bare, monkeypatch):
    def other(data, name):
        return original(array_bytes(original(data, name)[:, :5]), name)

    original = scan.load_array
    monkeypatch.setattr(scan, "load_array", other)
    with pytest.raises(DataError, match=r"states \(7, 5\): not 7 numbers a frame .*--index-only"):
        open_bare(bare)
