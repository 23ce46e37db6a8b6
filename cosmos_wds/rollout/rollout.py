"""Rollouts: video from first frames and actions, as diffusion/rollout.py generates latents.

R rollouts, B of them running together, N actions of width A. N actions give N + 1 frames.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cosmos_wds.console import progress_bar
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.video import resize
from cosmos_wds.diffusion.guardrail import guarded, load_guardrail
from cosmos_wds.diffusion.rollout import decoded, rollout_latents, rollout_noise
from cosmos_wds.errors import CheckpointError
from cosmos_wds.train.parallel import choose_precision
from cosmos_wds.train.run import LoadedRun


def rollout(
    run: LoadedRun,
    first: np.ndarray,
    actions: np.ndarray,
    *,
    seed: int,
    steps: int | None = None,
    on_frame: Callable[[int], object] | None = None,
) -> np.ndarray:
    """What follows from first frames under actions.

    first     (R, H, W, 3) uint8, resized to the model's height and width
    actions   (R, N, A) in physical units; rows mean what the run's contract says
    steps     sampler steps per call; None: the recipe's
    on_frame  told how many frames, over the rollouts, were just generated
    result    (R, N+1, height, width, 3) uint8; frame 0 is the first frame itself, not decoded

    Rollout r depends on (seed, r) and its own first frame and actions, not on the others. The
    recipe's guardrail is found before anything is sampled, and all frames pass through it. Raises
    CheckpointError for a model without an action contract, Blocked when the guardrail refuses.
    """
    assert first.ndim == 4 and actions.ndim == 3 and len(first) == len(actions) > 0
    assert actions.shape[1] > 0 and np.isfinite(actions).all()
    load_guardrail(run.recipe.infer.guardrail)
    first = resize(first, run.recipe.window.picture_height, run.recipe.window.width)
    generated = np.empty((len(first), actions.shape[1], *first.shape[1:]), np.uint8)
    for begin in range(0, len(first), run.recipe.infer.batch):
        rows = slice(begin, begin + run.recipe.infer.batch)
        generated[rows] = _roll(
            run,
            first[rows],
            actions[rows],
            numbers=range(len(first))[rows],
            seed=seed,
            steps=steps or run.recipe.infer.steps,
            on_frame=on_frame,
        )
    return guarded(run.recipe.infer.guardrail, np.concatenate([first[:, None], generated], axis=1))


def rollout_with_bar(
    run: LoadedRun,
    first: np.ndarray,
    actions: np.ndarray,
    *,
    seed: int,
    steps: int | None = None,
    title: str = "rollout",
) -> np.ndarray:
    """`rollout` under a progress bar that counts frames."""
    with progress_bar() as progress:
        task = progress.add_task(title, total=actions.shape[0] * actions.shape[1], note="")
        return rollout(
            run,
            first,
            actions,
            seed=seed,
            steps=steps,
            on_frame=lambda count: progress.advance(task, count),
        )


@torch.inference_mode()
def _roll(
    run: LoadedRun,
    first: np.ndarray,
    actions: np.ndarray,
    *,
    numbers: range,
    seed: int,
    steps: int,
    on_frame: Callable[[int], object] | None,
) -> np.ndarray:
    """Roll out one batch: first (B, H, W, 3), actions (B, N, A) -> (B, N, H, W, 3) uint8."""
    contract = contract_of(run)
    device = next(run.denoiser.parameters()).device
    video = torch.from_numpy(np.ascontiguousarray(first)).to(device)
    infer = run.recipe.infer.model_copy(update={"steps": steps})
    latents: list[Tensor] = []
    precision = choose_precision(run.recipe.train.precision, device)
    calls = rollout_latents(
        run.denoiser,
        run.tokenizer.encode(rearrange(video, "b h w c -> b c 1 h w"))[:, :, 0],
        torch.from_numpy(contract.scaled(actions)).to(device),
        fps=torch.full((len(first),), contract.fps / run.recipe.window.interval, device=device),
        frames=run.recipe.window.frames,
        infer=infer,
        noise=partial(rollout_noise, kind=infer.noise, seed=seed, numbers=numbers),
    )
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for latent in calls:
            latents.append(latent)
            if on_frame:
                on_frame(len(first) * latent.shape[2])
    return decoded(run.tokenizer, torch.cat(latents, dim=2))


def contract_of(run: LoadedRun) -> ActionContract:
    """The run's action contract. Raises CheckpointError when the model takes no actions."""
    if run.contract is None:
        raise CheckpointError(
            f"{run.place.file}: a model without actions, which no action can steer; post-train it "
            "first with `cosmos-wds train`"
        )
    return run.contract
