"""`shard --index-only`: the index of tars that have none, as sharding would have written it."""

import json
import shutil

import pytest

from cosmos_wds.data.jobs import UNFINISHED
from cosmos_wds.errors import DataError
from cosmos_wds.inspection.verify import verify
from cosmos_wds.pipeline import ActionSettings, Pipeline, ShardSettings
from cosmos_wds.prepare.index_only import write_index
from tests.test_loader import make_shards, open_loader, recordings, shards, take  # noqa: F401

RESTORED = ("format", "tool", "contract", "statistics", "concerns", "totals", "splits")


def index_of(folder, **actions):
    actions = ActionSettings(**actions)
    return write_index(Pipeline(actions=actions, shards=ShardSettings(path=str(folder))))


def without_index(whole, folder):
    folder.mkdir()
    for path in whole.glob("*.tar"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def bare(shards, tmp_path):  # noqa: F811
    return without_index(shards, tmp_path / "bare")


@pytest.mark.parametrize("actions", [{}, {"accumulate": True}, {"signal": "command"}])
def test_it_is_the_index_that_was_lost(recordings, tmp_path, actions):  # noqa: F811
    name = "-".join(["shards", *actions])
    whole = make_shards(recordings, name=name, **actions)
    bare = without_index(whole, tmp_path / "bare")
    summary = index_of(bare, **actions)
    assert summary.is_new and {*summary.splits} == {"train", "val"}
    for split in ("train", "val"):
        file = f"{split}.idx.jsonl"
        assert (bare / file).read_bytes() == (whole / file).read_bytes()
    have, lost = (json.loads((place / "index.json").read_bytes()) for place in (bare, whole))
    assert {key: have[key] for key in RESTORED} == {key: lost[key] for key in RESTORED}
    assert not verify(str(bare), workers=1).problems


def test_a_run_goes_on_over_it(shards, bare):  # noqa: F811
    index_of(bare)
    with open_loader(shards) as before, open_loader(bare) as after:
        take(before, 5)
        after.load_state_dict(before.state_dict())
        assert take(after, 3) == take(before, 3)


def test_a_set_that_has_one_is_left_alone(bare, capfd):
    index_of(bare)
    before = (bare / "index.json").read_bytes()
    assert not index_of(bare).is_new
    assert "has its index; nothing to do" in capfd.readouterr().err
    with pytest.raises(DataError, match="its index.json says otherwise: frame: previous here"):
        index_of(bare, accumulate=True)
    assert (bare / "index.json").read_bytes() == before


def test_what_contradicts_the_tars_is_refused_and_nothing_written(bare):
    names = {"names": ("left", "right"), "units": ("1", "1"), "scale": (1.0, 1.0)}
    with pytest.raises(DataError, match=r"train_0: actions .*: not 2 numbers a frame"):
        index_of(bare, signal="command", **names)
    with pytest.raises(DataError, match="train_0.json says 5 frames a second, .* fps = 3"):
        index_of(bare, fps=3)
    content = (bare / "val-000000.tar").read_bytes()
    start = content.index(b"val_0.action.npy") + 512 + 128
    (bare / "val-000000.tar").write_bytes(
        content[:start] + b"\0\0\xc0\x7f" + content[start + 4 :]  # not a number
    )
    with pytest.raises(DataError, match="val_0.action.npy: holds numbers that are not finite"):
        index_of(bare)
    with open(bare / "train-000002.tar", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(DataError, match=r"train-000002.tar: .*cut off"):
        index_of(bare)
    assert {path.suffix for path in bare.iterdir()} == {".tar"}


def test_an_unfinished_set_is_not_taken_for_a_whole_one(bare, tmp_path):
    (bare / UNFINISHED).mkdir()
    with pytest.raises(DataError, match="unfinished; the `cosmos-wds shard` that began it"):
        index_of(bare)
    with pytest.raises(DataError, match="no such folder"):
        index_of(tmp_path / "nowhere")
