"""What validation looks at, every time the same: windows with their noise, and episodes.

n windows of all ranks, s of this one; R episodes, N actions of width A; C latent channels, T frames
of a window, h x w latent pixels. Which ones and which noise are functions of the split and the
recipe's seed alone. They are read and encoded once and stay in the CPU's memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import torch
from einops import rearrange
from rich.markup import escape
from torch import Tensor

from cosmos_wds.console import console
from cosmos_wds.data.cut import Cutter, Part, at_once, open_reader
from cosmos_wds.data.episode import Batch
from cosmos_wds.data.mixture import Mixture, open_order
from cosmos_wds.data.plan import Windows
from cosmos_wds.data.reader import Held
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.diffusion.noise import Draws, draw
from cosmos_wds.diffusion.rollout import decoded
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import DiffusionSettings, Recipe
from cosmos_wds.train.step import encoded
from cosmos_wds.train.training import Training

LEVELS = 8
"""Noise levels that losses are measured at: each stands for an equal share of training's draws."""
NEVER = 2**32 - 1
"""The step that validation's noise is drawn for: training does not get there."""


@dataclass(frozen=True)
class HeldWindows:
    """This rank's share; as many on every rank, so the last ones may repeat the first."""

    latent: Tensor
    """(s, C, T, h, w) float32"""
    action: Tensor
    """(s, T-1, A) scaled"""
    other: Tensor
    """(s, T-1, A): those of another window"""
    fps: Tensor
    """(s,)"""
    draws: Draws
    """s of each; nothing is hidden from the network"""


@dataclass(frozen=True)
class HeldEpisodes:
    """What rollouts start from, and the truth beside them; all of it on every rank."""

    keys: tuple[str, ...]
    truth: np.ndarray
    """(R, N+1, H, W, 3) uint8"""
    given: Tensor
    """(R, C, h, w)"""
    actions: tuple[Tensor, ...]
    """(R, N, A) scaled: the episodes' own; then another episode's, if there is one."""


