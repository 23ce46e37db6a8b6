"""A rollout done as the reference does it (spec.md f), to measure ours against and to compare.

One rollout at a time, frame by frame: the current frame and a black one are encoded, every
denoiser call runs the network twice with cross-attention over text of zeros, both frames are
decoded, and the new one is encoded once more for a loop that never comes.

C latent channels, h x w latent pixels, H x W pixels.
"""

from functools import partial

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cosmos_wds.diffusion.edm import Denoiser, scaling
from cosmos_wds.diffusion.rollout import rollout_noise
from cosmos_wds.diffusion.sampler import sample
from cosmos_wds.model.describe import TEXT_TOKENS
from cosmos_wds.model.dit import CosmosDiT
from cosmos_wds.rollout.ready import Ready
from cosmos_wds.rollout.rollout import Rolled

GUIDANCE = 7.0
"""The reference's default. It moves nothing: both predictions are the same (spec.md f.2)."""


def with_text(denoiser: Denoiser, action_dims: int) -> CosmosDiT:
    """The same network, sharing its weights, with a text path where it has one.

    What its text weights are does not matter: the text is zero, and so is all that they make of it.
    """
    ours, has_text = denoiser.net, denoiser.net.settings.text_width > 0
    with torch.device("meta"):
        net = CosmosDiT(ours.settings, action_dims=action_dims, with_text=has_text)
    like = ours.blocks[0].mlp.up.weight
    lacking = net.state_dict().keys() - ours.state_dict().keys()
    text = {
        name: torch.full(net.get_parameter(name).shape, 0.02, device=like.device, dtype=like.dtype)
        for name in lacking
    }
    net.load_state_dict({**ours.state_dict(), **text}, assign=True)
    return net.eval().requires_grad_(False)


def reference_rollout(
    model: Ready, net: CosmosDiT, first: np.ndarray, actions: np.ndarray, *, seed: int
) -> Rolled:
    """One rollout, as `rolled` gives it: first (H, W, 3) uint8, actions (N, A) physical units."""
    tokenizer, frames, latents = model.run.tokenizer, [first], []
    with model.computing():
        for row in model.scaled(actions):
            clip = np.stack([frames[-1], np.zeros_like(first)])
            video = torch.from_numpy(clip).to(model.device)
            given = tokenizer.encode(rearrange(video, "t h w c -> 1 c t h w").contiguous())
            latent = _sampled(model, net, given[:, :, 0], row[None, None], seed=seed)
            shown = tokenizer.decode(latent)
            frames.append(shown[0, :, 1].permute(1, 2, 0).cpu().numpy())
            latents += [latent[0, :, 1]] if latents else [latent[0, :, 0], latent[0, :, 1]]
            tokenizer.encode(shown[:, :, -1:].contiguous())
    return Rolled(np.stack(frames)[None], torch.stack(latents)[None].float().cpu().numpy())


def _sampled(model: Ready, net: CosmosDiT, given: Tensor, action: Tensor, *, seed: int) -> Tensor:
    """Sample a window of two frames, (1, C, 2, h, w)."""
    shape, infer = (given.shape[1], 2, *given.shape[2:]), model.recipe.infer
    noise = rollout_noise(1, shape, kind="reference", seed=seed, numbers=[0]).to(model.device)
    fps = model.fps(1)
    sigma_a = torch.full_like(fps, infer.augment_sigma)[:, None, None, None]
    seen = scaling(sigma_a).inp * (given + sigma_a * noise[:, :, 0])
    width = net.settings.text_width
    text = torch.zeros(1, TEXT_TOKENS, width, device=model.device, dtype=model.precision)
    mask = torch.zeros_like(noise[:, :1])
    mask[:, :, 0] = 1
    run = partial(
        net,
        given=mask,
        fps=fps,
        action=action,
        has_action=torch.ones_like(fps, dtype=torch.bool),
        text=text if width else None,
    )

    def branch(x: Tensor, sigma: Tensor) -> Tensor:
        skip, out, inp, level = (c[:, None, None, None, None] for c in scaling(sigma))
        shown = torch.cat([seen[:, :, None], (inp * x)[:, :, 1:]], dim=2)
        x0 = skip * x + out * run(shown, level.flatten())
        return torch.cat([given[:, :, None], x0[:, :, 1:]], dim=2)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        with_condition, without = branch(x, sigma), branch(x, sigma)
        return with_condition + GUIDANCE * (with_condition - without)

    return sample(denoise, noise, steps=infer.steps)
