"""Rollouts in latents: one sampler call after another (spec.md f).

B rollouts that run together, N actions of width A, C latent channels, T frames of a call's window
(the given one and those that the call generates), h x w latent pixels, H x W pixels.

    call 0   given 0      generates 1 .. T-1     under actions 0 .. T-2
    call 1   given T-1    generates T .. 2T-2    under actions T-1 .. 2T-3

The last frame that a call generates is the next call's given frame: a seam neither repeats nor
skips one. It is handed on as a latent, and nothing is decoded on the way; or through its picture,
which costs a decoding and an encoding a call, as the reference does.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.diffusion.sampler import sample
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.recipe import Recipe
from cosmos_wds.recipe_infer import InferSettings

DECODE_FRAMES = 8
"""Frames of each rollout that are decoded together."""

Noise = Callable[[int, tuple[int, ...]], Tensor]
"""(frame, shape) -> unit noise (B, *shape) of the call that generates `frame` first."""


class Generated(NamedTuple):
    """What one call generated, n frames of it."""

    latent: Tensor
    """(B, C, n, h, w)"""
    video: Tensor | None
    """(B, 3, n, H, W) uint8: its pictures, where the next call starts from them."""


def rollout_latents(
    denoiser: Denoiser,
    given: Tensor,
    action: Tensor,
    *,
    fps: Tensor,
    recipe: Recipe,
    noise: Noise,
    tokenizer: Tokenizer,
) -> Iterator[Generated]:
    """What follows from given frames under actions, call by call.

    given      (B, C, h, w);  action (B, N, A) scaled;  fps (B,)
    tokenizer  used only with [infer] recondition = "pixels"
    yields     n frames, at most T-1; they add up to N
    """
    frames, through_pixels = recipe.call_window.frames, recipe.infer.recondition == "pixels"
    shape = (given.shape[1], frames, *given.shape[2:])
    done, count = 0, action.shape[1]
    for window in _windows(action, frames - 1):
        epsilon = noise(done + 1, shape).to(given.device)
        latent = sample_window(denoiser, given, window, fps=fps, noise=epsilon, infer=recipe.infer)[
            :, :, 1 : 1 + count - done
        ]
        video = tokenizer.decode(latent) if through_pixels else None
        yield Generated(latent, video)
        done += latent.shape[2]
        if done < count:
            given = latent[:, :, -1] if video is None else encoded_last(tokenizer, video)


def sample_window(
    denoiser: Denoiser,
    given: Tensor,
    action: Tensor,
    *,
    fps: Tensor,
    noise: Tensor,
    infer: InferSettings,
) -> Tensor:
    """Sample one window, the given frame first.

    given (B, C, h, w), action (B, T-1, A) scaled, fps (B,), noise (B, C, T, h, w) unit
    -> latents (B, C, T, h, w)
    """
    copies = 2 if infer.guidance else 1  # the second one with its actions hidden
    # One layout of memory, whoever calls: sums of another order would differ in the last bit.
    given, action, fps, augment = (
        torch.cat([one] * copies) for one in (given, action, fps, noise[:, :, 0])
    )
    shown = torch.arange(len(given), device=given.device) < len(noise)
    terms = denoiser.terms(noise, action=action, fps=fps, has_action=shown)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoiser.denoise(
            torch.cat([x] * copies),
            torch.cat([sigma] * copies),
            given=given,
            action=action,
            fps=fps,
            augment_sigma=infer.augment_sigma,
            augment_noise=augment,
            has_action=shown,
            terms=terms,
        )
        if not infer.guidance:
            return x0
        seen, hidden = x0.chunk(2)
        return seen + infer.guidance * (seen - hidden)  # Ho & Salimans 2022, eq. 6

    return sample(denoise, noise, steps=infer.steps)


def encoded_last(tokenizer: Tokenizer, video: Tensor) -> Tensor:
    """The last picture of (B, 3, n, H, W) uint8 as a latent (B, C, h, w)."""
    return tokenizer.encode(video[:, :, -1:].contiguous())[:, :, 0]


def _windows(actions: Tensor, each: int) -> Iterator[Tensor]:
    """Cut actions (B, N, A) into windows (B, each, A).

    The last one is filled up with its last action; the frames beyond N are thrown away.
    """
    short = -actions.shape[1] % each
    whole = torch.cat([actions, actions[:, -1:].expand(-1, short, -1)], dim=1)
    yield from whole.split(each, dim=1)


def rollout_noise(
    frame: int,
    shape: tuple[int, ...],
    *,
    kind: Literal["per_frame", "reference"],
    seed: int | Sequence[int],
    numbers: Sequence[int],
) -> Tensor:
    """Unit noise (B, *shape) of the call that generates `frame` first, for rollouts by number.

    seed   one for all rollouts, or each one's

    A pure function of (seed, number, frame); `reference` draws the same for every one (f.2).
    """
    seeds = np.broadcast_to(np.asarray(seed), len(numbers)).tolist()
    if kind == "reference":
        drawn = {one: np.random.RandomState(one).standard_normal((1, *shape)) for one in {*seeds}}
        draws = [drawn[one].astype(np.float32)[0] for one in seeds]
    else:
        draws = [
            np.random.default_rng((one, number, frame)).standard_normal(shape, dtype=np.float32)
            for one, number in zip(seeds, numbers, strict=True)
        ]
    return torch.from_numpy(np.stack(draws))


def pictures(tokenizer: Tokenizer, parts: Sequence[Generated]) -> np.ndarray:
    """All that was generated as pictures (B, N, H, W, 3) uint8."""
    videos = [part.video.cpu() for part in parts if part.video is not None]
    if not videos:
        return decoded(tokenizer, torch.cat([part.latent for part in parts], dim=2))
    return rearrange(torch.cat(videos, dim=2), "b c t h w -> b t h w c").numpy()


def decoded(tokenizer: Tokenizer, latents: Tensor) -> np.ndarray:
    """Latents (B, C, N, h, w) -> pictures (B, N, H, W, 3) uint8, a few frames at a time."""
    parts = latents.split(DECODE_FRAMES, dim=2)
    frames = torch.cat([tokenizer.decode(part).cpu() for part in parts], dim=2)
    return rearrange(frames, "b c t h w -> b t h w c").numpy()
