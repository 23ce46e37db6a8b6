"""Rollouts: video from a first frame and actions, one sampler call after another (spec.md f).

R rollouts, B of them running together, N actions of width A, C latent channels, T frames of a
window, h x w latent pixels.

    call 0   given 0      generates 1 .. T-1     under actions 0 .. T-2
    call 1   given T-1    generates T .. 2T-2    under actions T-1 .. 2T-3

The last latent that a call generates is the next call's given frame: a seam neither repeats nor
skips a frame, and nothing is decoded and encoded again on the way. N actions give N + 1 frames.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cosmos_wds.console import progress_bar
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.video import resize
from cosmos_wds.diffusion.sampler import sample
from cosmos_wds.errors import CheckpointError
from cosmos_wds.rollout.guardrail import guarded, load_guardrail
from cosmos_wds.train.parallel import choose_precision
from cosmos_wds.train.run import LoadedRun

DECODE_FRAMES = 8
"""Frames of each rollout that are decoded together."""


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
    scaled = torch.from_numpy(contract.scaled(actions)).to(device)
    fps = torch.full((len(first),), contract.fps / run.recipe.window.interval, device=device)
    video = torch.from_numpy(np.ascontiguousarray(first)).to(device)
    given = run.tokenizer.encode(rearrange(video, "b h w c -> b c 1 h w"))[:, :, 0]
    latents: list[Tensor] = []
    precision = choose_precision(run.recipe.train.precision, device)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for done, window in _calls(scaled, run.recipe.window.frames):
            shape = (given.shape[1], run.recipe.window.frames, *given.shape[2:])
            noise = _noise(run, seed, numbers, frame=done + 1, shape=shape).to(device)
            latent = _call(run, given, window, fps=fps, noise=noise, steps=steps)
            given = latent[:, :, -1]
            latents.append(latent[:, :, 1 : 1 + scaled.shape[1] - done])
            if on_frame:
                on_frame(len(first) * latents[-1].shape[2])
    parts = torch.cat(latents, dim=2).split(DECODE_FRAMES, dim=2)
    frames = torch.cat([run.tokenizer.decode(part).cpu() for part in parts], dim=2)
    return rearrange(frames, "b c t h w -> b t h w c").numpy()


def _call(
    run: LoadedRun, given: Tensor, action: Tensor, *, fps: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """Sample one window: given (B, C, h, w), action (B, T-1, A) -> latents (B, C, T, h, w)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return run.denoiser.denoise(
            x,
            sigma,
            given=given,
            action=action,
            fps=fps,
            augment_sigma=run.recipe.infer.augment_sigma,
            augment_noise=noise[:, :, 0],
        )

    return sample(denoise, noise, steps=steps)


def _calls(actions: Tensor, frames: int) -> list[tuple[int, Tensor]]:
    """Cut actions (B, N, A) into windows of frames - 1: (actions before it, (B, frames-1, A)).

    The last window is filled up with its last action; the frames beyond N are thrown away.
    """
    short = -actions.shape[1] % (frames - 1)
    whole = torch.cat([actions, actions[:, -1:].expand(-1, short, -1)], dim=1)
    return [(at, whole[:, at : at + frames - 1]) for at in range(0, whole.shape[1], frames - 1)]


def _noise(
    run: LoadedRun, seed: int, numbers: range, *, frame: int, shape: tuple[int, ...]
) -> Tensor:
    """Unit noise (B, *shape) of the call that generates `frame` first.

    A pure function of (seed, rollout, frame); `reference` draws the same for every one (f.2).
    """
    if run.recipe.infer.noise == "reference":
        one = np.random.RandomState(seed).standard_normal((1, *shape)).astype(np.float32)
        return torch.from_numpy(one).expand(len(numbers), *shape)
    draws = [
        np.random.default_rng((seed, number, frame)).standard_normal(shape, dtype=np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.stack(draws))


def contract_of(run: LoadedRun) -> ActionContract:
    """The run's action contract. Raises CheckpointError when the model takes no actions."""
    if run.contract is None:
        raise CheckpointError(
            f"{run.place.file}: a model without actions, which no action can steer; post-train it "
            "first with `cosmos-wds train`"
        )
    return run.contract
