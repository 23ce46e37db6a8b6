"""Rollouts: video from first frames and actions, as diffusion/rollout.py generates latents.

R rollouts, B of them running together, N actions of width A. N actions give N + 1 frames.
C latent channels, h x w latent pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cosmos_wds.diffusion.guardrail import guarded
from cosmos_wds.diffusion.rollout import Noise, pictures, rollout_latents, rollout_noise
from cosmos_wds.rollout.ready import Ready, ready
from cosmos_wds.train.run import LoadedRun


@dataclass(frozen=True)
class Rolled:
    """Rollouts as pictures and as latents."""

    frames: np.ndarray
    """(R, N+1, H, W, 3) uint8; frame 0 is the first frame itself, not decoded"""
    latents: np.ndarray
    """(R, N+1, C, h, w) float32; latent 0 is the encoded first frame"""


def rolled(
    run: LoadedRun,
    first: np.ndarray,
    actions: np.ndarray,
    *,
    seed: int | Sequence[int],
    steps: int | None = None,
    on_frame: Callable[[int], object] | None = None,
    numbers: Sequence[int] | None = None,
) -> Rolled:
    """What follows from first frames under actions.

    first     (R, H, W, 3) uint8, resized to the model's height and width
    actions   (R, N, A) in physical units; rows mean what the run's contract says
    seed      one for all rollouts, or each one's
    steps     sampler steps per call; None: the recipe's
    on_frame  told how many frames, over the rollouts, were just generated
    numbers   the rollouts' numbers; None: 0 .. R-1 under one seed, 0 under seeds of their own

    A rollout depends on its seed, number, first frame and actions, not on the others. The recipe's
    guardrail is found before anything is sampled, and all frames pass through it. Raises
    CheckpointError for a model without an action contract, ConfigError for settings of [infer] that
    the model cannot follow, Blocked when the guardrail refuses.
    """
    assert first.ndim == 4 and actions.ndim == 3 and len(first) == len(actions) > 0
    assert actions.shape[1] > 0 and np.isfinite(actions).all()
    model = ready(run, steps)
    seeds, numbers = seeds_and_numbers(seed, numbers, len(first))
    first = model.fitted(first)
    parts = []
    for begin in range(0, len(first), model.recipe.infer.batch):
        rows = slice(begin, begin + model.recipe.infer.batch)
        noise = partial(
            rollout_noise,
            kind=model.recipe.infer.noise,
            seed=seeds[rows],
            numbers=numbers[rows],
        )
        parts.append(_roll(model, first[rows], actions[rows], noise=noise, on_frame=on_frame))
    frames = np.concatenate([part.frames for part in parts])
    shown = guarded(model.recipe.infer.guardrail, frames)
    return Rolled(shown, np.concatenate([part.latents for part in parts]))


def rollout(
    run: LoadedRun,
    first: np.ndarray,
    actions: np.ndarray,
    *,
    seed: int | Sequence[int],
    steps: int | None = None,
    on_frame: Callable[[int], object] | None = None,
    numbers: Sequence[int] | None = None,
) -> np.ndarray:
    """The frames of `rolled`, (R, N+1, H, W, 3) uint8."""
    return rolled(
        run, first, actions, seed=seed, steps=steps, on_frame=on_frame, numbers=numbers
    ).frames


def seeds_and_numbers(
    seed: int | Sequence[int], numbers: Sequence[int] | None, count: int
) -> tuple[list[int], list[int]]:
    """The seed and the number of each of `count` rollouts, which its noise is drawn from."""
    seeds = np.broadcast_to(np.asarray(seed), count).tolist()
    if numbers is None:
        numbers = range(count) if np.ndim(seed) == 0 else [0] * count
    assert len(numbers) == count
    return seeds, [int(number) for number in numbers]


def _roll(
    model: Ready,
    first: np.ndarray,
    actions: np.ndarray,
    *,
    noise: Noise,
    on_frame: Callable[[int], object] | None,
) -> Rolled:
    """Roll out one batch, at the model's size, before the guardrail."""
    parts = []
    with model.computing():
        given = model.encoded(first)
        for part in rollout_latents(
            model.run.denoiser,
            given,
            model.scaled(actions),
            fps=model.fps(len(first)),
            recipe=model.recipe,
            noise=noise,
            tokenizer=model.run.tokenizer,
        ):
            parts.append(part)
            if on_frame:
                on_frame(len(first) * part.latent.shape[2])
        generated = pictures(model.run.tokenizer, parts)
        latents = torch.cat([given[:, :, None], *(part.latent for part in parts)], dim=2)
    frames = np.concatenate([first[:, None], generated], axis=1)
    return Rolled(frames, latents.float().transpose(1, 2).contiguous().cpu().numpy())
