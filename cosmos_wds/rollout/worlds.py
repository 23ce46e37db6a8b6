"""Worlds that an environment or a page steps: a run made ready for it, and R episodes in one batch.

H rows and W columns at the model's size, A numbers an action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe import Recipe
from cosmos_wds.rollout.described import adjusted, describe
from cosmos_wds.rollout.ready import contract_of
from cosmos_wds.rollout.session import Session
from cosmos_wds.rollout.starts import Start, StartsFrom, checked, open_starts
from cosmos_wds.train.parallel import choose_device
from cosmos_wds.train.run import LoadedRun, load_run

SEEDS = 2**32

Told = Mapping[str, Any]
Reward = Callable[[np.ndarray, np.ndarray, Told], float]
"""(the frame (H, W, 3) uint8, the action (A,) that led to it, what is told beside it) -> reward"""
Ends = Callable[[np.ndarray, np.ndarray, Told], bool]
"""The same -> whether the episode ends there."""


def load_world(checkpoint: str | Path, recipe: Recipe | None = None) -> LoadedRun:
    """A run ready to be stepped, on the GPU where there is one.

    recipe   its own with another [infer]; None: its own
    Raises UserError; for a model without actions, and for a guardrail that is not there, before the
    weights are read.
    """
    recipe = recipe or adjusted(describe(str(checkpoint))[0])
    run = load_run(checkpoint, weights=recipe.infer.weights, device=choose_device("auto"))
    return replace(run, recipe=recipe)


def no_reward(*_: object) -> float:
    """Nothing is gained."""
    return 0.0


def no_end(*_: object) -> bool:
    """Nothing ends an episode but its length."""
    return False


@dataclass(frozen=True)
class Task:
    """What an episode is about."""

    reward: Reward = no_reward
    terminated: Ends = no_end
    max_steps: int = 64
    """An episode is truncated after so many."""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ConfigError(f"max_steps = {self.max_steps}: at least 1")


@dataclass(frozen=True)
class Judged:
    """What one world's step came to."""

    reward: float
    terminated: bool
    truncated: bool


@dataclass
class _Episode:
    start: str
    seed: int
    steps: int = 0

    @property
    def told(self) -> dict[str, Any]:
        return {"start": self.start, "seed": self.seed, "steps": self.steps}


class Worlds:
    """R worlds of one session, with what is known of the episode that each is in."""

    def __init__(
        self, world: LoadedRun | str | Path, starts: StartsFrom, split: str, task: Task
    ) -> None:
        """Raises UserError for a model or starts that cannot be used."""
        self.run = world if isinstance(world, LoadedRun) else load_world(world)
        self.contract = contract_of(self.run)
        recipe, window = self.run.recipe, self.run.recipe.window
        self.starts = open_starts(starts, contract=self.contract, recipe=recipe, split=split)
        self.task = task
        self.size = (window.picture_height, window.width)
        self.fps = self.contract.fps / window.interval
        self._session: Session | None = None
        self._episodes: list[_Episode] = []

    @property
    def frames(self) -> np.ndarray:
        """The current frames, (R, H, W, 3) uint8."""
        assert self._session, "reset the environment first"
        return self._session.frames

    def told(self, row: int) -> dict[str, Any]:
        """Of a world's episode: what it started from, its seed, and how many steps it took."""
        return self._episodes[row].told

    def begin(self, starts: Sequence[Start], seeds: Sequence[int]) -> None:
        """Let all worlds begin. Raises Blocked when the guardrail refuses a picture."""
        pictures = np.stack([start.picture for start in starts])
        self._session = Session(self.run, pictures, seed=list(seeds))
        self._episodes = [_Episode(s.name, n) for s, n in zip(starts, seeds, strict=True)]

    def begin_anew(
        self, rows: Sequence[int], starts: Sequence[Start], seeds: Sequence[int]
    ) -> None:
        """Let some begin anew. Raises Blocked."""
        assert self._session, "reset the environment first"
        self._session.reset(rows, np.stack([start.picture for start in starts]), list(seeds))
        for row, start, seed in zip(rows, starts, seeds, strict=True):
            self._episodes[row] = _Episode(start.name, seed)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Advance all by their actions (R, A), physical units -> frames (R, H, W, 3) uint8.

        Raises DataError for actions that are none, Blocked.
        """
        assert self._session, "reset the environment first"
        frames = self._session.step(actions)
        for episode in self._episodes:
            episode.steps += 1
        return frames

    def judged(self, row: int, frame: np.ndarray, action: np.ndarray) -> Judged:
        """What the task says of a world's last step."""
        told = self.told(row)
        return Judged(
            float(self.task.reward(frame, action, told)),
            bool(self.task.terminated(frame, action, told)),
            self._episodes[row].steps >= self.task.max_steps,
        )

    def close(self) -> None:
        """Let the session go."""
        self._session = None

    def drawn(self, wanted: object, random: np.random.Generator) -> tuple[Start, int]:
        """The start that is asked for, or any, and a seed.

        wanted   a number or a name among the starts, a picture (H, W, 3) uint8, or None for any
        Raises ConfigError for what is none of these.
        """
        any_number, seed = int(random.integers(len(self.starts.names))), int(random.integers(SEEDS))
        if isinstance(wanted, np.ndarray) and wanted.ndim:
            return Start("picture", checked(wanted, self.run.recipe.window)), seed
        if isinstance(wanted, str):
            return self.starts.read(self.starts.number(wanted)), seed
        if wanted is None:
            return self.starts.read(any_number), seed
        if not isinstance(wanted, int | np.integer) or isinstance(wanted, bool):
            raise ConfigError(f"start = {wanted!r}: a number, a name or a picture (H, W, 3) uint8")
        if not 0 <= wanted < len(self.starts.names):
            raise ConfigError(f"start = {wanted}: there are {len(self.starts.names)}, from 0")
        return self.starts.read(int(wanted)), seed


def start_option(options: Mapping[str, Any] | None) -> Any:
    """`start` of a reset's options; None without. Raises ConfigError for any other option."""
    unknown = sorted(set(options or {}) - {"start"})
    if unknown:
        raise ConfigError(f"options of reset: {', '.join(unknown)}: unknown; there is start")
    return (options or {}).get("start")
