"""Tars in WebDataset naming as a source: what a sample becomes, and what is broken is told."""

import io
import json
import pickle
import tarfile

import fsspec
import numpy as np
import pytest

from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.shards import array_bytes
from cosmos_wds.data.storage import LocalStorage, storage
from cosmos_wds.data.video import encode
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline, load_pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.sources import open_source
from tests.conftest import moving_frames, tiny_states

FRAMES = 5
STATE = tiny_states(FRAMES).astype(np.float32)
ACTION = np.diff(STATE, axis=0)


@pytest.fixture(scope="module")
def video():
    return encode(moving_frames(FRAMES, 32, 48), 5)


def write_tar(path, samples):
    """Write {key: {member: bytes}}, in order, as anyone would with tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for name, content in members.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def sample(video, **changes):
    members = {
        "mp4": video,
        "action.npy": array_bytes(ACTION),
        "state.npy": array_bytes(STATE),
        "json": json.dumps({"id": "one", "text": "push", "fps": 5, "lab": 3}).encode(),
    }
    members = {**members, **{name.replace("_", "."): value for name, value in changes.items()}}
    return {name: value for name, value in members.items() if value is not None}


def open_tars(root):
    source = {"kind": "webdataset", "path": str(root)}
    return open_source(Pipeline.model_validate({"source": source}))


def read(root, split="train"):
    """Name -> episode, or the reason why there is none."""
    source, found = open_tars(root), {}
    for recording in source.list(split):
        try:
            found[recording.name] = source.read(recording)
        except DataError as error:
            assert "\n" not in str(error)
            found[recording.name] = str(error).removeprefix(f"{recording.file}")
    return found


def test_a_sample_is_read_whole(tmp_path, video):
    write_tar(tmp_path / "train-000.tar", [("a/x1", sample(video))])
    ((name, episode),) = read(tmp_path).items()
    assert (name, episode.id, episode.text, episode.fps) == ("a/x1", "one", "push", 5.0)
    np.testing.assert_array_equal(episode.state, STATE)
    np.testing.assert_array_equal(episode.command, ACTION)
    assert episode.videos[0].name == "train-000.tar#a/x1.mp4"
    assert episode.videos[0].size() == len(video) and episode.videos[0].read() == video
    assert dict(episode.extra) == {"lab": 3}


def test_arrays_and_texts_may_lie_in_the_json(tmp_path, video):
    table = {"states": STATE.tolist(), "actions": [*ACTION.tolist(), [0.0] * 7], "texts": [["go"]]}
    alone = {"mp4": video, "json": json.dumps(table).encode()}
    worded = {"mp4": video, "actions.npy": array_bytes(ACTION), "txt": b" stop \n"}
    write_tar(tmp_path / "a.tar", [("x", alone), ("y", worded)])
    x, y = read(tmp_path).values()
    np.testing.assert_array_equal(x.state, STATE)
    np.testing.assert_array_equal(x.command, ACTION)
    assert (x.id, x.text, x.fps, y.text) == ("x", "go", 0.0, "stop")
    assert y.state.shape == (FRAMES, 0)
    changes = [f"source.path={tmp_path}", f"shards.path={tmp_path / 'shards'}"]
    assert not shard(load_pipeline("webdataset", changes)).rejected


def test_cameras_have_numbers_or_names(tmp_path, video):
    other, third = (encode(moving_frames(FRAMES, 32, 48, seed), 5) for seed in (1, 2))
    numbered = sample(video) | {"2.mp4": other, "1.mp4": third}
    named = sample(None, mp4=None) | {"left.mp4": video, "wrist.mp4": other}
    both = sample(video) | {"wrist.mp4": other, "left.mp4": third}
    write_tar(tmp_path / "a.tar", [("a", numbered), ("b", named), ("c", both)])
    for episode, wanted in zip(
        read(tmp_path).values(),
        [[video, third, other], [video, other], [video, third, other]],
        strict=True,
    ):
        assert [v.read() for v in episode.videos.values()] == wanted
        assert list(episode.videos) == list(range(len(wanted)))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-000.tar", "train"),
        ("val_3.tar", "val"),
        ("test/00001.tar", "test"),
        ("bridge-validation-00001.tar", "val"),
        ("00001.tar", "train"),
        ("contest.tar", "train"),
    ],
)
def test_splits_are_words_of_the_path(tmp_path, video, path, split):
    write_tar(tmp_path / path, [("x", sample(video))])
    source = open_tars(tmp_path)
    assert {s: len(source.list(s)) for s in ("train", "val", "test")} == {
        s: int(s == split) for s in ("train", "val", "test")
    }


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_nothing_is_unpickled(tmp_path, video):
    bomb, array = pickle.dumps(Bomb()), io.BytesIO()
    np.save(array, np.array([Bomb()], object), allow_pickle=True)
    content = [
        ("a", sample(video) | {"pyd": bomb, "extra.pkl": bomb, "pth": bomb, "jpg": b"x"}),
        ("b", sample(video, action_npy=array.getvalue())),
        ("c", sample(video, action_npy=bomb)),
    ]
    write_tar(tmp_path / "a.tar", content)
    found = read(tmp_path)
    assert found["a"].extra["members_left_out"] == ["pyd", "extra.pkl", "pth", "jpg"]
    assert "action.npy: Object arrays cannot be loaded" in found["b"]
    assert "action.npy: the magic string is not correct" in found["c"]


BAD = {
    "neither action nor state; it holds json, mp4": {"action_npy": None, "state_npy": None},
    "no mp4; it holds action.npy, json, state.npy": {"mp4": None},
    "json: not JSON": {"json": b"{"},
    "action: nan in row 0": {"action_npy": array_bytes(ACTION * np.nan)},
    "state: not rows of numbers": {"state_npy": array_bytes(STATE[:, 0])},
    "action: 2 rows for 5 states": {"action_npy": array_bytes(ACTION[:2])},
    "1 frame, and an action needs two": {"state_npy": array_bytes(STATE[:1]), "action_npy": None},
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_wrong_with_a_sample_is_told(tmp_path, video, reason):
    write_tar(tmp_path / "a.tar", [("x", sample(video, **BAD[reason])), ("y", sample(video))])
    found = read(tmp_path)
    assert found["x"].startswith(f": {reason}") and found["y"].id == "one"


def test_wherever_a_tar_is_cut_no_sample_is_lost_silently(tmp_path, video, capsys):
    """Whole samples stay, the one at the cut is told with tar and key, or a warning is given."""
    keys = ["a", "b", "c"]
    whole = write_tar(tmp_path / "whole.tar", [(key, sample(video)) for key in keys]).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [m.offset_data + -(-m.size // 512) * 512 for m in tar if m.name.endswith("json")]
    (tmp_path / "whole.tar").unlink()
    capsys.readouterr()
    for cut in [*range(0, ends[-1], 700), *ends, *(end + 100 for end in ends), ends[1] - 512]:
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        found = read(tmp_path)
        good = [key for key, end in zip(keys, ends, strict=True) if end <= cut]
        assert [name for name, value in found.items() if not isinstance(value, str)][
            : len(good)
        ] == good
        told = capsys.readouterr()
        is_told = any(isinstance(value, str) for value in found.values())
        assert is_told or "no end mark" in "".join(told) or cut > ends[-1]
        path.unlink()


def test_a_cut_sample_is_named_with_its_tar(tmp_path, video):
    path = write_tar(tmp_path / "a.tar", [("x", sample(video)), ("y", sample(video))])
    with tarfile.open(path) as tar:
        begin = tar.getmember("y.mp4").offset_data
    path.write_bytes(path.read_bytes()[: begin + 100])
    source = open_tars(tmp_path)
    one, other = source.list("train")
    source.read(one)
    with pytest.raises(DataError, match=r"^a\.tar#y: the tar is cut off inside y\.mp4: \d+ byte"):
        source.read(other)


def test_what_is_no_tar_is_told(tmp_path, video):
    path = write_tar(tmp_path / "a.tar", [("x", sample(video)), ("y", sample(video))])
    damaged = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmember("y.mp4").offset
    damaged[second : second + 100] = b"\xff" * 100
    path.write_bytes(damaged)
    (tmp_path / "b.tar").write_bytes(b"hello" * 300)
    (tmp_path / "c.tar").write_bytes(b"")
    found = read(tmp_path)
    assert found.pop("x").id == "one"
    reason = ": not a tar from here on: damaged or cut off"
    assert found == {f"byte {second}": reason, "byte 0": reason, "byte 0~2": reason}


def test_keys_may_come_again(tmp_path, video):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, [("x", sample(video, json=None)), ("y", sample(video))])
    write_tar(
        tmp_path / "c.tar", [("x", sample(video)), ("z", sample(video)), ("x", sample(video))]
    )
    recordings = open_tars(tmp_path).list("train")
    assert [r.name for r in recordings] == ["x", "y", "x~2", "y~2", "x~3", "z", "x~4"]
    assert [r.file for r in recordings][-3:] == ["c.tar#x", "c.tar#z", "c.tar#x~2"]
    assert len({r.file for r in recordings}) == 7


def test_a_folder_without_tars_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no tar; give the folder that holds them"):
        open_tars(tmp_path).list("train")
    with pytest.raises(DataError, match="gone: no such folder"):
        open_tars(tmp_path / "gone").list("train")


def test_long_and_odd_names(tmp_path, video):
    names = ["x" * 150, "Größe-手", "./lead", "sub/dir.with.dots/x"]
    write_tar(tmp_path / "a.tar", [(name, sample(video)) for name in names])
    found = read(tmp_path)
    assert list(found) == ["x" * 150, "Größe-手", "lead", "sub/dir.with.dots/x"]
    assert all(episode.videos[0].read() == video for episode in found.values())


def test_listing_reads_heads_alone_and_workers_do_not_list(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 256, 256, 3), np.uint8)
    large = encode(frames, 5, crf=1)
    path = write_tar(tmp_path / "a.tar", [(str(i), sample(large)) for i in range(6)])
    sizes, read_range = [], LocalStorage.read_range

    def counted(storage, file, offset, size):
        sizes.append(size)
        return read_range(storage, file, offset, size)

    monkeypatch.setattr(LocalStorage, "read_range", counted)
    source = open_tars(tmp_path)
    recordings = source.list("train")
    assert len(recordings) == 6 and sum(sizes) < path.stat().st_size / 5
    source, recordings = pickle.loads(pickle.dumps((source, recordings)))
    sizes.clear()
    assert source.read(recordings[3]).videos[0].read() == large
    assert len(sizes) == 4  # json, action, state, video


def test_tars_far_away_are_read_alike(tmp_path, video):
    write_tar(tmp_path / "train/0.tar", [("x", sample(video)), ("y", sample(video))])
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/tars", recursive=True)
    far, near = read("memory://tars"), read(tmp_path)
    assert list(far) == list(near) == ["x", "y"]
    for key in far:
        assert far[key].source_sha256 == near[key].source_sha256
        assert far[key].videos[0].read() == video
    memory.rm("/tars", recursive=True)


def test_our_own_shards_become_shards_again(tmp_path, tiny_bridge):
    raw = tiny_bridge(tmp_path / "raw", cameras=2)
    first = load_pipeline("small", [f"source.path={raw}", f"shards.path={tmp_path / 'first'}"])
    shard(first)
    changes = [f"source.path={tmp_path / 'first'}", f"shards.path={tmp_path / 'second'}"]
    summary = shard(load_pipeline("webdataset", changes))
    assert not summary.rejected
    for split, count in (("train", 4), ("val", 2)):
        one, other = (
            ShardIndex.read(storage(tmp_path / n)).split(split) for n in ("first", "second")
        )
        assert len(one.rows) == len(other.rows) == count
        for number in range(count):
            for member in ("mp4", "1.mp4", "action.npy", "state.npy"):
                assert one.read(number, member) == other.read(number, member)
            before, after = (json.loads(index.read(number, "json")) for index in (one, other))
            kept = ("id", "text", "frames", "fps", "cameras", "extra")
            assert [before[key] for key in kept] == [after[key] for key in kept]
