"""The control score: 0 for a planted model that ignores actions, 1 for one that obeys."""

import numpy as np
import pytest
import torch

from cosmos_wds.data.actions import ActionContract, relative_actions
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.rollout.control import loss_gap, share
from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.evaluate import evaluate
from cosmos_wds.rollout.evaluation import TRUE, WRONG
from cosmos_wds.rollout.inputs import chained
from cosmos_wds.rollout.ready import ready
from cosmos_wds.rollout.wrong import others, seen_from_before, wrong_actions
from cosmos_wds.train.validation_set import fixed_draws
from tests.conftest import moving_frames, tiny_states
from tests.tiny_run import AddingDenoiser, DeafDenoiser, planted_run, random_run


def grey_episodes(count=6, steps=5, seed=0):
    """Episodes whose pictures are one grey level, moved by the first number of each action."""
    rng = np.random.default_rng(seed)
    actions = np.zeros((count, steps, 7))
    actions[:, :, 0] = rng.integers(-9, 10, (count, steps))
    levels = np.cumsum(np.pad(actions[:, :, 0], ((0, 0), (1, 0))), axis=1) + 120
    frames = np.broadcast_to(levels[..., None, None, None], (*levels.shape, 16, 32, 3))
    keys = tuple(f"val_{i}" for i in range(count))
    return HeldOut(keys, ("",) * count, frames.astype(np.uint8), actions, "0")


class Halfway(AddingDenoiser):
    """Goes half of the way that actions say."""

    def predicted(self, given, action):
        return super().predicted(given, action / 2)


def test_a_model_that_obeys_scores_one():
    control = evaluate(planted_run(), grey_episodes()).control
    assert control.score == (1, 1, 1)
    assert set(control.shares) == set(WRONG) and set(control.shares.values()) == {(1, 1, 1)}
    assert control.gaps["psnr"]["shuffled"].low > 0 and control.loss_gap.low > 0
    assert control.gaps["latent_l2"]["zero"].mean > 0
    assert control.path is None, "the camera is not known"


def test_a_model_that_ignores_its_actions_scores_zero():
    control = evaluate(planted_run(denoiser=DeafDenoiser()), grey_episodes()).control
    assert control.score == (0, 0, 0)
    assert {*control.shares.values()} == {(0, 0, 0)}
    assert control.gaps["psnr"]["shuffled"] == control.loss_gap == (0, 0, 0)


def test_a_model_between_them_scores_between_them():
    """Half of the way leaves a quarter of the error of standing still, against zero actions."""
    control = evaluate(planted_run(denoiser=Halfway()), grey_episodes(count=20)).control
    assert control.shares["zero"].mean == pytest.approx(0.75, abs=0.02)  # levels are rounded
    score = control.score
    assert 0.2 < score.low < score.mean < score.high < 0.99


class Noisy(DeafDenoiser):
    """Ignores its actions; what it renders depends on them like noise, by their hash."""

    def predicted(self, given, action):
        seed = int(action.double().abs().sum() * 1e6) % 2**31
        noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(seed))
        return (
            super().predicted(given, action) + 4 * noise.mean((1, 2, 3))[:, None, None, None, None]
        )


def test_where_rollouts_differ_by_chance_zero_lies_in_the_interval():
    run = planted_run(denoiser=Noisy(), infer={"batch": 1})
    score = evaluate(run, grey_episodes(count=30)).control.score
    assert score.low < 0 < score.high and score.high - score.low < 0.5


def test_share_is_a_ratio_of_means_over_episodes():
    errors = {
        "shuffled": np.array([[4.0, 6.0], [10.0, 12.0]]),
        TRUE: np.array([[2.0, 2.0], [5.0, 7.0]]),
        "round_trip": np.ones((2, 2)),
    }
    found = share(errors, "shuffled")
    assert found.mean == pytest.approx((8 - 4) / (8 - 1)) and found.low < found.mean < found.high
    assert found == share(errors, "shuffled"), "the same each time"
    one = {row: values[:1] for row, values in errors.items()}
    assert share(one, "shuffled").mean == pytest.approx(3 / 4)
    assert np.isnan(share(one, "shuffled").low)
    equal = {**errors, "shuffled": errors["round_trip"]}
    assert np.isnan(share(equal, "shuffled").mean), "wrong actions that do no harm tell nothing"


@pytest.mark.parametrize("frame", ["previous", "first"])
@pytest.mark.parametrize("frames", [2, 4])
def test_wrong_actions_are_wrong_in_poses(frame, frames):
    contract, window = ActionContract(frame=frame), WindowSettings(frames=frames)
    before = np.stack([relative_actions(tiny_states(8, seed)) for seed in range(3)])
    true = np.stack([chained(contract, rows, window) for rows in before])
    assert np.allclose(seen_from_before(contract, true, window), before)
    made = wrong_actions(contract, true, window=window, kinds=WRONG)
    seen = {kind: seen_from_before(contract, rows, window) for kind, rows in made.items()}
    assert np.allclose(seen["shuffled"], before[[1, 2, 0]])
    assert np.allclose(made["shuffled"], others(true))
    assert np.allclose(seen["zero"][..., :6], 0)
    assert np.allclose(seen["zero"][..., 6], before[..., 6])
    assert np.allclose(seen["negated"][..., :6], -before[..., :6])
    assert np.allclose(seen["negated"][..., 6], 1 - before[..., 6])
    assert np.allclose(seen["shifted"], before[:, [3, 4, 5, 6, 0, 1, 2]])
    for rows in made.values():
        assert rows.shape == true.shape and not np.allclose(rows, true)


def test_the_loss_gap_is_validation_s():
    """Windows from an episode's beginning on, each loss as the network itself gives it."""
    run = random_run(window={"frames": 3}, infer={"batch": 4})
    rng = np.random.default_rng(0)
    frames = np.stack([moving_frames(6, 16, 32, i) for i in range(3)])
    actions = rng.normal(0, 0.02, (3, 5, 7))
    held = HeldOut(("a", "b", "c"), ("",) * 3, frames, actions, "0")
    model = ready(run)
    video = torch.from_numpy(frames.reshape(18, 16, 32, 3)).permute(0, 3, 1, 2)[:, :, None]
    latents = run.tokenizer.encode(video.contiguous())[:, :, 0].numpy().reshape(3, 6, -1, 4, 8)
    found = loss_gap(model, held, latents, seed=1)
    gaps = []
    for episode in range(3):
        for part, start in enumerate((0, 2)):
            latent = torch.from_numpy(latents[episode, start : start + 3])
            draws = fixed_draws(
                run.recipe.diffusion,
                [2 * episode + part],
                seed=1,
                shape=(latent.shape[1], 3, 4, 8),
            )
            other, true = (
                run.denoiser(
                    latent.transpose(0, 1)[None],
                    action=torch.from_numpy(run.contract.scaled(rows[None])),
                    fps=torch.full((1,), 5.0),
                    draws=draws,
                ).item()
                for rows in (
                    actions[(episode + 1) % 3, start : start + 2],
                    actions[episode, start : start + 2],
                )
            )
            gaps.append(other - true)
    per_episode = np.array(gaps).reshape(3, 2).mean(1)
    assert found.mean == pytest.approx(per_episode.mean(), rel=1e-4)
    assert found.high - found.mean == pytest.approx(
        4.3027 * per_episode.std(ddof=1) / np.sqrt(3), rel=1e-3
    )
    short = HeldOut(held.keys, held.texts, frames[:, :2], actions[:, :1], "0")
    assert loss_gap(model, short, latents[:, :2], seed=1) is None
