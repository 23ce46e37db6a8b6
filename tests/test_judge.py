"""What looks wrong in a set is said: each planted oddity gets its line, and nothing else does."""

import json

import numpy as np
import pytest

from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.video import write_video
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
from tests.conftest import moving_frames, tiny_states, write_episode

FRAMES = 40


@pytest.fixture
def raw(tmp_path):
    for number in range(12):
        write_episode(tmp_path / "raw", "train", number, frames=FRAMES)
    return tmp_path / "raw"


def said(raw, **actions):
    """The concerns of a set made of these recordings."""
    place = raw.parent / "shards"
    table = {"source": {"path": str(raw)}, "shards": {"path": str(place)}, "actions": actions}
    shard(Pipeline.model_validate(table))
    return ShardIndex.read(place).table["concerns"]


def change(raw, number, states=None, gripper=None):
    path = raw / f"annotation/train/{number}.json"
    table = json.loads(path.read_text())
    if states is not None:
        table["state"] = states.tolist()
    if gripper is not None:
        table["continuous_gripper_state"] = list(gripper)
    path.write_text(json.dumps(table))


def test_usual_recordings_raise_no_concern(raw, capsys):
    assert said(raw) == []
    assert "warning" not in capsys.readouterr().err


def test_a_dimension_that_never_moves(raw, capsys):
    for number in range(12):
        states = tiny_states(FRAMES, seed=number)
        states[:, 2] = 0.25
        states[:, 3:5] = 0  # with no roll and pitch, z stays what it is
        change(raw, number, states)
    found = said(raw)
    assert [line.partition(" never")[0] for line in found] == ["z", "roll", "pitch"]
    assert "z never moves: it is 0 in all 468 actions" in capsys.readouterr().err


def test_a_gripper_in_percent(raw):
    change(raw, 3, gripper=np.linspace(0, 100, FRAMES))
    assert said(raw) == ["the gripper leaves 0..1 (2e-05 to 100) in 1 episode (train_3)"]


def test_a_pose_that_jumps(raw):
    states = tiny_states(FRAMES, seed=5)
    states[20:, 0] += 0.7
    change(raw, 5, states)
    (line,) = said(raw)
    assert line.startswith("jumps of the position (up to 0.7") and "(train_5)" in line


def test_a_rotation_that_jumps(raw):
    states = tiny_states(FRAMES, seed=5)
    states[20:, 5] += 2
    change(raw, 5, states)
    (line,) = said(raw)
    assert line.startswith("jumps of the rotation") and line.endswith("1 episode (train_5)")


def test_rates_that_disagree(raw):
    for number in (2, 4):
        write_video(raw / f"videos/train/{number}/rgb.mp4", moving_frames(FRAMES, 32, 48), fps=30)
    assert said(raw) == [
        "videos say 30 fps, taken as 5 (actions.fps): 2 episodes (train_2, train_4)"
    ]


def test_videos_that_are_longer(raw):
    for number in range(5):
        write_video(raw / f"videos/train/{number}/rgb.mp4", moving_frames(FRAMES + 3, 32, 48))
    assert said(raw) == [
        "videos hold more frames than there are states, the rest is unused: 5 episodes (train_0, "
        "train_1, train_2, ...)"
    ]
