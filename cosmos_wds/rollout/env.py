"""The world as a Gymnasium environment: one world, or several that are stepped as one batch.

H rows and W columns at the model's size, A numbers an action, R worlds. Needs cosmos-wds[env].

    env = WorldModelEnv("my/run", "my/shards", reward=my_reward, max_steps=50)
    env = gymnasium.make("cosmos_wds.rollout.env:cosmos-wds/World-v0", world="my/run", starts=...)

Every episode has a seed of its own, drawn from the environment's generator: so a seeded reset gives
the same episodes, and world r of a vector environment the episodes of an environment with seed + r.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cosmos_wds.errors import ConfigError
from cosmos_wds.rollout.starts import StartsFrom
from cosmos_wds.rollout.worlds import (
    Ends,
    Reward,
    Task,
    Worlds,
    no_end,
    no_reward,
    start_option,
)
from cosmos_wds.train.run import LoadedRun

try:
    import gymnasium
    from gymnasium.spaces import Box
    from gymnasium.utils.seeding import np_random
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError("environments need: pip install 'cosmos-wds[env]'") from error

NAME = "cosmos-wds/World-v0"
RENDER_MODES = ("rgb_array",)


class WorldModelEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One world. Observations are its frames, (H, W, 3) uint8.

    An action is (A,) numbers in physical units, in the order of the contract's names; each pose is
    seen from the frame before, a gripper is absolute. It may go beyond `action_space`, whose bounds
    are those of most actions that the model was trained on (`starts.action_limits`).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [*RENDER_MODES], "render_fps": 5}

    def __init__(  # noqa: PLR0913 (an environment's settings)
        self,
        world: LoadedRun | str | Path,
        starts: StartsFrom,
        *,
        split: str = "",
        reward: Reward = no_reward,
        terminated: Ends = no_end,
        max_steps: int = 64,
        render_mode: str | None = None,
    ) -> None:
        """
        world       a checkpoint as `infer` takes it, or a loaded run
        starts      what episodes start from: pictures, image files, or a shard set
        split       of the shard set; val, else test, if left out
        reward      (frame, action, info) -> float
        terminated  (frame, action, info) -> bool
        max_steps   an episode is truncated after so many

        Raises UserError for what cannot be used.
        """
        self._worlds = Worlds(world, starts, split, Task(reward, terminated, max_steps))
        self.render_mode = _checked_mode(render_mode)
        self.observation_space, self.action_space = _spaces(self._worlds)
        self.metadata = {**type(self).metadata, "render_fps": self._worlds.fps}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; returns its first frame, and its `start`, `seed` and `steps`.

        options   {"start": a number or name among the starts, or a picture}; any start without
        Raises ConfigError for options that are none, Blocked when the guardrail refuses.
        """
        super().reset(seed=seed)
        start, drawn = self._worlds.drawn(start_option(options), self.np_random)
        self._worlds.begin([start], [drawn])
        return self._worlds.frames[0], self._worlds.told(0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one frame. Raises DataError for an action that is none, Blocked."""
        frame = self._worlds.step(np.asarray(action)[None])[0]
        judged = self._worlds.judged(0, frame, action)
        told = self._worlds.told(0)
        return frame, judged.reward, judged.terminated, judged.truncated, told

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The current frame (H, W, 3) uint8 in mode rgb_array, else None."""
        return self._worlds.frames[0] if self.render_mode else None

    def close(self) -> None:
        """Let the session go; may be called again."""
        self._worlds.close()


class WorldModelVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """R worlds stepped as one batch, each as `WorldModelEnv`.

    When a world's episode has ended, its next step ignores the action and begins another one
    (AutoresetMode.NEXT_STEP).
    """

    metadata: ClassVar[dict[str, Any]] = {
        **WorldModelEnv.metadata,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(  # noqa: PLR0913 (an environment's settings)
        self,
        world: LoadedRun | str | Path,
        starts: StartsFrom,
        *,
        num_envs: int,
        split: str = "",
        reward: Reward = no_reward,
        terminated: Ends = no_end,
        max_steps: int = 64,
        render_mode: str | None = None,
    ) -> None:
        """As `WorldModelEnv`; reward and terminated are asked for each world alone."""
        if num_envs < 1:
            raise ConfigError(f"num_envs = {num_envs}: at least 1")
        self._worlds = Worlds(world, starts, split, Task(reward, terminated, max_steps))
        self.num_envs, self.render_mode = num_envs, _checked_mode(render_mode)
        self.single_observation_space, self.single_action_space = _spaces(self._worlds)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**type(self).metadata, "render_fps": self._worlds.fps}
        self._random = [np_random()[0] for _ in range(num_envs)]
        self._has_ended = np.zeros(num_envs, bool)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every world; world r is seeded with seed + r, or with seed[r].

        options   {"start": one for all, or a list of R}, as `WorldModelEnv` takes it
        """
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seed = [int(seed) + row for row in range(self.num_envs)]
        for row, one in enumerate(_of_each(seed, self.num_envs, "seed")):
            if one is not None:
                self._random[row] = np_random(one)[0]
        wanted = _of_each(start_option(options), self.num_envs, "start")
        starts, seeds = zip(*map(self._worlds.drawn, wanted, self._random), strict=True)
        self._worlds.begin(starts, seeds)
        self._has_ended[:] = False
        return self._worlds.frames, self._told()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every world by one frame, actions (R, A); those that have ended begin anew.

        Raises DataError for actions that are none, Blocked.
        """
        ended = np.flatnonzero(self._has_ended)
        if len(ended) < self.num_envs:
            rows = np.array(actions, np.float64)
            if rows.shape == self.action_space.shape:
                rows[ended] = 0.0  # these are stepped along, in vain
            self._worlds.step(rows)
        if len(ended):
            drawn = [self._worlds.drawn(None, self._random[row]) for row in ended]
            starts, seeds = zip(*drawn, strict=True)
            self._worlds.begin_anew(ended, starts, seeds)
        frames, rewards = self._worlds.frames, np.zeros(self.num_envs)
        ends = np.zeros((2, self.num_envs), bool)
        for row in np.flatnonzero(~self._has_ended):
            judged = self._worlds.judged(int(row), frames[row], actions[row])
            rewards[row], ends[:, row] = judged.reward, (judged.terminated, judged.truncated)
        self._has_ended = ends.any(axis=0)
        return frames, rewards, ends[0], ends[1], self._told()

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """The current frames in mode rgb_array, else None."""
        return tuple(self._worlds.frames) if self.render_mode else None

    def close_extras(self, **_: Any) -> None:
        """Let the session go."""
        self._worlds.close()

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for row in range(self.num_envs):
            told = self._add_info(told, self._worlds.told(row), row)
        return told


def _spaces(worlds: Worlds) -> tuple[Box, Box]:
    """Of one world: what is seen, and what can be done."""
    limits = worlds.starts.limits
    return Box(0, 255, (*worlds.size, 3), np.uint8), Box(limits.low, limits.high, dtype=np.float32)


def _checked_mode(mode: str | None) -> str | None:
    if mode not in (None, *RENDER_MODES):
        raise ConfigError(f"render_mode = {mode!r}: choose {', '.join(RENDER_MODES)} or None")
    return mode


def _of_each(value: Any, count: int, name: str) -> Sequence[Any]:
    """One for each world: a list is, anything else is for all. Raises ConfigError."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ConfigError(f"{name}: {len(value)} for {count} worlds; give one for each")
    return value


gymnasium.register(
    NAME,
    entry_point="cosmos_wds.rollout.env:WorldModelEnv",
    vector_entry_point="cosmos_wds.rollout.env:WorldModelVectorEnv",
)
