"""Roll out held-out episodes under their own and under wrong actions, and measure what comes.

E episodes, N actions, A numbers an action, C latent channels, h x w latent pixels, H x W pixels.
Frame 0 is the recording's first one everywhere, and counts in no measure.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cosmos_wds.console import say, track
from cosmos_wds.diffusion.rollout import decoded
from cosmos_wds.rollout.control import control, loss_gap
from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.evaluation import TRUE, Evaluation
from cosmos_wds.rollout.gripper import gripper_path
from cosmos_wds.rollout.kept import Job, roll_out
from cosmos_wds.rollout.measures import (
    Measure,
    frame_measures,
    has_skimage,
    latent_l2,
    wanted_measures,
)
from cosmos_wds.rollout.metrics import square_error
from cosmos_wds.rollout.networks import network_file
from cosmos_wds.rollout.protocol import protocol
from cosmos_wds.rollout.ready import Ready, ready
from cosmos_wds.rollout.set_metrics import KINDS, set_scores
from cosmos_wds.rollout.wrong import wrong_actions
from cosmos_wds.train.run import LoadedRun

Rows = Mapping[str, np.ndarray]
"""Row -> something of each of the E episodes."""


def evaluate(run: LoadedRun, episodes: HeldOut, *, folder: Path | None = None) -> Evaluation:
    """Measure a model on episodes, as its recipe's [eval] and [infer] say.

    folder   where rollouts are kept, and taken from when they are there already

    All rollouts of an episode have its first frame and the same noise. Raises UserError for what
    the model, or the measures that are asked for, lack.
    """
    settings, model = run.recipe.eval, ready(run)
    names = wanted_measures(settings)
    measures = frame_measures(
        names, settings, model.device
    )  # missing weights are told before hours
    for kind in KINDS:
        if kind in names:
            network_file(getattr(settings, kind))
    if not settings.measures and not has_skimage():
        say("SSIM is left out: it needs pip install 'cosmos-wds[eval]'")
    rollouts, latents = _rolled_out(model, episodes, folder)
    truth = _encoded(model, episodes.frames)
    yardsticks, yard_latents = _yardsticks(model, episodes.frames, truth)
    videos = {**rollouts, **yardsticks}
    scores = _scores(names, measures, videos, episodes.frames)
    if "latent_l2" in names:
        rows = {**latents, **yard_latents}
        scores["latent_l2"] = {row: latent_l2(of[:, 1:], truth[:, 1:]) for row, of in rows.items()}
    errors = {row: square_error(of, episodes.frames)[:, 1:] for row, of in videos.items()}
    seen = {row: of for row, of in videos.items() if row != "previous"}
    return Evaluation(
        episodes=episodes,
        rollouts=rollouts,
        yardsticks=yardsticks,
        scores={name: scores[name] for name in names if name in scores},
        set_scores=_set_scores(names, model, videos, episodes.frames),
        control=control(
            errors,
            scores,
            loss_gap=loss_gap(model, episodes, truth, seed=settings.seed),
            path=gripper_path(episodes, seen),
        ),
        protocol=protocol(model, episodes, names),
    )


def _rolled_out(model: Ready, episodes: HeldOut, folder: Path | None) -> tuple[Rows, Rows]:
    """Frames (E, N+1, H, W, 3) and latents (E, N+1, C, h, w) of TRUE and WRONG rollouts."""
    settings = model.recipe.eval
    # A rollout of one action has no later time that its actions could be shifted to.
    is_short = episodes.actions.shape[1] < 2
    kinds = [kind for kind in settings.wrong if not (kind == "shifted" and is_short)]
    wrong = wrong_actions(
        model.contract, episodes.actions, window=model.recipe.call_window, kinds=kinds
    )
    actions = {TRUE: episodes.actions, **wrong}
    jobs = [
        Job(row, key, first, rows)
        for row in actions
        for key, first, rows in zip(episodes.keys, episodes.frames[:, 0], actions[row], strict=True)
    ]
    made = roll_out(model.run, jobs, seed=settings.seed, folder=folder)
    count = len(episodes.keys)
    parts = {row: made[i * count : (i + 1) * count] for i, row in enumerate(actions)}
    return (
        {row: np.concatenate([one.frames for one in part]) for row, part in parts.items()},
        {row: np.concatenate([one.latents for one in part]) for row, part in parts.items()},
    )


def _encoded(model: Ready, videos: np.ndarray) -> np.ndarray:
    """(E, N+1, H, W, 3) uint8 -> latents (E, N+1, C, h, w) float32, frame by frame."""
    return _by_frame(model, videos, lambda part: model.encoded(part).float())


def _yardsticks(model: Ready, truth: np.ndarray, latents: np.ndarray) -> tuple[Rows, Rows]:
    """Videos that no model made, and their latents, shaped as those of the recordings."""

    def picture(part: np.ndarray) -> Tensor:
        latent = torch.from_numpy(part).to(model.device)
        shown = decoded(model.run.tokenizer, rearrange(latent, "b c h w -> b c 1 h w"))
        return torch.from_numpy(shown[:, 0])

    round_trip = _by_frame(model, latents, picture)
    round_trip[:, 0] = truth[:, 0]
    before = [0, *range(truth.shape[1] - 1)]
    videos = {
        "first": np.broadcast_to(truth[:, :1], truth.shape),
        "previous": truth[:, before],
        "round_trip": round_trip,
    }
    return videos, {
        "first": np.broadcast_to(latents[:, :1], latents.shape),
        "previous": latents[:, before],
        "round_trip": _encoded(model, round_trip),
    }


def _by_frame(
    model: Ready, values: np.ndarray, change: Callable[[np.ndarray], Tensor]
) -> np.ndarray:
    """(E, N+1, ...) -> (E, N+1, ...), changed [infer] batch frames at a time."""
    flat, batch = values.reshape(-1, *values.shape[2:]), model.recipe.infer.batch
    with model.computing():
        parts = [change(flat[i : i + batch]).cpu().numpy() for i in range(0, len(flat), batch)]
    found = np.concatenate(parts)
    return found.reshape(*values.shape[:2], *found.shape[1:])


def _scores(
    names: Sequence[str], measures: Mapping[str, Measure], videos: Rows, truth: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """metric -> row -> (E, N), of the measures that compare frames."""
    pairs = [(name, row) for name in names if name in measures for row in videos]
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, row in track(pairs, "measures", total=len(pairs)):
        found = measures[name](videos[row][:, 1:], truth[:, 1:])
        scores.setdefault(name, {})[row] = found
    return scores


def _set_scores(
    names: Sequence[str], model: Ready, videos: Rows, truth: np.ndarray
) -> dict[str, dict[str, float]]:
    return {
        kind: set_scores(
            kind,
            getattr(model.recipe.eval, kind),
            {row: video[:, 1:] for row, video in videos.items()},
            truth[:, 1:],
            model.device,
        )
        for kind in KINDS
        if kind in names
    }
