"""The gripper is found in recordings where it is, and nowhere in a picture without one."""

import numpy as np
import pytest

from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.gripper import LEAST, gripper_path, known_camera, learn
from cosmos_wds.sources.scene import make_episode

HEIGHT, WIDTH, STEPS = 48, 64, 12


@pytest.fixture(scope="module")
def held():
    made = [make_episode((7, i), height=HEIGHT, width=WIDTH) for i in range(12)]
    return HeldOut(
        keys=tuple(f"val_{i}" for i in range(len(made))),
        texts=("",) * len(made),
        frames=np.stack([one.frames[: STEPS + 1] for one in made]),
        actions=np.zeros((len(made), STEPS, 7)),
        digest="0",
        states=np.stack([one.state[: STEPS + 1] for one in made]),
        kind="demo",
    )


def test_it_is_found_within_a_pixel_or_two(held):
    still = np.broadcast_to(held.frames[:, :1], held.frames.shape)
    path = gripper_path(held, {"true": held.frames, "first": still})
    error = path.error["true"]
    assert error.shape == (12, STEPS) and np.isfinite(error).mean() > 0.93
    assert np.nanmean(error) < 1.2 and np.nanmax(error) < 4
    moved = np.linalg.norm(path.truth[:, 1:] - path.truth[:, :1], axis=-1)
    is_found = np.isfinite(path.error["first"])
    assert is_found.mean() > 0.9
    assert np.abs(path.error["first"] - moved)[is_found].mean() < 2, "it stays where it was"


def test_a_picture_without_a_gripper_has_none(held):
    places, _ = known_camera("demo", HEIGHT, WIDTH).project(held.states[..., :3])
    finder = learn(held.frames, places)[0]
    room = np.median(held.frames[0], axis=0).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    for frames in (np.stack([room] * 3), noise, np.full((2, HEIGHT, WIDTH, 3), 90, np.uint8)):
        assert np.isnan(finder(frames)).all()


def test_where_it_cannot_be_told_there_is_no_path(held):
    videos = {"true": held.frames}
    unknown = {"kind": "bridge"}, {"states": None}, {"kind": ""}
    for changes in unknown:
        assert gripper_path(HeldOut(**{**vars(held), **changes}), videos) is None
    few = {name: getattr(held, name)[: LEAST - 1] for name in ("keys", "texts", "frames", "states")}
    assert gripper_path(HeldOut(**{**vars(held), **few}), videos) is None
