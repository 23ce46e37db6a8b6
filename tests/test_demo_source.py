"""The embedded data set: the scene shows what the states say, and writing it can be interrupted."""

import json
from pathlib import Path

import numpy as np
import pytest

from cosmos_wds.data.video import decode
from cosmos_wds.errors import DataError
from cosmos_wds.sources.demo import generate
from cosmos_wds.sources.scene import MAX_FRAMES, MIN_FRAMES, make_episode, rotation
from cosmos_wds.sources.scene_solids import Camera

SMALL = {"height": 48, "width": 64}


@pytest.fixture(scope="module")
def episodes():
    return [make_episode((11, number), **SMALL) for number in range(40)]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_an_episode_is_a_function_of_its_seed():
    first, again, other = (make_episode(seed, **SMALL) for seed in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.state, again.state)
    assert first.text == again.text
    assert not np.array_equal(first.frames[0], other.frames[0])


def test_shapes_and_ranges(episodes):
    for episode in episodes:
        frames = len(episode.frames)
        assert MIN_FRAMES <= frames <= MAX_FRAMES
        assert episode.frames.shape == (frames, 48, 64, 3) and episode.frames.dtype == np.uint8
        assert episode.state.shape == (frames, 7) and np.isfinite(episode.state).all()
        assert episode.command.shape == (frames,) and set(episode.command) <= {0.0, 1.0}
        assert episode.arm_alpha.shape == (frames, 48, 64)
        assert episode.arm_alpha.min() >= 0 and episode.arm_alpha.max() <= 1
        assert np.abs(episode.state[:, 3:5]).max() <= 0.1
        assert np.abs(episode.state[:, 5]).max() <= 0.61
        assert episode.text
    gripper = np.concatenate([episode.state[:, 6] for episode in episodes])
    assert gripper.min() == 0 and gripper.max() == 1
    assert ((gripper > 0.3) & (gripper < 0.9)).any()


def test_the_arm_is_large_and_its_tool_ranges_far(episodes):
    camera = Camera(**SMALL)
    cover = [episode.arm_alpha.mean() for episode in episodes]
    columns = [camera.project(episode.state[:, :3])[0][:, 0] for episode in episodes]
    assert min(cover) >= 0.05 and 0.08 <= np.mean(cover) <= 0.18
    assert np.mean([np.ptp(column) / 64 for column in columns]) >= 1 / 3
    assert np.mean([((column >= 0) & (column < 64)).mean() for column in columns]) > 0.98


def test_the_motion_is_brisk(episodes):
    steps = [np.linalg.norm(np.diff(e.state[:, :3], axis=0), axis=1) for e in episodes]
    steps = np.concatenate(steps)
    assert 0.02 < steps.mean() < 0.05 and steps.max() < 0.1
    assert (steps < 0.005).mean() < 0.15


def test_pictures_change_where_the_arm_moves_and_nowhere_else_much(episodes):
    far, near_arm, elsewhere = [], [], []
    for episode in episodes:
        picture = episode.frames.astype(np.float32) / 255
        far.append(10 * np.log10(1 / np.mean((picture[8:] - picture[:-8]) ** 2)))
        change = np.abs(np.diff(picture, axis=0)).max(-1)
        is_arm = np.maximum(episode.arm_alpha[1:], episode.arm_alpha[:-1]) > 0
        near_arm.append(change[is_arm].mean())
        elsewhere.append(np.median(change[~is_arm]))
    assert np.mean(far) < 20  # a copy of the first frame is a poor prediction
    assert np.mean(near_arm) > 0.1
    assert np.mean(elsewhere) < 0.01  # no flicker: only shadows and blocks move there


def test_blocks_are_moved_in_many_episodes(episodes):
    """Away from the arm, first and last pictures differ by what a moved block leaves and covers."""
    moved = 0
    for episode in episodes:
        free = np.maximum(episode.arm_alpha[0], episode.arm_alpha[-1]) == 0
        colorful = np.ptp(episode.frames[[0, -1]].astype(int), axis=-1) > 110
        moved += (colorful[0] != colorful[1])[free].sum() >= 8
    assert moved >= len(episodes) // 4


def test_the_gripper_is_drawn_where_the_state_says(episodes):
    camera = Camera(**SMALL)
    for episode in episodes[:10]:
        turn = rotation(episode.state[:, 3:6])
        palm = episode.state[:, :3] + 0.1 * turn[:, :, 2]
        pixel = camera.project(palm)[0].round().astype(int)
        inside = ((pixel >= 0) & (pixel < [64, 48])).all(1)
        column, row = np.clip(pixel, 0, [63, 47]).T
        share = episode.arm_alpha[np.arange(len(pixel)), row, column]
        assert (share[inside] > 0.9).all()


def test_layout_is_bridge_and_video_matches_state(tmp_path):
    root = tmp_path / "demo"
    assert list(generate(root, seed=3, train=2, val=1, workers=1, **SMALL)) == [
        "train/0",
        "train/1",
        "val/2",
    ]
    annotation = json.loads((root / "annotation/val/2.json").read_text())
    assert annotation["episode_id"] == "2"
    state = np.array(annotation["state"])
    assert np.array_equal(state[:, 6], annotation["continuous_gripper_state"])
    action = np.array(annotation["action"])
    assert np.allclose(action[:, :6], np.diff(state[:, :6], axis=0), atol=2e-6)
    frames = decode(root / annotation["videos"][0]["video_path"])
    assert frames.shape == (len(state), 48, 64, 3)
    truth = make_episode((3, 1, 2), **SMALL).frames
    assert np.abs(frames.astype(int) - truth).mean() < 8


def test_continuing_gives_the_same_bytes(tmp_path):
    settings = {"seed": 5, "train": 3, "val": 1}  # 96x128: at widths like 64 x264 itself varies
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    list(generate(whole, workers=2, **settings))
    steps = generate(broken, workers=1, **settings)
    next(steps), next(steps)
    steps.close()
    (broken / "annotation/train/0.json").unlink()  # killed between a video and its annotation
    (broken / "videos/train/0/rgb.mp4").write_bytes(b"half a file")
    (broken / "annotation/train/.2.json.99.tmp").write_text("{")
    assert len(list(generate(broken, workers=1, **settings))) == 4
    assert files(whole) == files(broken)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.mp4")}
    list(generate(whole, workers=1, **settings))
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*.mp4")}


def test_other_settings_are_refused_before_any_work(tmp_path):
    generate(tmp_path / "demo", seed=1, train=1, val=0, **SMALL)
    with pytest.raises(DataError, match=r"seed 1 \(asked: 2\)"):
        generate(tmp_path / "demo", seed=2, train=1, val=0, **SMALL)
    with pytest.raises(DataError, match="choose an empty folder"):
        generate(tmp_path, seed=1, train=1, val=0, **SMALL)
    with pytest.raises(DataError, match="even"):
        generate(tmp_path / "odd", seed=1, train=1, val=0, height=49, width=64)
    (tmp_path / "demo/demo.json").write_text("{")
    with pytest.raises(DataError, match="not readable"):
        generate(tmp_path / "demo", seed=1, train=1, val=0, **SMALL)
