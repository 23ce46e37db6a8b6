"""Rollouts in latents: one sampler call after another (spec.md f).

B rollouts that run together, N actions of width A, C latent channels, T frames of a window, h x w
latent pixels.

    call 0   given 0      generates 1 .. T-1     under actions 0 .. T-2
    call 1   given T-1    generates T .. 2T-2    under actions T-1 .. 2T-3

The last latent that a call generates is the next call's given frame: a seam neither repeats nor
skips a frame, and nothing is decoded and encoded again on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.diffusion.sampler import sample
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.recipe import InferSettings

DECODE_FRAMES = 8
"""Frames of each rollout that are decoded together."""

Noise = Callable[[int, tuple[int, ...]], Tensor]
"""(frame, shape) -> unit noise (B, *shape) of the call that generates `frame` first."""


def rollout_latents(
    denoiser: Denoiser,
    given: Tensor,
    action: Tensor,
    *,
    fps: Tensor,
    frames: int,
    infer: InferSettings,
    noise: Noise,
) -> Iterator[Tensor]:
    """What follows from given frames under actions, call by call.

    given   (B, C, h, w);  action (B, N, A) scaled;  fps (B,)
    frames  T, of a window
    yields  (B, C, n, h, w); n, at most T-1, add up to N
    """
    shape = (given.shape[1], frames, *given.shape[2:])
    for done, window in _calls(action, frames):
        epsilon = noise(done + 1, shape).to(given.device)
        latent = _call(denoiser, given, window, fps=fps, noise=epsilon, infer=infer)
        given = latent[:, :, -1]
        yield latent[:, :, 1 : 1 + action.shape[1] - done]


def _call(
    denoiser: Denoiser,
    given: Tensor,
    action: Tensor,
    *,
    fps: Tensor,
    noise: Tensor,
    infer: InferSettings,
) -> Tensor:
    """Sample one window: given (B, C, h, w), action (B, T-1, A) -> latents (B, C, T, h, w)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser.denoise(
            x,
            sigma,
            given=given,
            action=action,
            fps=fps,
            augment_sigma=infer.augment_sigma,
            augment_noise=noise[:, :, 0],
        )

    return sample(denoise, noise, steps=infer.steps)


def _calls(actions: Tensor, frames: int) -> list[tuple[int, Tensor]]:
    """Cut actions (B, N, A) into windows of frames - 1: (actions before it, (B, frames-1, A)).

    The last window is filled up with its last action; the frames beyond N are thrown away.
    """
    short = -actions.shape[1] % (frames - 1)
    whole = torch.cat([actions, actions[:, -1:].expand(-1, short, -1)], dim=1)
    return [(at, whole[:, at : at + frames - 1]) for at in range(0, whole.shape[1], frames - 1)]


def rollout_noise(
    frame: int,
    shape: tuple[int, ...],
    *,
    kind: Literal["per_frame", "reference"],
    seed: int,
    numbers: Sequence[int],
) -> Tensor:
    """Unit noise (B, *shape) of the call that generates `frame` first, for rollouts by number.

    A pure function of (seed, rollout, frame); `reference` draws the same for every one (f.2).
    """
    if kind == "reference":
        one = np.random.RandomState(seed).standard_normal((1, *shape)).astype(np.float32)
        return torch.from_numpy(one).expand(len(numbers), *shape)
    draws = [
        np.random.default_rng((seed, number, frame)).standard_normal(shape, dtype=np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.stack(draws))


def decoded(tokenizer: Tokenizer, latents: Tensor) -> np.ndarray:
    """Latents (B, C, N, h, w) -> pictures (B, N, H, W, 3) uint8, a few frames at a time."""
    parts = latents.split(DECODE_FRAMES, dim=2)
    frames = torch.cat([tokenizer.decode(part).cpu() for part in parts], dim=2)
    return rearrange(frames, "b c t h w -> b t h w c").numpy()
