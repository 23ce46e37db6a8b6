"""Reference mode: the samples of the reference's algorithm for the same weights and seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.recipe import load_recipe, with_infer
from cosmos_wds.rollout.ready import ready
from cosmos_wds.rollout.reference import reference_rollout, with_text
from cosmos_wds.rollout.rollout import rolled
from tests.conftest import moving_frames
from tests.golden_vectors import golden_settings, read_golden
from tests.reference_rollout import rolled_out
from tests.test_edm import reference_denoiser
from tests.tiny_run import random_run

pytestmark = pytest.mark.usefixtures("one_thread")
SEED = 1  # the reference's default


class GivenLatent:
    """Gives a prepared latent for any picture; what it decodes is black."""

    factor, channels, digest = 8, 16, "given"

    def __init__(self, latent):
        self.latent = latent

    def encode(self, video):
        return self.latent[:, :, :1].expand(-1, -1, video.shape[2], -1, -1)

    def decode(self, latent):
        return torch.zeros(1, 3, latent.shape[2], 48, 80, dtype=torch.uint8)


def golden_run(steps):
    """The reference's weights of golden vectors under the reference recipe's [infer]."""
    golden, _ = read_golden("inference_loop")
    _, metadata = read_golden("train_step")
    recipe = load_recipe("bridge_reference", ["window.height=48", "window.width=80"])
    recipe = with_infer(recipe, steps=steps, precision="float32")
    run = replace(
        random_run(contract=ActionContract(scale=(1.0,) * 7, fps=4.0)),
        denoiser=reference_denoiser()[0].eval().requires_grad_(False),
        tokenizer=GivenLatent(golden["in.condition_latent"]),
        recipe=recipe.model_copy(update={"model": golden_settings(metadata)}),
    )
    return run, golden["in.action"].double().numpy(), golden[f"steps{steps}.sample"].numpy()


@pytest.mark.parametrize("steps", [35, 5])
def test_the_sample_of_the_reference(steps):
    """Seed to latent through the whole of `rolled` under the reference's recipe."""
    run, actions, wanted = golden_run(steps)
    latents = rolled(run, moving_frames(1, 48, 80), actions, seed=SEED).latents
    assert latents.shape == (1, 2, 16, 6, 10)
    assert np.abs(latents[0, 1] - wanted[0, :, 1]).max() <= 1e-5 * wanted.std()


@pytest.mark.parametrize("steps", [35, 5])
def test_what_the_bench_compares_with_is_the_reference_too(steps):
    run, actions, wanted = golden_run(steps)
    model = ready(run)
    net = with_text(run.denoiser, 7)
    assert "blocks.0.text.q.weight" in net.state_dict()
    found = reference_rollout(model, net, moving_frames(1, 48, 80)[0], actions[0], seed=SEED)
    assert np.abs(found.latents[0] - wanted[0].swapaxes(0, 1)).max() <= 1e-5 * wanted.std()


def test_rollouts_of_many_frames_are_those_of_the_reference_s_loop():
    """Frame after frame through pixels under one noise; several at once, each as if alone."""
    infer = load_recipe("bridge_reference").infer.model_dump()
    run = random_run(model={"actions": "reference"}, infer={**infer, "steps": 8})
    first = moving_frames(2, 16, 32)
    actions = np.random.default_rng(0).normal(0, 0.02, (2, 6, 7))
    found = rolled(run, first, actions, seed=SEED)
    for i in range(2):
        frames, latents = rolled_out(
            run.denoiser.net,
            run.tokenizer,
            first[i],
            run.contract.scaled(actions[i]),
            n=8,
            seed=SEED,
            fps=run.contract.fps,
        )
        assert np.abs(found.frames[i].astype(int) - frames).max() <= 1
        assert np.abs(found.latents[i, 1:] - latents).max() <= 1e-4 * latents.std()
        once = reference_rollout(
            ready(run), with_text(run.denoiser, 7), first[i], actions[i], seed=SEED
        )
        assert np.abs(once.frames[0].astype(int) - frames).max() <= 1
        assert np.abs(once.latents[0, 1:] - latents).max() <= 1e-4 * latents.std()
    assert np.unique(found.frames[:, 1:].reshape(12, -1), axis=0).shape[0] == 12


def test_the_reference_recipe_s_way_differs_from_ours():
    """So that the test above cannot pass by accident: noise and pixels both matter."""
    infer = load_recipe("bridge_reference").infer.model_dump()
    first, actions = moving_frames(1, 16, 32), np.full((1, 3, 7), 0.01)
    frames = [
        rolled(random_run(infer={**infer, "steps": 3, **change}), first, actions, seed=1).frames
        for change in ({}, {"noise": "per_frame"}, {"recondition": "latent"})
    ]
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])
