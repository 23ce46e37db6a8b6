"""Rollouts: exact seams, N + 1 frames, the same for the same seed, whatever rolls out beside."""

import numpy as np
import pytest
import torch

from cosmos_wds.data.actions import ActionContract, relative_actions
from cosmos_wds.errors import CheckpointError
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.rollout.inputs import rollout_actions
from cosmos_wds.rollout.metrics import psnr
from cosmos_wds.rollout.rollout import rollout
from cosmos_wds.train.interval import mean_interval, t_point
from cosmos_wds.train.run import LoadedRun
from tests.conftest import moving_frames, tiny_states
from tests.golden_vectors import read_golden
from tests.test_edm import reference_denoiser
from tests.tiny_run import PLACE, planted_run, random_run, tiny_recipe


def grey(*levels):
    return np.stack([np.full((16, 32, 3), level, np.uint8) for level in levels])


def some_actions(rollouts, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.02, (rollouts, count, 7))


@pytest.mark.parametrize("frames", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_every_frame_follows_from_the_one_before_and_its_action(frames, count):
    """Seams neither repeat, skip nor lag: frame i is the first plus the sum of i actions."""
    run = planted_run(window={"frames": frames}, infer={"steps": 2})
    rng = np.random.default_rng(count)
    actions = np.zeros((3, count, 7))
    actions[:, :, 0] = rng.integers(-9, 10, (3, count))
    video = rollout(run, grey(90, 120, 150), actions, seed=0)
    assert video.shape == (3, count + 1, 16, 32, 3) and video.dtype == np.uint8
    levels = np.array([[90], [120], [150]]) + np.cumsum(
        np.pad(actions[:, :, 0], ((0, 0), (1, 0))), axis=1
    )
    assert np.array_equal(video, np.broadcast_to(levels[..., None, None, None], video.shape))


def test_frame_zero_is_the_given_picture_resized():
    run = random_run()
    picture = moving_frames(1, 16, 32)
    video = rollout(run, picture, some_actions(1, 2), seed=0)
    assert np.array_equal(video[0, 0], picture[0])
    large = moving_frames(1, 64, 96)
    assert rollout(run, large, some_actions(1, 1), seed=0).shape == (1, 2, 16, 32, 3)


@pytest.mark.parametrize("frames", [2, 3])
def test_a_rollout_does_not_depend_on_the_others(frames):
    first, actions = moving_frames(5, 16, 32), some_actions(5, 5)
    alone = random_run(window={"frames": frames}, infer={"batch": 1})
    several = random_run(window={"frames": frames}, infer={"batch": 4})
    a, b = (rollout(run, first, actions, seed=7).astype(int) for run in (alone, several))
    assert np.abs(a - b).max() <= 1  # the order of sums in a matrix product
    other = some_actions(5, 5, seed=1)
    other[0], other_first = actions[0], first[::-1].copy()
    other_first[0] = first[0]
    c = rollout(several, other_first, other, seed=7).astype(int)
    assert np.abs(c[0] - b[0]).max() <= 1 and np.abs(c[1] - b[1]).max() > 5


def test_the_same_seed_gives_the_same_frames():
    run, first, actions = random_run(), moving_frames(2, 16, 32), some_actions(2, 3)
    torch.manual_seed(1)
    one = rollout(run, first, actions, seed=3)
    torch.manual_seed(2)
    np.random.seed(4)
    assert np.array_equal(one, rollout(run, first, actions, seed=3))
    assert not np.array_equal(one, rollout(run, first, actions, seed=4))
    assert not np.array_equal(one, rollout(run, first, some_actions(2, 3, seed=9), seed=3))
    assert not np.array_equal(one, rollout(run, first, actions, seed=3, steps=6))
    twice = rollout(run, first[[0, 0]], actions[[0, 0]], seed=3)
    assert not np.array_equal(twice[0], twice[1]), "rollouts of one batch have noise of their own"


@pytest.mark.parametrize("frames", [2, 3])
def test_a_longer_rollout_begins_like_a_shorter_one(frames):
    run = random_run(window={"frames": frames})
    first, actions = moving_frames(2, 16, 32), some_actions(2, 6)
    long = rollout(run, first, actions, seed=0)
    short = rollout(run, first, actions[:, :4], seed=0)
    assert np.array_equal(long[:, :5], short)


def test_noise_per_frame_and_as_the_reference():
    own, reference = (
        planted_run(infer={"noise": noise, "steps": 1}) for noise in ("per_frame", "reference")
    )
    for run in (own, reference):
        rollout(run, grey(100, 100), np.zeros((2, 3, 7)), seed=5)
    seen = [s["noise"] for s in own.denoiser.seen[::2]]
    assert len({tuple(n.flatten().tolist()) for batch in seen for n in batch}) == 6
    golden = np.random.RandomState(5).standard_normal((1, 1, 2, 4, 8)).astype(np.float32)
    for batch in (s["noise"] for s in reference.denoiser.seen):
        for noise in batch:
            assert np.array_equal(noise.numpy(), golden[0, :, 0])


class KeepingTokenizer:
    """Gives a prepared latent for any picture, and keeps the latents that it shall decode."""

    factor, channels, digest = 8, 16, "keeping"

    def __init__(self, latent):
        self.latent, self.kept = latent, []

    def encode(self, video):
        return self.latent

    def decode(self, latent):
        self.kept.append(latent)
        return torch.zeros(1, 3, latent.shape[2], 48, 80, dtype=torch.uint8)

    def to(self, device):
        return self


@pytest.mark.parametrize("steps", [35, 5])
def test_a_rollout_equals_the_reference(steps):
    """Seed to latent through the whole of `rollout`, against what the reference generated."""
    golden, _ = read_golden("inference_loop")
    tokenizer = KeepingTokenizer(golden["in.condition_latent"][:, :, :1])
    recipe = tiny_recipe(
        window={"height": 48, "width": 80},
        tokenizer={"kind": "cosmos"},
        infer={"noise": "reference", "steps": steps},
    )
    run = LoadedRun(
        denoiser=reference_denoiser()[0].eval().requires_grad_(False),
        tokenizer=tokenizer,
        recipe=recipe,
        contract=ActionContract(scale=(1.0,) * 7, fps=4.0),
        place=PLACE,
        audit="golden",
    )
    actions = golden["in.action"].double().numpy()
    video = rollout(run, moving_frames(1, 48, 80), actions, seed=1)
    assert video.shape == (1, 2, 48, 80, 3)
    [latent] = tokenizer.kept
    wanted = golden[f"steps{steps}.sample"]
    assert (latent[:, :, 0] - wanted[:, :, 1]).abs().max() <= 2e-5 * wanted.std()


def test_the_network_gets_scaled_actions_the_data_s_rate_and_the_recipe_s_augmentation():
    contract = ActionContract(scale=(20.0, *(1.0,) * 6), fps=6.0)
    run = planted_run(contract=contract, window={"interval": 3}, infer={"augment_sigma": 0.0015})
    actions = np.zeros((1, 2, 7))
    actions[0, :, 0] = 0.5
    video = rollout(run, grey(50), actions, seed=0)
    assert video[0, :, 0, 0, 0].tolist() == [50, 60, 70]
    assert {s["fps"].item() for s in run.denoiser.seen} == {2.0}
    assert {s["sigma"] for s in run.denoiser.seen} == {0.0015}


@pytest.mark.parametrize("frames, batch, told", [(2, 4, [2] * 5), (3, 1, [2, 2, 1] * 2)])
def test_progress_counts_frames(frames, batch, told):
    run = planted_run(window={"frames": frames}, infer={"batch": batch})
    counts = []
    rollout(run, grey(1, 2), np.zeros((2, 5, 7)), seed=0, on_frame=counts.append)
    assert counts == told


def test_a_model_without_actions_is_refused():
    run = planted_run(contract=None)
    with pytest.raises(CheckpointError, match=r"planted\.pt: a model without actions"):
        rollout(run, grey(1), np.zeros((1, 1, 7)), seed=0)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("frames", [2, 3, 4])
def test_actions_of_a_rollout_are_those_of_its_windows(frames, interval):
    state, window = tiny_states(16), WindowSettings(frames=frames, interval=interval)
    for frame in ("previous", "first"):
        contract = ActionContract(frame=frame)
        action = relative_actions(state).astype(np.float32)
        rows = rollout_actions(contract, state, action, window=window, count=7)
        assert rows.shape == (7, 7)
        for at in range(0, 7 - frames + 2, frames - 1):
            wanted = contract.window_actions(
                state, action, start=at * interval, frames=frames, interval=interval
            )
            np.testing.assert_allclose(rows[at : at + frames - 1], wanted)


def test_psnr():
    truth = np.full((2, 4, 4, 3), 100, np.uint8)
    off = truth + np.array([10, 0], np.uint8)[:, None, None, None]
    values = psnr(off, truth)
    assert values[0] == pytest.approx(10 * np.log10(255**2 / 100))
    assert values[1] == pytest.approx(58.92, abs=0.01)  # equal frames are not infinitely good
    assert np.array_equal(psnr(truth, off), values), "uint8 must not wrap around"


def test_interval():
    known = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 9: 2.262, 23: 2.069, 100: 1.984}
    for freedom, point in known.items():
        assert t_point(freedom) == pytest.approx(point, abs=1e-3)
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (mean, high - mean) == (2.5, pytest.approx(3.1824 * 1.29099 / 2, rel=1e-4))
    assert mean - low == pytest.approx(high - mean)
    assert np.isnan(mean_interval(np.array([1.0])).low)
