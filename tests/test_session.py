"""Sessions: one action, one frame; the frames of rollouts; worlds that do not touch each other."""

import numpy as np
import pytest

from cosmos_wds.data.actions import ActionContract, integrate, relative_actions
from cosmos_wds.diffusion.guardrail import Blocked
from cosmos_wds.errors import CheckpointError, DataError
from cosmos_wds.rollout.rollout import rolled, rollout
from cosmos_wds.rollout.session import Session
from tests.conftest import moving_frames
from tests.tiny_run import UNSCALED, planted_run, random_run

pytestmark = pytest.mark.usefixtures("one_thread")


def grey(*levels):
    return np.stack([np.full((16, 32, 3), level, np.uint8) for level in levels])


def some_actions(worlds, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.02, (worlds, count, 7))


def played(session, actions):
    """First frames and those of every step, (R, N+1, H, W, 3)."""
    frames = [session.frames, *(session.step(row) for row in actions.transpose(1, 0, 2))]
    return np.stack(frames, axis=1)


@pytest.mark.parametrize("recondition", ["latent", "pixels"])
@pytest.mark.parametrize("noise", ["per_frame", "reference"])
def test_a_session_of_two_frame_windows_is_a_rollout(recondition, noise):
    run = random_run(infer={"recondition": recondition, "noise": noise})
    first, actions = moving_frames(3, 16, 32), some_actions(3, 5)
    video = played(Session(run, first, seed=7), actions)
    assert np.array_equal(video, rollout(run, first, actions, seed=7))
    assert len(np.unique(video[:, 1:].reshape(15, -1), axis=0)) == 15


@pytest.mark.parametrize("recondition", ["latent", "pixels"])
def test_the_last_frame_of_each_longer_window_is_the_rollout_s(recondition):
    run = random_run(window={"frames": 4}, infer={"recondition": recondition})
    first, actions = moving_frames(2, 16, 32), some_actions(2, 9)
    video = played(Session(run, first, seed=3), actions)
    whole = rollout(run, first, actions, seed=3)
    assert np.array_equal(video[:, ::3], whole[:, ::3])
    assert not np.array_equal(video, whole), "frames between are sampled before all is known"


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_each_step_adds_its_action(frames):
    """No step is lost, doubled or late, wherever the window ends."""
    run = planted_run(window={"frames": frames}, infer={"steps": 1})
    actions = np.zeros((2, 11, 7))
    actions[:, :, 0] = np.random.default_rng(0).integers(-5, 6, (2, 11))
    video = played(Session(run, grey(100, 150), seed=0), actions)
    levels = np.array([[100], [150]]) + np.pad(actions[:, :, 0], ((0, 0), (1, 0))).cumsum(1)
    assert np.array_equal(video[..., 0, 0, 0], levels)


def test_what_is_to_come_is_standing_still_with_the_gripper_as_it_is():
    run = planted_run(window={"frames": 4}, infer={"steps": 1})
    session = Session(run, grey(50), seed=0)
    for number in (1.0, 2.0):
        session.step(np.full((1, 7), number))
    seen = run.denoiser.actions[-1][0].numpy()
    assert np.array_equal(seen[:, 0], [1, 2, 0])
    assert np.array_equal(seen[:, 6], [1, 2, 2])


def test_a_contract_that_counts_from_the_window_s_first_frame():
    contract = ActionContract(frame="first", scale=(1.0,) * 7)
    run = planted_run(contract=contract, window={"frames": 4}, infer={"steps": 1})
    session, actions = Session(run, grey(50), seed=0), some_actions(1, 4)
    for row in actions.transpose(1, 0, 2):
        session.step(row)
    states = integrate(np.zeros(7), actions[0, :3])
    wanted = relative_actions(states, accumulate=True)
    assert np.allclose(run.denoiser.actions[-3][0].numpy(), wanted, atol=1e-6)
    assert np.allclose(run.denoiser.actions[-1][0, 0].numpy(), actions[0, 3], atol=1e-6)


@pytest.mark.parametrize("frames", [2, 3])
def test_a_world_does_not_depend_on_the_others(frames):
    run = random_run(window={"frames": frames}, infer={"batch": 2})
    first, actions = moving_frames(3, 16, 32), some_actions(3, 4)
    several = played(Session(run, first, seed=[5, 6, 7]), actions).astype(int)
    for world in range(3):
        one = played(Session(run, first[[world]], seed=[5 + world]), actions[[world]])
        assert np.abs(one[0] - several[world]).max() <= 1  # the order of sums
        again = played(Session(run, first[[world]], seed=5 + world), actions[[world]])
        assert np.array_equal(one, again), "alone, one seed and a list of one are the same"


