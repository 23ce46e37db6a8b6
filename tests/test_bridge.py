"""The Bridge layout: what is read, in which order, and how what is wrong is told."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Recording, StoredVideo
from cosmos_wds.data.storage import storage
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import ActionSettings, Pipeline
from cosmos_wds.sources import open_source
from cosmos_wds.sources.bridge import BridgeSource
from tests.conftest import tiny_states, write_episode


@pytest.fixture
def root(tmp_path):
    write_episode(tmp_path, "train", 0)
    return tmp_path


def change(root, **changes):
    """Replace keys of the one annotation, and read it; None removes a key."""
    path = root / "annotation/train/0.json"
    table = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))
    return read(root)


def opened(root, *splits):
    return BridgeSource(storage(root), splits or ("train", "val", "test"))


def read(root):
    """The one episode."""
    return opened(root).read(Recording("train", "0", "annotation/train/0.json"))


def test_an_episode_is_read_whole(root):
    source = opened(root)
    (recording,) = source.list("train")
    assert recording == Recording("train", "0", "annotation/train/0.json")
    episode = source.read(recording)
    content = (root / recording.file).read_bytes()
    annotation = json.loads(content)
    assert (episode.id, episode.text) == ("train-0", "move block 0")
    assert episode.source_sha256 == hashlib.sha256(content).hexdigest()
    assert dict(episode.extra) == {"task": "robot_trajectory_prediction"}
    video = root / "videos/train/0/rgb.mp4"
    assert dict(episode.videos) == {0: StoredVideo(storage(root), "videos/train/0/rgb.mp4")}
    assert episode.videos[0].size() == video.stat().st_size
    assert episode.videos[0].read() == video.read_bytes()
    np.testing.assert_array_equal(episode.state, annotation["state"])
    np.testing.assert_array_equal(episode.command, annotation["action"])
    assert episode.state.shape == (8, 7) and episode.command.shape == (7, 7)


def test_the_list_is_in_natural_order_and_a_missing_split_is_empty(tmp_path):
    names = ["10", "2", "0", "a9", "a10", "02"]
    folder = tmp_path / "annotation/train"
    folder.mkdir(parents=True)
    for name in [*names, ".hidden"]:
        (folder / f"{name}.json").touch()
    source = opened(tmp_path, "train", "test")
    assert [r.name for r in source.list("train")] == ["0", "02", "2", "10", "a9", "a10"]
    assert source.list("test") == []


def test_a_missing_folder_says_how_to_get_one(tmp_path):
    for root, what in ((tmp_path / "gone", "no such folder"), (tmp_path, "has no annotation")):
        with pytest.raises(DataError, match=f"{what}.*run `cosmos-wds download bridge`") as error:
            opened(root).list("train")
        assert "\n" not in str(error.value)
    pipeline = Pipeline.model_validate({"source": {"kind": "demo", "path": str(tmp_path)}})
    with pytest.raises(DataError, match="cosmos-wds download demo"):
        open_source(pipeline).list("train")


def test_several_cameras_as_list_or_table(tmp_path):
    path = write_episode(tmp_path, "train", 0, cameras=2)
    names = {n: f"videos/train/0/rgb{n or ''}.mp4" for n in (0, 1)}
    wanted = {n: StoredVideo(storage(tmp_path), name) for n, name in names.items()}
    videos = json.loads(path.read_text())["videos"]
    assert dict(read(tmp_path).videos) == wanted
    assert dict(change(tmp_path, videos={"1": videos[1], "0": videos[0]}).videos) == wanted


def test_identity_falls_back(root):
    assert change(root, episode_id=7).id == "7"
    assert change(root, episode_id=None, original_path="a/b/out.npy").id == "a/b/out.npy"
    assert change(root, original_path=None).id == "0"


def test_six_columns_and_a_gripper_are_enough(root):
    state = tiny_states(8)
    episode = change(root, state=state[:, :6].tolist())
    np.testing.assert_array_equal(episode.state[:, :6], state[:, :6])
    wide = np.column_stack([state, state]).tolist()
    np.testing.assert_array_equal(change(root, state=wide).state, episode.state)
    flat = episode.state[:, 6]
    as_rows = change(root, continuous_gripper_state=flat[:, None].tolist())
    np.testing.assert_array_equal(as_rows.state, episode.state)


def test_one_action_per_frame_loses_its_last(root):
    rows = np.arange(56.0).reshape(8, 7)
    np.testing.assert_array_equal(change(root, action=rows.tolist()).command, rows[:-1])


def test_unknown_keys_are_kept_as_json(root):
    extra = change(root, latent_videos=[{"path": "x.pt"}], score=float("nan")).extra
    assert extra["latent_videos"] == [{"path": "x.pt"}] and extra["score"] is None


def test_texts_of_all_shapes(root):
    assert change(root, texts=["a", "b"]).text == "a"
    assert change(root, texts=[["deep"]]).text == "deep"
    assert change(root, texts="alone").text == "alone"
    assert change(root, texts=[]).text == change(root, texts=None).text == ""


BAD = {
    "state: missing key": {"state": None},
    "continuous_gripper_state: missing key": {"continuous_gripper_state": None},
    "videos: missing key": {"videos": None},
    "state: rows of different lengths": {"state": [[0.0] * 7, [0.0] * 6]},
    "state: rows of 5 numbers; 6 are needed": {"state": [[0.0] * 5] * 8},
    "state: nan in row 3, column 2": {
        "state": [[0.0, 0.0, float("nan") if i == 3 else 0.0, 0, 0, 0, 0] for i in range(8)]
    },
    "state: inf in row 0, column 0": {"state": [[float("inf")] * 7] * 8},
    "state: not rows of numbers": {"state": [["1"] * 7] * 8},
    "state: 1 frame": {"state": [[0.0] * 7], "continuous_gripper_state": [0.0]},
    "continuous_gripper_state: 7 values for 8 states": {"continuous_gripper_state": [0.0] * 7},
    "continuous_gripper_state: nan in row 0": {"continuous_gripper_state": [float("nan")] * 8},
    "continuous_gripper_state: not rows of numbers": {"continuous_gripper_state": "open"},
    "videos: neither a list nor": {"videos": "rgb.mp4"},
    "videos: camera 0 is missing": {"videos": []},
    r"videos\[0\].video_path: missing": {"videos": [{"path": "rgb.mp4"}]},
    r"videos\[0\]: no such file: gone.mp4": {"videos": [{"video_path": "gone.mp4"}]},
    r"videos\[0\]: /etc/passwd leads out": {"videos": [{"video_path": "/etc/passwd"}]},
    r"videos\[0\]: videos/../../a.mp4 leads out": {
        "videos": [{"video_path": "videos/../../a.mp4"}]
    },
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_annotations_name_file_and_key(root, reason):
    with pytest.raises(DataError, match=f"^annotation/train/0.json: {reason}") as error:
        change(root, **BAD[reason])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\xff", "null", "[" * 100_000])
def test_files_that_are_no_annotation(root, content):
    path = root / "annotation/train/0.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(DataError, match=r"^annotation/train/0\.json: not (JSON|an annotation)"):
        read(root)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([[0.0] * 6] * 7, "action: rows of 6 numbers; 7 are needed"),
        ([[0.0] * 8] * 7, "action: rows of 8 numbers; 7 are needed"),
        ([[0.0] * 7] * 5, "action: 5 rows for 8 states"),
        ([[float("nan")] * 7] * 7, "action: nan in row 0"),
        (None, "action: missing"),
    ],
)
def test_commands_are_checked_only_where_they_are_needed(root, action, reason):
    episode = change(root, action=action)
    assert episode.command is None
    if action is not None:
        assert episode.command_problem.startswith(reason)
    contract = ActionContract.from_settings(ActionSettings(signal="command"))
    with pytest.raises(DataError, match=reason):
        contract.episode_actions(episode)


def test_links_may_not_lead_out(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "rgb.mp4"
    video = root / "videos/train/0/rgb.mp4"
    video.rename(outside)
    video.symlink_to(outside)
    with pytest.raises(DataError, match="is a link out of the data folder"):
        change(root)


def test_the_videos_folder_may_lie_on_another_disk(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk") / "videos"
    (root / "videos").rename(elsewhere)
    (root / "videos").symlink_to(elsewhere)
    assert change(root).videos[0].size() > 0


def test_sources_are_found_by_kind_and_rooted_anywhere(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    source = open_source(Pipeline.model_validate({"source": {"path": root.name}}))
    assert source.root == root.name
    assert source.read(source.list("train")[0]).id == "train-0"


def test_a_relative_root_means_the_folder_where_one_stands(tmp_path, monkeypatch):
    for place in ("one", "two"):
        write_episode(tmp_path / place / "raw", "train", 0)
        monkeypatch.chdir(tmp_path / place)
        source = opened(Path("raw"))
        assert source.read(source.list("train")[0]).videos[0].size() > 0
