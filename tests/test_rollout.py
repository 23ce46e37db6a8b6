"""Rollouts: exact seams, N + 1 frames, the same for the same seed, whatever rolls out beside."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos_wds.data.actions import ActionContract, integrate, relative_actions
from cosmos_wds.diffusion.noise import Draws
from cosmos_wds.diffusion.rollout import rollout_noise, sample_window
from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.recipe import WindowSettings, with_infer
from cosmos_wds.rollout import ready as readying
from cosmos_wds.rollout.inputs import chained, rollout_actions
from cosmos_wds.rollout.metrics import psnr
from cosmos_wds.rollout.ready import hold, ready
from cosmos_wds.rollout.rollout import rolled, rollout
from cosmos_wds.train.interval import mean_interval, t_point
from tests.conftest import moving_frames, tiny_states
from tests.tiny_run import AddingDenoiser, planted_run, random_run


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


class PaintingDenoiser(AddingDenoiser):
    """Paints, into every frame, how many actions lead to it from the first frame of all.

    Each action is 1, and adds itself to what the frame before shows; under a contract that counts
    poses from a window's first frame, each is what has come together since, and adds to that.
    """

    def __init__(self, accumulate):
        super().__init__()
        self.accumulate, self.windows = accumulate, 0

    def denoise(self, x, sigma, *, given, action, fps, augment_sigma, augment_noise, **_):
        self.windows += sigma.min().item() < 0.0021
        since = action[:, :, 0] if self.accumulate else action[:, :, 0].cumsum(1)
        since = since[:, None, :, None, None].expand(-1, -1, -1, *given.shape[2:])
        return torch.cat([given[:, :, None], given[:, :, None] + since], dim=2)


@pytest.mark.parametrize("recondition", ["latent", "pixels"])
@pytest.mark.parametrize("frame", ["previous", "first"])
@pytest.mark.parametrize("trained", [2, 5])
@pytest.mark.parametrize("count", [36, 37])
@pytest.mark.parametrize("each", [1, 3, 12])
def test_frame_numbers_over_seams(each, count, trained, frame, recondition):
    """No frame is twice there, late or lost, and the tail is kept: N actions, N + 1 frames."""
    run = planted_run(
        contract=ActionContract(scale=(1.0,) * 7, frame=frame),
        window={"frames": trained},
        model={"max_frames": 13},
        infer={"frames_per_call": each, "recondition": recondition, "steps": 2},
    )
    run = replace(run, denoiser=PaintingDenoiser(accumulate=frame == "first"))
    one = np.array([1.0, 0, 0, 0, 0, 0, 1])
    actions = chained(run.contract, np.tile(one, (count, 1)), run.recipe.call_window)
    told = []
    video = rollout(run, grey(0), actions[None], seed=0, on_frame=told.append)
    assert video.shape == (1, count + 1, 16, 32, 3)
    assert np.array_equal(video[0, :, 5, 7, 1], np.arange(count + 1))
    assert run.denoiser.windows == -(-count // each)
    assert told == [each] * (count // each) + [count % each] * (count % each > 0)


@pytest.mark.parametrize("each", [1, 3])
def test_recorded_states_become_the_actions_of_the_calls(each):
    contract = ActionContract(frame="first")
    run = random_run(contract=contract, infer={"frames_per_call": each})
    state = tiny_states(8)
    rows = rollout_actions(contract, state, state[1:], window=run.recipe.call_window, count=7)
    for at in range(0, 7, each):
        part = state[at : at + each + 1]
        wanted = relative_actions(part, accumulate=True)
        np.testing.assert_allclose(rows[at : at + each], wanted)
        back = integrate(part[0], rows[at : at + each], accumulate=True)
        np.testing.assert_allclose(back, part, atol=1e-9)


def test_frames_per_call_is_part_of_what_the_network_sees():
    first, actions = moving_frames(1, 16, 32), some_actions(1, 6)
    runs = (random_run(infer={"frames_per_call": each}) for each in (0, 1, 3))
    trained, one, three = (rollout(run, first, actions, seed=0) for run in runs)
    assert np.array_equal(trained, one) and not np.array_equal(one, three)


def test_another_number_of_frames_than_trained_is_told_once(capsys):
    readying._tell_untrained.cache_clear()
    first, actions = grey(3), np.zeros((1, 2, 7))
    for each in (0, 1):
        rollout(planted_run(infer={"frames_per_call": each, "steps": 1}), first, actions, seed=0)
    assert not capsys.readouterr().err
    for _ in range(2):
        rollout(planted_run(infer={"frames_per_call": 3, "steps": 1}), first, actions, seed=0)
    (line,) = capsys.readouterr().err.splitlines()
    assert "generates 3 frames together, and the model was trained to generate 1" in line


def test_what_a_model_cannot_do_is_one_line():
    recipe = random_run().recipe
    for changes, told in (
        ({"frames_per_call": 8}, "that is 9, and the model's position tables end at 8"),
        ({"frames_per_call": -1}, "frames_per_call = -1: must be 0 or more"),
        ({"guidance": 1.5}, "never saw a window without its actions; use 0, or train"),
        ({"guidance": -1.0}, "guidance = -1.0: from 0 to 100"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"recondition": "frames"}, "'latent' or 'pixels'"),
        ({"steps": 0}, "steps = 0: must be 1 or more"),
    ):
        with pytest.raises(ConfigError, match="\\[infer\\] ") as refusal:
            with_infer(recipe, **changes)
        assert told in str(refusal.value)
    model = recipe.model.model_copy(update={"actions": "reference", "position_tables": False})
    reference = recipe.model_copy(update={"model": model})
    with pytest.raises(ConfigError, match="looks at the first action of a call only; use 1"):
        with_infer(reference, frames_per_call=2)
    assert with_infer(reference, frames_per_call=1).call_window.frames == 2
    with pytest.raises(ConfigError, match="steps = 0"):
        rollout(random_run(), moving_frames(1, 16, 32), some_actions(1, 1), seed=0, steps=0)


def test_guidance_moves_away_from_what_would_follow_without_actions():
    run = random_run(diffusion={"action_drop": 0.1})
    infer = run.recipe.infer.model_copy(update={"guidance": 1.5, "steps": 1})
    shape, fps = (16, 3, 4, 8), torch.full((2,), 5.0)
    noise = rollout_noise(1, shape, kind="per_frame", seed=0, numbers=[0, 1])
    given, action = noise[:, :, 2] / 2, torch.randn(2, 2, 7, generator=torch.Generator())
    yes = torch.ones(2, dtype=torch.bool)

    def predicted(x, sigma, has_action):
        level = torch.full((2,), sigma)
        augment = torch.full((2,), 0.001)
        draws = Draws(level, x, augment, noise[:, :, 0], yes, yes, has_action)
        return run.denoiser.predict(x, level, given=given, action=action, fps=fps, draws=draws)

    def guided(x, sigma):
        seen, hidden = predicted(x, sigma, yes), predicted(x, sigma, ~yes)
        assert (seen - hidden).abs().max() > 0.01 and torch.equal(seen[:, :, 0], given)
        return seen + 1.5 * (seen - hidden)

    with torch.no_grad():
        x0 = guided(80 * noise, 80.0)
        x = 80 * noise + (1 - 0.002 / 80) * (x0 - 80 * noise)
        wanted = guided(x, 0.002)
        found = sample_window(run.denoiser, given, action, fps=fps, noise=noise, infer=infer)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_guidance_costs_nothing_when_it_is_off_and_goes_with_every_batch():
    calls = []
    run = random_run(diffusion={"action_drop": 0.1}, infer={"steps": 2})
    run.denoiser.net.register_forward_pre_hook(lambda _, x: calls.append(len(x[0])))
    first, actions = moving_frames(3, 16, 32), some_actions(3, 2)
    plain = rollout(run, first, actions, seed=0)
    assert calls == [3] * 6
    guided = replace(run, recipe=with_infer(run.recipe, guidance=2.0, batch=2))
    moved = rollout(guided, first, actions, seed=0)
    assert calls[6:] == [4] * 6 + [2] * 6
    assert np.array_equal(moved[:, 0], plain[:, 0]) and not np.array_equal(moved[:, 1], plain[:, 1])


def test_latents_are_what_the_frames_are_decoded_from():
    for infer in ({}, {"recondition": "pixels"}):
        run = random_run(window={"frames": 3}, infer=infer)
        found = rolled(run, moving_frames(2, 16, 32), some_actions(2, 5), seed=0)
        assert found.latents.shape == (2, 6, 16, 4, 8) and found.latents.dtype == np.float32
        latents = torch.from_numpy(found.latents).transpose(1, 2)
        video = run.tokenizer.decode(latents).permute(0, 2, 3, 4, 1).numpy().astype(int)
        assert np.abs(video[:, 1:] - found.frames[:, 1:]).max() <= 1
        first = torch.from_numpy(found.frames[:, :1]).permute(0, 4, 1, 2, 3).contiguous()
        torch.testing.assert_close(latents[:, :, :1], run.tokenizer.encode(first))


def test_numbers_and_seeds_are_a_rollout_s_own():
    run, first, actions = random_run(), moving_frames(3, 16, 32), some_actions(3, 2)
    whole = rollout(run, first, actions, seed=3)
    part = rollout(run, first[1:], actions[1:], seed=3, numbers=[1, 2]).astype(int)
    assert np.abs(part - whole[1:]).max() <= 1
    assert not np.array_equal(rollout(run, first[1:], actions[1:], seed=3)[0], part[0])
    seeds = rollout(run, first, actions, seed=[7, 3, 7]).astype(int)
    assert np.abs(seeds[0] - rollout(run, first[:1], actions[:1], seed=7)[0]).max() <= 1
    assert np.abs(seeds[2] - rollout(run, first[2:], actions[2:], seed=7)[0]).max() <= 1
    equal = rollout(run, first[[0, 0]], actions[[0, 0]], seed=[5, 5])
    assert np.array_equal(equal[0], equal[1])


def test_matrices_are_held_in_the_type_they_are_computed_in():
    """Bit for bit what autocast makes of float32 weights, without turning them at each call."""
    one, two = random_run(), random_run()
    x, action = torch.randn(2, 16, 2, 4, 8), torch.randn(2, 1, 7)
    told = {"given": x[:, :, 0], "action": action, "fps": torch.full((2,), 5.0)}
    told |= {"augment_sigma": 0.001, "augment_noise": x[:, :, 1]}
    hold(two.denoiser, torch.bfloat16)
    kinds = {name: p.dtype for name, p in two.denoiser.net.named_parameters()}
    assert kinds["blocks.0.mlp.up.weight"] == kinds["action_cond.fc1.bias"] == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        a, b = (run.denoiser.denoise(x, torch.full((2,), 2.0), **told) for run in (one, two))
    assert torch.equal(a, b)


@pytest.mark.parametrize("actions", ["per_frame", "reference"])
def test_what_a_window_s_calls_share_is_made_once_and_changes_nothing(actions):
    run = random_run(model={"actions": actions}, window={"frames": 3 - (actions == "reference")})
    made = []
    for part in (run.denoiser.net.action_shared, run.denoiser.net.position):
        part.register_forward_hook(lambda *_: made.append(1))
    rollout(run, moving_frames(1, 16, 32), some_actions(1, 4), seed=0)
    windows = 2 if actions == "per_frame" else 4
    assert len(made) == 2 * windows  # of 4 calls each
    x, action = torch.randn(2, 16, 3, 4, 8), torch.randn(2, 2, 7)
    told = {"action": action, "fps": torch.full((2,), 5.0)}
    condition = {"given": x[:, :, 0], "augment_sigma": 0.001, "augment_noise": x[:, :, 1]}
    sigma, terms = torch.full((2,), 2.0), run.denoiser.terms(x, **told)
    one = run.denoiser.denoise(x, sigma, **told, **condition)
    assert torch.equal(one, run.denoiser.denoise(x, sigma, **told, **condition, terms=terms))


def test_the_precision_of_rollouts_is_the_recipe_s():
    assert ready(random_run()).precision == torch.float32  # as in training
    run = random_run(infer={"precision": "bfloat16"})
    coarse = rollout(run, moving_frames(1, 16, 32), some_actions(1, 2), seed=0)
    fine = rollout(random_run(), moving_frames(1, 16, 32), some_actions(1, 2), seed=0)
    assert not np.array_equal(coarse, fine)
    assert np.abs(coarse[:, 1].astype(int) - fine[:, 1]).mean() < 20


def test_compiled_blocks_make_the_same_pictures(monkeypatch):
    compiled = []

    def through_dynamo(module, compile=torch.nn.Module.compile):
        compiled.append(module)
        compile(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", through_dynamo)
    first, actions = moving_frames(3, 16, 32), some_actions(3, 2)
    plain = rollout(random_run(), first, actions, seed=0).astype(int)
    run = random_run(infer={"compile": True, "batch": 2})
    for _ in range(2):  # once is enough
        assert np.abs(rollout(run, first, actions, seed=0) - plain).max() <= 1
        assert compiled == [*run.denoiser.net.blocks]


def test_compiling_without_a_compiler_is_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="takes a C.. compiler, and there is no no-such-compiler"):
        rollout(random_run(infer={"compile": True}), grey(1), some_actions(1, 1), seed=0)


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
