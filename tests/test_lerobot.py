"""LeRobot data sets: what is taken of them, exactly which frames, and how what is wrong is told."""

import json
import pickle
import re
import shutil
import sys

import av
import fsspec
import numpy as np
import pytest

from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.storage import LocalStorage
from cosmos_wds.data.video import decode, examine
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.pipeline import Pipeline, load_pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.sources import open_source
from tests.commands import run
from tests.dataset_hub import dataset_hub
from tests.lerobot_sets import (
    CAMERA,
    FPS,
    POSE,
    change_info,
    change_table,
    encode_av1,
    make,
    write_set,
)

LENGTHS = (8, 5, 6, 9)
VERSIONS = ("v2.1", "v3.0")
ROWS = "data/chunk-000/file-000.parquet"
TABLE = "meta/episodes/chunk-000/file-000.parquet"
JOINTS = [f"{joint}.pos" for joint in ("pan", "lift", "elbow", "flex", "roll", "gripper")]


def open_set(root, *, lerobot=None, **actions):
    settings = {"source": {"kind": "lerobot", "path": str(root)}, "lerobot": lerobot or {}}
    return open_source(Pipeline.model_validate({**settings, "actions": actions}))


def episodes(root, split="train", **settings):
    source = open_set(root, **settings)
    return [source.read(recording) for recording in source.list(split)]


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def assert_shows(video, wanted):
    """A video shows these frames: as many, each more like its own than like its neighbours."""
    frames = decode(video)
    assert frames.shape == wanted.shape
    for place, frame in enumerate(frames):
        likeness = [psnr(frame, other) for other in wanted]
        assert np.argmax(likeness) == place and likeness[place] > 25


@pytest.fixture(scope="module")
def made():
    return make(LENGTHS)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, made):
    """Version -> a data set of four episodes."""
    root = tmp_path_factory.mktemp("lerobot")
    return {version: write_set(root / version, version, made) for version in VERSIONS}


@pytest.fixture
def copied(sets, tmp_path):
    """A copy of the data set of version 3.0, to damage."""
    return shutil.copytree(sets["v3.0"], tmp_path / "copy")


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_hold_what_was_recorded(sets, made, version):
    source = open_set(sets[version])
    recordings = source.list("train")
    assert [r.name for r in recordings] == [f"episode_{i:06d}" for i in range(4)]
    assert source.list("val") == source.list("test") == []
    for recording, wanted in zip(recordings, made, strict=True):
        episode = source.read(recording)
        np.testing.assert_array_equal(episode.state, wanted.state)
        np.testing.assert_array_equal(episode.command, wanted.action[:-1])
        assert (episode.id, episode.text, episode.fps) == (recording.name, wanted.task, FPS)
        video = episode.videos[0].read()
        facts = examine(video, name="cut")
        assert (facts.frames, facts.fps) == (len(wanted.state), FPS)
        assert_shows(video, wanted.frames[CAMERA])
        json.dumps(dict(episode.extra))
    assert (
        recordings[3].file
        == {
            "v2.1": "data/chunk-000/episode_000003.parquet#3",
            "v3.0": f"{ROWS}#3",
        }[version]
    )


def test_frames_are_copied_out_of_a_shared_video_without_loss(sets):
    for episode in episodes(sets["v3.0"]):
        (about,) = episode.extra["videos"]
        assert about["cut"] == "copied" and about["camera"] == CAMERA
        video = episode.videos[0]
        assert abs(len(video.read()) - video.size()) < 1024
        with av.open(str(sets["v3.0"] / video.file)) as container:
            shown = [f for f in container.decode(video=0)]
        begin = next(i for i, f in enumerate(shown) if f"{f.time:.4f}" == about["from"].split()[-2])
        wanted = [f.to_ndarray(format="rgb24") for f in shown[begin : begin + len(episode.state)]]
        for decoder in ("pyav", "decord"):
            if decoder == "pyav" or sys.platform == "linux":
                np.testing.assert_array_equal(decode(video.read(), decoder=decoder), wanted)


