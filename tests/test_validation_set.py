"""What validation looks at: spread over the split, the same each time, shared by all ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.reader import VideoReader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.recipe import DiffusionSettings
from cosmos_wds.rollout.episodes import held_out
from cosmos_wds.train.validation_set import (
    LEVELS,
    ValidationSet,
    choose_windows,
    fixed_draws,
    noise_levels,
)
from tests.test_validate import WATCH, recipe_of
from tests.tiny_run import with_eval
from tests.training import ALONE, small_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"), val=4)


def test_windows_are_spread_over_all():
    counts = np.array([5, 0, 1, 30, 4])
    rows, starts = choose_windows(counts, 20, seed=0)
    assert (starts < counts[rows]).all() and (starts >= 0).all()
    assert len({*zip(rows.tolist(), starts.tolist(), strict=True)}) == 20
    assert np.bincount(rows, minlength=5).tolist() == pytest.approx(counts / 2, abs=1)
    again = choose_windows(counts, 20, seed=0)
    assert np.array_equal(rows, again[0]) and np.array_equal(starts, again[1])
    assert not np.array_equal(starts, choose_windows(counts, 20, seed=1)[1])
    rows, starts = choose_windows(counts, 40, seed=0)
    assert len({*zip(rows.tolist(), starts.tolist(), strict=True)}) == 40


def test_noise_levels_stand_for_equal_shares_of_training():
    diffusion = DiffusionSettings(p_mean=4.2, p_std=0.6)
    levels = noise_levels(diffusion)
    drawn = np.exp(4.2 + 0.6 * np.random.default_rng(0).standard_normal(100_000))
    below = [(drawn < level).mean() for level in levels]
    assert below == pytest.approx([(i + 0.5) / LEVELS for i in range(LEVELS)], abs=0.01)


def test_draws_are_those_of_the_window_and_hide_nothing():
    diffusion = DiffusionSettings(given_drop=0.9, action_drop=0.9, conditioning="reference")
    one = fixed_draws(diffusion, [3, 8, 11], seed=1, shape=(2, 3, 4, 4))
    two = fixed_draws(diffusion, [11], seed=1, shape=(2, 3, 4, 4))
    assert torch.equal(one.epsilon[2], two.epsilon[0])
    assert torch.equal(one.augment_noise[2], two.augment_noise[0])
    assert one.sigma.tolist() == pytest.approx([noise_levels(diffusion)[i] for i in (3, 0, 3)])
    assert one.is_given.all() and one.is_visible.all() and one.has_action.all()
    other = fixed_draws(diffusion, [11], seed=2, shape=(2, 3, 4, 4))
    assert not torch.equal(two.epsilon, other.epsilon)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_ranks_share_the_windows(shards, world):
    chosen = ValidationSet(recipe_of(shards, "-"))
    shares = [chosen.share(rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert np.concatenate(shares)[:9].tolist() == [*range(9)]


def test_the_shuffle_gives_no_window_its_own(shards):
    """Of ranks that read apart, each gets what one alone would get."""
    recipe = recipe_of(shards, "-", watch={**WATCH, "windows": 28})
    run = SimpleNamespace(
        ranks=ALONE, recipe=recipe, latent_shape=(16, 2, 8, 12), lanes=range(4),
        tokenizer=SimpleNamespace(encode=lambda video: video.float()),
    )  # fmt: skip
    chosen = ValidationSet(recipe)
    held = chosen.read_windows(run)
    assert sorted(held.other.tolist()) == sorted(held.action.tolist())
    index = SplitIndex.load(shards, "val")
    contract = index.contract
    for row, start, action, other in zip(
        chosen.rows, chosen.starts, held.action, held.other, strict=True
    ):
        every = contract.scaled(index.read_array(int(row), "action.npy"))
        assert np.array_equal(action[0], every[start])
        assert not (every == other[0].numpy()).all(1).any(), "it is of another episode"


def test_episodes_are_read_whole(shards):
    """What the tests above take for the truth is what the reader gives."""
    recipe = with_eval(recipe_of(shards, "-"), actions=4)
    reader = VideoReader(ShardSets.load(recipe.data, "val"), recipe.window)
    held = held_out(recipe, reader.sets.contract)
    assert np.array_equal(reader.read(2).frames[:5], held.frames[2])
