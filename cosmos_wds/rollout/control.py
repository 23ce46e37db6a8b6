"""Does the model do what its actions say? One number between 0 and 1, and what stands behind it.

    score = (D_shuffled - D_true) / (D_shuffled - D_round_trip)

D is the mean over episodes and steps of the squared error, in pixels, against the recording: of
rollouts under another episode's actions, under the true ones, and of the recording passed through
the tokenizer, closer than which no model of its latents can come. A model that ignores its actions
has D_true = D_shuffled and scores 0; one that obeys perfectly has D_true = D_round_trip and scores
1. A share against other WRONG actions puts those in the place of the shuffled ones.

E episodes, N actions, A numbers an action, T frames of a window, n windows.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.evaluation import TRUE, WRONG, Control, GripperPath, closer
from cosmos_wds.rollout.inputs import chained
from cosmos_wds.rollout.ready import Ready
from cosmos_wds.rollout.wrong import others, seen_from_before
from cosmos_wds.train.interval import Interval, mean_interval
from cosmos_wds.train.validation_set import HeldWindows, fixed_draws
from cosmos_wds.train.window_loss import window_losses

RESAMPLED = 2000
"""Bootstrap samples of the episodes."""
GAPS = ("psnr", "latent_l2")


def control(
    errors: Mapping[str, np.ndarray],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    *,
    loss_gap: Interval | None,
    path: GripperPath | None,
) -> Control:
    """Put together what rollouts say about control.

    errors   row -> (E, N) squared errors in pixels;  scores   as in an Evaluation
    """
    rows = [row for row in WRONG if row in errors]
    shares = {row: share(errors, row) for row in rows}
    gaps = {
        metric: {row: mean_interval(closer(scores, metric, row).mean(axis=1)) for row in rows}
        for metric in GAPS
        if metric in scores
    }
    return Control(shares["shuffled"], shares, gaps, loss_gap, path)


def share(errors: Mapping[str, np.ndarray], wrong: str) -> Interval:
    """The share of the achievable gap that a model realises, with its 95 % bootstrap interval.

    Episodes are drawn with replacement, always the same way. Of one episode the interval is
    unknown, NaN; so is the share where wrong actions do no harm at all.
    """
    rows = [errors[row].mean(axis=1) for row in (wrong, TRUE, "round_trip")]
    parts = np.stack(rows)  # (3, E)
    count = parts.shape[1]
    mean = float(_ratio(parts.mean(axis=1)))
    if count < 2 or math.isnan(mean):
        return Interval(mean, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLED, count))
    found = _ratio(parts[:, drawn].mean(axis=2))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return Interval(mean, float(low), float(high))


def _ratio(means: np.ndarray) -> np.ndarray:
    """(3, ...): D of wrong actions, of true ones, of the round trip -> (...) shares."""
    wrong, true, floor = means
    gap = wrong - floor
    is_gap = gap > 1e-9 * np.maximum(wrong, 1e-9)
    return np.divide(wrong - true, gap, out=np.full_like(gap, np.nan), where=is_gap)


def loss_gap(model: Ready, episodes: HeldOut, latents: np.ndarray, *, seed: int) -> Interval | None:
    """What another episode's actions cost in denoising: the paired loss gap, on fixed noise.

    latents   (E, N+1, C, h, w) of the recordings

    The windows are those that follow one another from an episode's first frame, each seen at one of
    validation's noise levels under its draws. A mean over an episode's windows is one value; the
    interval is Student's t over episodes. None when N is less than a window's actions.
    """
    window, contract = model.recipe.window, model.contract
    each, (count, steps) = window.frames - 1, episodes.actions.shape[:2]
    starts = range(0, steps - each + 1, each)
    if not starts:
        return None
    before = seen_from_before(contract, episodes.actions, model.recipe.call_window)
    true, other = (
        np.stack(
            [chained(contract, rows[at : at + each], window) for rows in actions for at in starts]
        )
        for actions in (before, others(before))
    )
    cut = np.stack([video[at : at + each + 1] for video in latents for at in starts])
    latent = torch.from_numpy(cut).transpose(1, 2).contiguous()  # (n, C, T, h, w)
    draws = fixed_draws(
        model.recipe.diffusion, range(len(latent)), seed=seed, shape=tuple(latent.shape[1:])
    )
    scaled, wrong = (torch.from_numpy(contract.scaled(rows)) for rows in (true, other))
    windows = HeldWindows(latent, scaled, wrong, model.fps(len(latent)).cpu(), draws)
    with model.computing():
        losses = [
            window_losses(
                model.run.denoiser,
                windows,
                actions,
                rows=model.recipe.infer.batch,
                device=model.device,
                precision=model.precision,
            )
            for actions in (windows.other, windows.action)
        ]
    gaps = (losses[0] - losses[1]).cpu().numpy().reshape(count, len(starts))
    return mean_interval(gaps.mean(axis=1))