def test_a_video_of_one_episode_stays_as_it_is(sets):
    for number, episode in enumerate(episodes(sets["v2.1"])):
        file = f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        assert episode.extra["videos"] == [{"camera": CAMERA, "from": file, "cut": "whole"}]
        assert episode.videos[0].read() == (sets["v2.1"] / file).read_bytes()
        assert episode.videos[0].size() == (sets["v2.1"] / file).stat().st_size


def test_frames_between_key_frames_are_encoded_again(tmp_path, made):
    """One encoding over all episodes, with key frames where the encoder likes, and B frames."""
    root = write_set(tmp_path, "v3.0", made, per_video=4, one_piece=True)
    found = episodes(root)
    cuts = [episode.extra["videos"][0]["cut"] for episode in found]
    assert cuts[1] == "encoded again, crf 10" and set(cuts) == {cuts[1], "copied"}
    for episode, wanted in zip(found, made, strict=True):
        assert_shows(episode.videos[0].read(), wanted.frames[CAMERA])
        assert episode.videos[0].read() == episode.videos[0].read()


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="PyAV without an AV1 encoder")
def test_av1_passes_through(tmp_path):
    made = make((4, 5), height=64, columns=96)
    root = write_set(tmp_path, "v3.0", made, coded=encode_av1)
    for episode, wanted in zip(episodes(root), made, strict=True):
        video = episode.videos[0].read()
        assert examine(video, name="cut").codec == "av1"
        assert episode.extra["videos"][0]["cut"] == "copied"
        assert_shows(video, wanted.frames[CAMERA])


POSES = {
    "table": ({"motors": POSE}, POSE),
    "prefixes": ([f"eef_{n}" for n in POSE[:6]] + ["gripper.pos"], POSE),
    "spelling": ({"axes": ["EE.X", "EE.Y", "EE.Z", "roll", "pitch", "yaw", "Gripper"]}, POSE),
    "other order": (["gripper", *POSE[:6]], ["gripper", *POSE[:6]]),
    "bridge": ([*POSE[:6], "pad", "gripper"], [*POSE[:6], "pad", "gripper"]),
}


@pytest.mark.parametrize("names", POSES)
def test_a_pose_is_found_by_names(tmp_path, names):
    given, plain = POSES[names]
    made = make((3,), width=len(plain))
    (episode,) = episodes(write_set(tmp_path, "v2.1", made, names=given))
    np.testing.assert_array_equal(episode.state, made[0].state[:, [plain.index(n) for n in POSE]])


@pytest.mark.parametrize(
    "names",
    [
        None,
        [f"joint_{i}" for i in range(8)],
        [*POSE, "gripper"],  # twice
        ["x", "y", "z", "rx", "ry", "rz", "rw", "gripper"],  # a quaternion
    ],
)
def test_a_pose_is_never_guessed(tmp_path, names):
    root = write_set(tmp_path, "v2.1", make((3,), width=8), names=names)
    with pytest.raises(ConfigError, match="8 dimensions.*Set lerobot.pose") as error:
        open_set(root).list("train")
    assert "\n" not in str(error.value)
    assert all(name in str(error.value) for name in names or ())


def test_a_pose_is_taken_as_the_pipeline_says(tmp_path):
    names = [*POSE[:3], "a", "b", "c", "pad", "grip"]
    made = make((3,), width=8)
    root = write_set(tmp_path, "v2.1", made, names=names)
    settings = {"pose": [0, 1, 2, "a", "b", "c", "grip"], "gripper_closed": 2, "gripper_open": -2}
    (episode,) = episodes(root, lerobot=settings)
    np.testing.assert_array_equal(episode.state[:, :6], made[0].state[:, :6])
    np.testing.assert_allclose(episode.state[:, 6], (2 - made[0].state[:, 7]) / 4)
    with pytest.raises(ConfigError, match=r"no dimension 'd'.*0 x, 1 y"):
        open_set(root, lerobot={"pose": [0, 1, 2, "a", "b", "d", "grip"]}).list("train")


