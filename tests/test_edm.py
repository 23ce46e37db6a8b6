"""Diffusion against the golden vectors of the reference: scaling, training step, sampler."""

import numpy as np
import pytest
import torch

from cosmos_wds.diffusion.edm import Denoiser, loss_weight, scaling
from cosmos_wds.diffusion.noise import Draws, draw
from cosmos_wds.diffusion.sampler import sample, sigmas
from cosmos_wds.model.weights import load_state
from cosmos_wds.recipe import DiffusionSettings
from tests.golden_vectors import golden_settings, part, read_golden

REFERENCE = DiffusionSettings(
    conditioning="reference",
    augment_mean=0,
    augment_std=1,
    augment_scale=4,
    loss_frames="all",
)


def reference_denoiser():
    tensors, metadata = read_golden("train_step")
    denoiser = Denoiser(golden_settings(metadata), REFERENCE, action_dims=7)
    load_state(denoiser, part(tensors, "w."), origin="golden")
    return denoiser, tensors


@pytest.mark.parametrize("kind, dtype", [("f64", torch.float64), ("f32", torch.float32)])
def test_scaling(kind, dtype):
    g, _ = read_golden("edm_and_sampler")
    sigma = g["sigma"]
    for name, value in zip(("skip", "out", "in", "noise"), scaling(sigma.to(dtype)), strict=True):
        torch.testing.assert_close(value, g[f"{kind}.c_{name}"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss_weight(sigma), g["loss_weight_f64"])


@pytest.mark.parametrize("case", ["cond1", "cond0", "cond1_dropped"])
def test_training_step_equals_the_reference(case):
    denoiser, tensors = reference_denoiser()
    g, i = part(tensors, f"{case}."), part(tensors, "in.")
    given = bool(g["indicator"].flatten()[0])
    draws = Draws(
        sigma=g["sigma"],
        epsilon=g["epsilon"],
        augment_sigma=g["augment_sigma"],
        augment_noise=g["augment_noise"][:, :, 0],
        is_given=torch.tensor([given] * 2),
        is_visible=torch.tensor([bool(g["video_cond_bool"].item())] * 2),
        has_action=torch.tensor([True] * 2),
    )
    fps = torch.tensor([4.0, 4.0])
    x0 = denoiser.predict(
        g["xt"], g["sigma"], given=i["x0"][:, :, 0], action=i["action"], fps=fps, draws=draws
    )
    assert (x0 - g["x0_pred"]).abs().max() <= 1e-5 * g["x0_pred"].std()
    loss = denoiser(i["x0"], action=i["action"], fps=fps, draws=draws).mean()
    torch.testing.assert_close(loss, g["loss"][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [35, 10, 4])
def test_sampler_equals_the_reference(steps):
    g, _ = read_golden("edm_and_sampler")
    levels = np.array(sigmas(steps))
    np.testing.assert_allclose(levels, g[f"sigmas_{steps}"].numpy(), rtol=1e-9)
    mu, seen = g["sampler.mu"], []

    def denoise(x, t):
        x, t = x.double(), t.double().view(-1, 1, 1)
        seen.append(x)
        return mu + 0.25 / (0.25 + t**2) * (x - mu) + 0.1 * torch.tanh(x / (1 + t))

    out = sample(denoise, g["sampler.x_init"].double() / 80, steps=steps)
    assert len(seen) == steps + 1
    torch.testing.assert_close(
        torch.stack(seen), g[f"sampler.2ab.{steps}.states"], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(out.float(), g[f"sampler.2ab.{steps}.out"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [35, 5])
def test_inference_loop_equals_the_reference(steps):
    denoiser, _ = reference_denoiser()
    g, _ = read_golden("inference_loop")
    noise = g[f"steps{steps}.init_noise_unit"]

    def denoise(x, sigma):
        return denoiser.denoise(
            x,
            sigma,
            given=g["in.condition_latent"][:, :, 0],
            action=g["in.action"],
            fps=torch.tensor([4.0]),
            augment_sigma=0.001,
            augment_noise=noise[:, :, 0],
        )

    with torch.no_grad():
        out = sample(denoise, noise, steps=steps)
    golden = g[f"steps{steps}.sample"]
    assert (out - golden).abs().max() <= 1e-5 * golden.std()


def test_draws_do_not_depend_on_the_ranks():
    settings = DiffusionSettings(given_drop=0.5, action_drop=0.5)
    shape = (4, 2, 3, 5)
    whole = draw(settings, seed=1, step=7, lanes=range(6), latent_shape=shape)
    for lanes in (range(2), range(2, 6)):
        share = draw(settings, seed=1, step=7, lanes=lanes, latent_shape=shape)
        rows = slice(lanes.start, lanes.stop)
        for name in ("sigma", "epsilon", "augment_sigma", "augment_noise", "has_action"):
            assert torch.equal(getattr(share, name), getattr(whole, name)[rows]), name
    other = draw(settings, seed=1, step=8, lanes=range(6), latent_shape=shape)
    assert not torch.equal(other.sigma, whole.sigma)


def test_draws_follow_the_recipe():
    settings = DiffusionSettings(p_mean=-1, p_std=0.5)
    d = draw(settings, seed=0, step=0, lanes=range(2000), latent_shape=(1, 2, 1, 1))
    assert abs(d.sigma.log().mean() + 1) < 0.05
    assert abs(d.sigma.log().std() - 0.5) < 0.05
    assert abs(d.augment_sigma.log().mean() + 3) < 0.2
    given = [
        draw(REFERENCE, seed=0, step=s, lanes=[0], latent_shape=(1, 2, 1, 1)) for s in range(400)
    ]
    share = np.mean([bool(g.is_given & g.is_visible) for g in given])
    assert abs(share - 0.4) < 0.08  # spec.md d.4: the frame is visible in 40 % of the steps
