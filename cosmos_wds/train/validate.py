"""Validation while training: the loss on held-out windows, whether the model listens to its
actions, and rollouts as pictures.

    loss              of the weights as trained, and of their average
    listening_gap     what shuffled actions cost: loss under another window's actions, less the
                      loss under the true ones, with its 95 % interval over the windows
    loss_by_sigma,    the same by noise level
    gap_by_sigma
    validation/       film strips: the recording, its rollout, a rollout under another episode's
                      actions

Windows, noise and shuffle are the same each time (validation_set.py), so what differs from one
validation to the next are the weights. Training is not touched: nothing is drawn from torch's
generators, no gradient is made, and the weights are again what they were, bit for bit.

Every rank calls the network equally often, in step with the others: under FSDP each call gathers
weights from all of them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from cosmos_wds.console import say, warn
from cosmos_wds.diffusion.guardrail import Blocked, guarded, load_guardrail
from cosmos_wds.diffusion.rollout import pictures, rollout_latents, rollout_noise
from cosmos_wds.model.weights import local_part
from cosmos_wds.recipe import Recipe, with_infer
from cosmos_wds.train.folder import PICTURES
from cosmos_wds.train.interval import Interval, mean_interval, words
from cosmos_wds.train.pictures import film_strip, write_png
from cosmos_wds.train.training import Training
from cosmos_wds.train.validation_set import (
    HeldEpisodes,
    HeldWindows,
    ValidationSet,
    micro_batch,
    noise_levels,
)
from cosmos_wds.train.watch import Watch
from cosmos_wds.train.window_loss import window_losses

GAP = ("listening_gap", "listening_gap_low", "listening_gap_high")


class Validation:
    """Measures a run at some of its steps. On all ranks."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises UserError when the recipe asks for what is not there; writes nothing."""
        self._every, self._last = recipe.watch.validate_every, recipe.train.steps
        self._set = ValidationSet(recipe) if self._every else None
        self._held: tuple[HeldWindows, HeldEpisodes | None] | None = None
        if self._set and recipe.watch.rollouts:
            load_guardrail(recipe.infer.guardrail)

    def go_on(self, run: Training, watch: Watch) -> None:
        """Make up for a validation that the run was stopped before: at the start of its steps."""
        [done, *_] = run.ranks.gather(watch.validated)
        if done != run.step:
            self.after_step(run, watch)

    def after_step(self, run: Training, watch: Watch) -> None:
        """Validate when this step's turn has come. Raises DataError for a shard that is bad."""
        is_due = run.step and (run.step == self._last or run.step % (self._every or 1) == 0)
        if self._set is None or not is_due:
            return
        began = time.perf_counter()
        with torch.no_grad(), _eager(run):
            if self._held is None:
                self._held = self._set.read_windows(run), self._set.read_episodes(run)
            windows, episodes = self._held
            line, films = self._measure(run, windows, episodes)
        pictures: dict[str, np.ndarray] = {}
        if episodes is not None:
            run.ranks.on_first(lambda: pictures.update(write_strips(run, episodes, films)))
        say(f"step {run.step}: {summary(line)}")
        watch.validation(line, pictures, seconds=time.perf_counter() - began)

    def _measure(
        self, run: Training, windows: HeldWindows, episodes: HeldEpisodes | None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """The line of validation.jsonl; and rollouts as `roll_out` gives them, if there are any."""
        levels = [f"{sigma:.3g}" for sigma in noise_levels(run.recipe.diffusion)]
        true = self._losses(run, windows, windows.action)
        line = {"step": run.step, "windows": len(true), "loss": float(true.mean())}
        line["loss_by_sigma"] = _by_level(levels, true)
        if run.recipe.model.actions != "none":
            gaps = self._losses(run, windows, windows.other) - true
            gap = mean_interval(gaps)
            line |= dict(zip(GAP, gap, strict=True))
            line["gap_by_sigma"] = _by_level(levels, gaps)
        films = np.empty(0)
        is_average = bool(run.ema.average) and run.recipe.infer.weights == "ema"
        if run.ema.average:
            with averages_in_place(run):
                line["loss_ema"] = float(self._losses(run, windows, windows.action).mean())
                if episodes is not None and is_average:
                    films = roll_out(run, episodes, fps=self._set.fps)
        if episodes is not None and not is_average:
            films = roll_out(run, episodes, fps=self._set.fps)
        return line, films

    def _losses(self, run: Training, windows: HeldWindows, action: Tensor) -> np.ndarray:
        """The training loss of every rank's windows under these actions, (n,) float64."""
        losses = window_losses(
            run.denoiser,
            windows,
            action,
            rows=micro_batch(run),
            device=run.ranks.device,
            precision=run.precision,
        )
        _reshard(run)
        return np.concatenate(run.ranks.gather(losses.cpu().numpy()))[: self._set.count]


def roll_out(run: Training, episodes: HeldEpisodes, *, fps: float) -> np.ndarray:
    """Rollouts of the episodes, (K R, N, H, W, 3) uint8: under their own actions, then others'.

    On all ranks; on those beyond rank zero, which write nothing, the result is empty.
    """
    recipe, device, count = run.recipe, run.ranks.device, len(episodes.keys)
    action = torch.cat(episodes.actions).to(device)
    numbers = [*range(count)] * len(episodes.actions)  # equal noise for equal episodes
    videos = []
    for i in range(0, len(action), recipe.infer.batch):
        rows = slice(i, i + recipe.infer.batch)
        calls = rollout_latents(
            run.denoiser,
            episodes.given[numbers[rows]].to(device),
            action[rows],
            fps=torch.full((len(action[rows]),), fps, device=device),
            recipe=with_infer(recipe, frames_per_call=0),  # the windows that it trains on
            noise=partial(
                rollout_noise, kind=recipe.infer.noise, seed=recipe.seed, numbers=numbers[rows]
            ),
            tokenizer=run.tokenizer,
        )
        with torch.autocast(device.type, run.precision, enabled=run.precision != torch.float32):
            parts = [*calls]
        if run.ranks.rank == 0:
            videos.append(pictures(run.tokenizer, parts))
    _reshard(run)
    return np.concatenate(videos) if videos else np.empty(0)


def write_strips(run: Training, episodes: HeldEpisodes, films: np.ndarray) -> dict[str, np.ndarray]:
    """Write a film strip for each episode; returns them by name.

    Frames pass the recipe's guardrail first; when that refuses them there are none. Raises
    DataError when the disk refuses.
    """
    count = len(episodes.keys)
    first = np.concatenate([episodes.truth[:, :1]] * len(episodes.actions))
    try:
        films = guarded(run.recipe.infer.guardrail, np.concatenate([first, films], axis=1))
    except Blocked as refusal:
        warn(escape(str(refusal)))
        return {}
    folder, pictures = run.folder / PICTURES / f"step_{run.step:09d}", {}
    for i, key in enumerate(episodes.keys):
        pictures[key] = film_strip([episodes.truth[i], *films[i::count]])
        write_png(folder / f"{key}.png", pictures[key])
    return pictures


def summary(line: Mapping[str, Any]) -> str:
    """A line of validation.jsonl in words."""
    average = f" ({line['loss_ema']:.4f} with averaged weights)" if "loss_ema" in line else ""
    told = f"validation loss {line['loss']:.4f}{average}"
    if "listening_gap" not in line:
        return told
    gap = Interval(*(line[key] for key in GAP))
    verdict = "listens" if gap.low > 0 else "does not listen yet"
    return f"{told}; shuffled actions cost {words(gap, '+', digits=4)}: the model {verdict}"


def _by_level(levels: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Means of the windows that are seen at each noise level."""
    found = ((level, values[i :: len(levels)]) for i, level in enumerate(levels))
    return {level: float(part.mean()) for level, part in found if len(part)}


@contextmanager
def averages_in_place(run: Training) -> Iterator[None]:
    """Within it, the parameters hold their averages, and the averages what the parameters held."""
    _exchange(run)
    try:
        yield
    finally:
        _exchange(run)


@torch.no_grad()
def _exchange(run: Training) -> None:
    """In place, tensor by tensor, so that it takes the memory of one; of a DTensor, this rank's
    part."""
    for name, average in run.ema.average.items():
        one, two = (local_part(tensor) for tensor in (run.parameters[name], average))
        assert one.dtype == two.dtype, f"{name}: rounding would not come back"
        kept = one.to(two.device, copy=True)
        one.copy_(two)
        two.copy_(kept)


def _reshard(run: Training) -> None:
    """Under FSDP, let go of gathered weights, which the next forward pass would take otherwise.

    The outermost module keeps its own until backward, and here there is none.
    """
    for module in run.denoiser.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _eager(run: Training) -> AbstractContextManager[None]:
    """Not through compiled blocks: batches of other sizes would have training's compiled anew."""
    if not run.recipe.train.compile:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