def test_joints_are_commands_and_their_state_stays_whole(tmp_path):
    made = make((3,), width=6)
    root = write_set(tmp_path, "v3.0", made, names=JOINTS)
    with pytest.raises(ConfigError, match=r"6 numbers \(pan.pos.*set actions.names"):
        open_set(root, signal="command").list("train")
    actions = {"names": JOINTS, "units": ["deg"] * 6, "scale": [0.01] * 6, "signal": "command"}
    (episode,) = episodes(root, **actions)
    np.testing.assert_array_equal(episode.state, made[0].state)
    np.testing.assert_array_equal(episode.command, made[0].action[:2])
    settings = {"source": {"kind": "lerobot", "path": str(root)}, "actions": actions}
    shards = {"path": str(tmp_path / "shards"), "workers": 1}
    summary = shard(Pipeline.model_validate({**settings, "shards": shards}))
    assert not summary.rejected and ShardIndex.read(summary.where).contract.names == tuple(JOINTS)


def test_another_rate_is_an_error(sets):
    with pytest.raises(ConfigError, match="it has 5 frames per second; set actions.fps=5$"):
        open_set(sets["v3.0"], fps=30).list("train")


def test_features_are_joined(tmp_path):
    made = make((3,))
    root = write_set(tmp_path, "v2.1", made)
    (episode,) = episodes(root, lerobot={"state": ["observation.state", "timestamp"]})
    np.testing.assert_array_equal(episode.state, made[0].state)
    with pytest.raises(ConfigError, match="state: no feature arm; there is observation.sta"):
        open_set(root, lerobot={"state": ["arm"]}).list("train")


def test_cameras_are_chosen(tmp_path):
    cameras = ("observation.images.top", "observation.images.wrist")
    made = make((3,), cameras)
    root = write_set(tmp_path, "v3.0", made)
    (episode,) = episodes(root)
    for number, camera in enumerate(cameras):
        assert_shows(episode.videos[number].read(), made[0].frames[camera])
    (episode,) = episodes(root, lerobot={"cameras": [cameras[1]]})
    assert list(episode.videos) == [0] and cameras[1] in episode.videos[0].file
    with pytest.raises(ConfigError, match=f"lerobot.cameras: no video front; videos: {cameras[0]}"):
        open_set(root, lerobot={"cameras": ["front"]}).list("train")


def test_single_images_are_refused_in_one_line(sets, tmp_path):
    root = shutil.copytree(sets["v2.1"], tmp_path / "copy")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    change_info(root, features={**features, CAMERA: {"dtype": "image", "shape": [64, 64, 3]}})
    with pytest.raises(ConfigError, match=f"{CAMERA}: single images, which are not read"):
        open_set(root).list("train")


def test_splits_are_those_of_the_set_or_every_so_many_th(sets, copied):
    names = {
        split: [r.name[-1] for r in open_set(sets["v2.1"]).list(split)] for split in ("train",)
    }
    assert names == {"train": ["0", "1", "2", "3"]}
    source = open_set(sets["v2.1"], lerobot={"val_every": 3})
    assert [r.name[-1] for r in source.list("val")] == ["0", "3"]
    assert [r.name[-1] for r in source.list("train")] == ["1", "2"]
    change_info(copied, splits={"train": "0:3", "val": "3:4"})
    source = open_set(copied, lerobot={"val_every": 3})
    assert [r.name[-1] for r in source.list("train")] == ["0", "1", "2"]
    assert [r.name[-1] for r in source.list("val")] == ["3"]


def _rows(change):
    """Damage by a change of the frames' table; `change` gets the rows of episode 1."""

    def damage(root):
        change_table(root / ROWS, lambda rows: change(rows, [r for r in rows if _is_one(r)]))

    return damage


def _is_one(row):
    return row["episode_index"] == 1


def _nan(key):
    def change(rows, mine):
        mine[2][key][3] = float("nan")

    return _rows(change)


def _begin(seconds):
    def change(rows):
        rows[1][f"videos/{CAMERA}/from_timestamp"] += seconds

    return lambda root: change_table(root / TABLE, change)