def test_worlds_begin_anew_in_the_middle_of_the_others_windows():
    run = random_run(window={"frames": 3})
    first, actions = moving_frames(4, 16, 32), some_actions(3, 5)
    session = Session(run, first[:3], seed=[1, 2, 3])
    before = played(session, actions[:, :1])
    session.reset([1], first[3:], seed=[9])
    assert np.array_equal(session.frames[1], first[3])
    assert np.array_equal(session.frames[[0, 2]], before[[0, 2], 1])
    after = played(session, actions[:, 1:]).astype(int)
    anew = played(Session(run, first[3:], seed=[9]), actions[[1], 1:]).astype(int)
    assert np.abs(after[1] - anew[0]).max() <= 1
    untouched = played(Session(run, first[:3], seed=[1, 2, 3]), actions).astype(int)
    assert np.abs(after[[0, 2]] - untouched[[0, 2], 1:]).max() <= 1


def test_a_reset_without_a_seed_keeps_it():
    run, actions = random_run(), some_actions(2, 3)
    first = moving_frames(2, 16, 32)
    session = Session(run, first, seed=4)
    before = played(session, actions)
    session.reset([1, 0], first[[1, 0]])
    assert np.array_equal(played(session, actions), before)


def test_first_frames_are_resized():
    session = Session(random_run(), moving_frames(1, 64, 96), seed=0)
    assert session.frames.shape == (1, 16, 32, 3) == session.step(np.zeros((1, 7))).shape


def test_frames_given_out_are_the_caller_s():
    session = Session(planted_run(infer={"steps": 1}), grey(90), seed=0)
    session.frames[:] = 0
    session.step(np.zeros((1, 7)))[:] = 0
    assert session.frames.mean() == 90


@pytest.mark.parametrize(
    "action, told",
    [
        (np.zeros((1, 6)), r"actions are \(1, 6\); 1 worlds take \(1, 7\): x y z"),
        (np.zeros((2, 7)), r"actions are \(2, 7\)"),
        (np.array([[0, 0, np.nan, 0, 0, 0, 1.0]]), "action of world 0: z = nan"),
    ],
)
def test_actions_that_are_none_change_nothing(action, told):
    session = Session(planted_run(infer={"steps": 1}), grey(90), seed=0)
    with pytest.raises(DataError, match=told):
        session.step(action)
    assert session.step(np.full((1, 7), 1.0))[0, 0, 0, 0] == 91


def test_a_model_without_actions_is_refused():
    with pytest.raises(CheckpointError, match="a model without actions"):
        Session(planted_run(contract=None), grey(1), seed=0)


def test_a_guardrail_sees_every_frame_and_what_it_refuses_is_not_a_step(tmp_path, monkeypatch):
    (tmp_path / "strict_session.py").write_text(
        "from cosmos_wds.diffusion.guardrail import Blocked\n"
        "def pale(frames):\n"
        "    if frames.max() > 200:\n"
        "        raise Blocked('too bright')\n"
        "    return frames // 2\n"
    )
    monkeypatch.chdir(tmp_path)
    run = planted_run(infer={"steps": 1, "guardrail": "strict_session:pale"})
    session = Session(run, grey(100), seed=0)
    assert session.frames.max() == 50
    move = np.full((1, 7), 60.0)
    assert session.step(move).max() == 80  # of 160, which is what the next frame follows from
    with pytest.raises(Blocked, match="too bright"):
        session.step(move)
    assert session.step(move / 2).max() == 95
    with pytest.raises(Blocked, match="too bright"):
        session.reset([0], grey(255))
    assert session.frames.max() == 95
    with pytest.raises(Blocked, match="too bright"):
        Session(run, grey(255), seed=0)


def test_settings_of_unscaled_actions_reach_the_network():
    run = planted_run(contract=UNSCALED, infer={"steps": 2, "augment_sigma": 0.0015})
    Session(run, grey(1), seed=0, steps=3).step(np.zeros((1, 7)))
    assert len(run.denoiser.seen) == 4
    assert {s["sigma"] for s in run.denoiser.seen} == {0.0015}
    frames = rolled(run, grey(1), np.zeros((1, 1, 7)), seed=0).frames
    assert frames.shape == (1, 2, 16, 32, 3) and len(run.denoiser.seen) == 4 + 3