class ValidationSet:
    """Fixed windows and episodes of a split."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises DataError when there is no such split, or it holds too little; writes nothing."""
        watch, window = recipe.watch, recipe.window
        self.recipe, self._interval = recipe, window.interval
        try:
            self.sets = ShardSets.load(recipe.data, watch.split)
        except DataError as error:
            raise DataError(f"{error} (choose [watch] split, or validate_every = 0)") from None
        order = _order(self.sets, recipe)
        self.count = min(watch.windows, int(order.counts.sum()))
        if self.count < 2:
            raise DataError(
                f"{self.sets}: split {watch.split} holds one window, and validation takes two or "
                "more; choose another [watch] split, or validate_every = 0"
            )
        self.rows, self.starts = choose_windows(order.counts, self.count, recipe.seed)
        reader = open_reader(self.sets, window)
        skip_bad = recipe.data.on_bad == "skip"
        self._cutter = Cutter(order, reader, range(1), skip_bad=skip_bad, pin=False)
        self._choices = 1 if window.stacked else len(window.cameras)
        each = window.frames - 1
        self.actions = -(-watch.rollout_frames // each) * each
        """Of a rollout: those of whole windows."""
        self._long = self._long_episodes() if watch.rollouts else np.empty(0, int)

    def _long_episodes(self) -> np.ndarray:
        """Rows of the episodes that a rollout fits into. Raises DataError when there is none."""
        watch, interval = self.recipe.watch, self._interval
        lengths = np.concatenate([part.lengths for part in self.sets.parts])
        rows = np.flatnonzero(lengths > self.actions * interval)
        if not len(rows):
            raise DataError(
                f"{self.sets}: [watch] rollout_frames = {watch.rollout_frames} takes episodes of "
                f"{self.actions * interval + 1} frames, and the longest of split {watch.split} has "
                f"{lengths.max()}; lower it, or set rollouts = 0"
            )
        return rows

    def share(self, rank: int, world: int) -> np.ndarray:
        """Numbers of a rank's windows; going on at 0 after the last, so that ranks have equally
        many."""
        each = -(-self.count // world)
        return np.arange(rank * each, (rank + 1) * each) % self.count

    def read_windows(self, run: Training) -> HeldWindows:
        """Read and encode this rank's windows. On all ranks.

        Raises DataError, on all of them, when a shard cannot be read.
        """
        mine = self.share(run.ranks.rank, run.ranks.world)
        latent, action = run.ranks.together(lambda: self._read_windows(run, mine))
        everyones = torch.cat(run.ranks.gather(action))[: self.count]
        # Half the list further: as far away as can be, so almost surely in another episode.
        other = everyones[(mine + self.count // 2) % self.count]
        fps = torch.full((len(mine),), self.fps)
        draws = fixed_draws(
            self.recipe.diffusion, mine.tolist(), seed=self.recipe.seed, shape=run.latent_shape
        )
        return HeldWindows(latent, action, other, fps, draws)

    def _read_windows(self, run: Training, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Latents (s, C, T, h, w) and scaled actions (s, T-1, A) of windows by their numbers."""
        latents, actions = [], []
        rows = micro_batch(run)
        for i in range(0, len(numbers), rows):
            chosen = numbers[i : i + rows]
            choices = chosen % self._choices
            places = Windows(self.rows[chosen], self.starts[chosen], choices, chosen)
            part = self._cutter.cut(self._cutter.ask(places, at_once))
            for _, reason in part.replaced:
                _tell(reason)
            batch = self._batch(part)
            latents.append(encoded(run, batch, slice(None)).cpu())
            actions.append(batch.action)
        self._cutter.forget()
        return torch.cat(latents), torch.cat(actions)

    def _batch(self, part: Part) -> Batch:
        assert part.frames is not None and part.action is not None
        return Batch(
            **self._cutter.reader.as_batch(part.frames),
            action=part.action,
            fps=torch.full((len(part.keys),), self.fps),
            key=part.keys,
            start=part.starts,
        )

    @property
    def fps(self) -> float:
        """Frames per second of windows and rollouts."""
        return self.sets.contract.fps / self._interval

    def read_episodes(self, run: Training) -> HeldEpisodes | None:
        """The episodes to roll out; None when none are asked for. On all ranks, all the same.

        Spread evenly over those that are long enough. Raises DataError, on all ranks, when a shard
        cannot be read.
        """
        if not len(self._long):
            return None
        return run.ranks.together(lambda: self._read_episodes(run))

    def _read_episodes(self, run: Training) -> HeldEpisodes:
        total = len(self._long)
        count = min(self.recipe.watch.rollouts, total)
        places = [i * total // count for i in range(count)]
        episodes = [self._read_episode(at) for at in places]
        actions = [[self._rollout_actions(held) for held in episodes]]
        if total > 1 and self.recipe.model.actions != "none":
            others = [self._read_episode((at + total // 2) % total) for at in places]
            actions.append([self._rollout_actions(held) for held in others])
        every = slice(0, self.actions * self._interval + 1, self._interval)
        frames = torch.from_numpy(np.stack([held.frames[every] for held in episodes]))
        if self.sets.latents:
            latent = rearrange(frames.float(), "r t c h w -> r c t h w").to(run.ranks.device)
            truth = decoded(run.tokenizer, latent)
            given = latent[:, :, 0]
        else:
            truth = frames.numpy()
            video = rearrange(frames[:, :1], "r t h w c -> r c t h w").to(run.ranks.device)
            given = run.tokenizer.encode(video.contiguous())[:, :, 0]
        scaled = (torch.from_numpy(self.sets.contract.scaled(np.stack(a))) for a in actions)
        keys = tuple(held.key for held in episodes)
        return HeldEpisodes(keys, truth, given.cpu(), tuple(scaled))

    def _read_episode(self, at: int) -> Held:
        """A long episode by its place among them; what replaces a bad one may be too short."""
        for i in range(len(self._long)):
            row = int(self._long[(at + i) % len(self._long)])
            held = self._cutter.read(row, 0)
            if held.reason:
                _tell(held.reason)
            if len(held.frames) > self.actions * self._interval:
                return held
        raise DataError(f"{self.sets}: no readable episode for [watch] rollouts; set it to 0")

    def _rollout_actions(self, held: Held) -> np.ndarray:
        """(N, A) in physical units: window after window, as a rollout's calls take them."""
        cut, each = self._cutter.reader.actions.cut, self.recipe.window.frames - 1
        starts = range(0, self.actions * self._interval, each * self._interval)
        return np.concatenate([cut(held.actions, start) for start in starts])


def _tell(reason: str) -> None:
    """Warn, on whichever rank it was met, that another episode stands for a bad one."""
    console.print(f"[yellow]warning:[/yellow] validation: bad episode replaced: {escape(reason)}")


def micro_batch(run: Training) -> int:
    """Windows that a rank trains on at once, so that it has the memory for them."""
    return len(run.lanes) // run.recipe.train.accumulate


def choose_windows(counts: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` different windows, spread evenly over all: rows of episodes, and first frames.

    counts   (E,) windows of each episode, at least `count` in all
    """
    ends = np.cumsum(counts)
    edges = np.arange(count + 1) * int(ends[-1]) // count
    places = np.random.default_rng((seed, NEVER)).integers(edges[:-1], edges[1:])
    rows = np.searchsorted(ends, places, side="right")
    return rows, places - (ends[rows] - counts[rows])


def noise_levels(diffusion: DiffusionSettings) -> list[float]:
    """The medians of LEVELS equal parts of training's noise levels."""
    normal = NormalDist()
    parts = [normal.inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS)]
    return [float(np.exp(diffusion.p_mean + diffusion.p_std * part)) for part in parts]


def fixed_draws(
    diffusion: DiffusionSettings,
    numbers: Sequence[int],
    *,
    seed: int,
    shape: tuple[int, int, int, int],
) -> Draws:
    """The draws of windows by their numbers: window i is seen at noise level i modulo LEVELS.

    As in training, but that the first frame is always given and shown, and so are the actions.
    """
    shown = {"conditioning": "given", "given_drop": 0.0, "action_drop": 0.0}
    draws = draw(
        diffusion.model_copy(update=shown),
        seed=seed,
        step=NEVER,
        lanes=numbers,
        latent_shape=shape,
    )
    levels = torch.tensor(noise_levels(diffusion))
    return replace(draws, sigma=levels[torch.tensor(numbers) % LEVELS])


def _order(sets: ShardSets, recipe: Recipe) -> Mixture:
    """The sets' windows, for their numbers and for what replaces bad episodes.

    Raises DataError when an episode of none is long enough for a window.
    """
    weights = (1.0,) * len(sets.parts)
    alike = recipe.model_copy(update={"data": recipe.data.model_copy(update={"weights": weights})})
    return open_order(sets, alike, len(sets.parts), training=True)