def _table(**changes):
    return lambda root: change_table(root / TABLE, lambda rows: rows[1].update(changes))


DAMAGES = {
    "nan": (_nan("observation.state"), "^observation.state: nan in row 2, column 3"),
    "fewer rows": (
        _rows(lambda rows, mine: [r for r in rows if r is not mine[4]]),
        "^4 rows, and 5",
    ),
    "no rows": (
        _rows(lambda rows, mine: [r for r in rows if not _is_one(r)]),
        "no rows of episode",
    ),
    "apart": (_rows(lambda rows, mine: [*rows, mine[0]]), "rows of other episodes between"),
    "no data": (_table(**{"data/file_index": 7}), "file-007.parquet: no such file"),
    "no video": (_table(**{f"videos/{CAMERA}/file_index": 7}), "file-007.mp4: no such file"),
    "between frames": (_begin(0.05), r"row 0 of 5 is of 1\.6500 s, and the nearest frame of 1\.6"),
    "beyond the end": (_begin(0.2), r"row 4 of 5 is of 2\.6000 s, and the nearest frame of 2\.4"),
    "long": (_table(length=6), "^5 rows, and 6 in the table of episodes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_wrong_episode_is_told_and_the_others_stay(copied, name):
    damage, reason = DAMAGES[name]
    damage(copied)
    source = open_set(copied)
    recordings = source.list("train")
    assert len(recordings) == 4
    for recording in recordings:
        if recording.name != "episode_000001":
            source.read(recording)
            continue
        with pytest.raises(DataError) as error:
            source.read(recording)
        told = str(error.value).removeprefix(f"{recording.file}: ")
        assert re.search(reason, told) and "\n" not in told


def test_a_wrong_command_matters_only_where_it_is_needed(copied):
    _nan("action")(copied)
    problem = "action: nan in row 2, column 3"
    assert [e.command_problem for e in episodes(copied)] == ["", problem, "", ""]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_video_is_told(copied, share):
    path = copied / f"videos/{CAMERA}/chunk-000/file-001.mp4"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    source = open_set(copied)
    for recording in source.list("train")[2:]:
        with pytest.raises(DataError, match=r"file-001\.mp4: cut off"):
            source.read(recording)


METADATA = {
    "codebase_version v1.6; versions 2 and 3 are read": {"codebase_version": "v1.6"},
    "not that of a data set: KeyError": {"codebase_version": None, "features": None},
    r"splits: train = 'all' is not FIRST:END": {"splits": {"train": "all"}},
    "do not fit: ValueError.*leads out of the data": {"data_path": "../{chunk_index}"},
    "do not fit: KeyError": {"video_path": "{unknown}"},
}


@pytest.mark.parametrize("reason", METADATA)
def test_metadata_that_make_no_sense(copied, reason):
    changes = METADATA[reason]
    change_info(copied, **changes)
    with pytest.raises(DataError, match=reason.replace("KeyError", r"\w+Error")) as error:
        open_set(copied).list("train")
    assert "\n" not in str(error.value)


def test_an_episode_listed_twice_is_an_error(copied):
    change_table(copied / TABLE, lambda rows: [*rows, rows[2]])
    with pytest.raises(DataError, match="episode 2 is there twice"):
        open_set(copied).list("train")


def test_a_table_that_is_cut_is_an_error(copied):
    (copied / TABLE).write_bytes((copied / TABLE).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"file-000\.parquet: not readable as parquet"):
        open_set(copied).list("train")


def test_a_missing_set_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="no meta/info.json; give a LeRobot data set of version 2"):
        open_set(tmp_path).list("train")


def test_without_pyarrow_the_extra_is_named(sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'cosmos-wds\[lerobot\]'"):
        open_set(sets["v2.1"]).list("train")


def test_tables_are_read_once_and_videos_never_whole(copied, monkeypatch):
    """Whatever the number of episodes in a file, and in whichever process it is read."""
    source = open_set(copied)
    recordings = source.list("train")
    assert len(pickle.dumps(source)) < 2000
    source, recordings = pickle.loads(pickle.dumps((source, recordings)))
    reads, ranges = [], []
    read, read_range = LocalStorage.read, LocalStorage.read_range
    monkeypatch.setattr(LocalStorage, "read", lambda s, f: reads.append(f) or read(s, f))

    def counted(storage, file, offset, size):
        ranges.append((file, size))
        return read_range(storage, file, offset, size)

    monkeypatch.setattr(LocalStorage, "read_range", counted)
    found = [source.read(recording) for recording in recordings]
    assert reads == [ROWS]
    assert len(ranges) <= 2 * 3  # heads of two videos
    ranges.clear()
    sizes = [len(episode.videos[0].read()) for episode in found]
    assert len(ranges) == 4 and sum(size for _, size in ranges) < sum(sizes)


def test_the_digest_is_of_the_data_and_of_nothing_else(sets, copied, tmp_path):
    def digests(root, **settings):
        return [e.source_sha256 for e in episodes(root, **settings)]

    wanted = digests(sets["v3.0"])
    assert len(set(wanted)) == 4 and digests(copied) == wanted
    assert digests(copied, lerobot={"gripper_open": 2.0}) != wanted

    def change(rows, mine):
        mine[4]["action"][0] += 1

    _rows(change)(shutil.copytree(copied, tmp_path / "other"))
    other = digests(tmp_path / "other")
    assert [a == b for a, b in zip(other, wanted, strict=True)] == [True, False, True, True]


def test_a_set_far_away_is_read_alike(sets):
    memory = fsspec.filesystem("memory")
    for version in VERSIONS:
        memory.put(str(sets[version]), f"/lerobot/{version}", recursive=True)
        far = episodes(f"memory://lerobot/{version}")
        for one, other in zip(far, episodes(sets[version]), strict=True):
            assert one.source_sha256 == other.source_sha256
            assert one.videos[0].read() == other.videos[0].read()
    memory.rm("/lerobot", recursive=True)


def test_a_set_of_the_hub_becomes_the_same_shards(sets, tmp_path):
    """Through hf://, as README says, with nothing but the library's own requests."""
    words = ("--pipeline", "lerobot", "--set", "actions.fps=5", "--workers", "1")
    shutil.copytree(sets["v3.0"], tmp_path / "hub/owner/name")
    with dataset_hub(tmp_path / "hub") as hub:
        address = "hf://datasets/owner/name"
        done = run("shard", "owner/name", "far", *words, cwd=tmp_path, HF_ENDPOINT=hub.url)
        assert done.returncode == 0 and "the hub's data set of that name" in done.stderr
        done = run("shard", address, "far", *words, cwd=tmp_path, HF_ENDPOINT=hub.url)
        assert done.returncode == 0 and "nothing to do" in done.stderr
        missing = run("shard", f"{address}x", "x", *words, cwd=tmp_path, HF_ENDPOINT=hub.url)
    assert missing.returncode == 1 and "no meta/info.json" in missing.stderr
    changes = [f"source.path={tmp_path / 'hub/owner/name'}", f"shards.path={tmp_path / 'near'}"]
    shard(load_pipeline("lerobot", [*changes, "actions.fps=5", "shards.workers=1"]))
    for name in ("train-000000.tar", "val-000000.tar"):
        assert (tmp_path / "far" / name).read_bytes() == (tmp_path / "near" / name).read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_set_becomes_shards(sets, made, tmp_path, version):
    changes = [f'source.path="{sets[version]}"', f'shards.path="{tmp_path / "shards"}"']
    settings = [*changes, "actions.fps=5", "shards.workers=1"]
    summary = shard(load_pipeline("lerobot", settings))
    assert not summary.rejected
    assert {k: v["episodes"] for k, v in summary.splits.items()} == {"train": 3, "val": 1}
    assert not ShardIndex.read(summary.where).table["concerns"]
    assert not shard(load_pipeline("lerobot", settings)).is_new
