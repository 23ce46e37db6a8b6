"""The rollouts of one command: what each is called, how long it is, and how its inputs are read.

Inputs of a single rollout are read at once; those of many episodes of a shard set when their turn
comes, so that memory does not grow with their number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from cosmos_wds.console import warn
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.reader import VideoReader, read_rows
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.recipe import Recipe
from cosmos_wds.rollout.asked import Asked, Inputs, given_actions, read_inputs, start_of
from cosmos_wds.rollout.choice import Choice, read_choices
from cosmos_wds.rollout.inputs import fitted, read_picture, rollout_actions

SHOWN = 3  # keys that a warning names


@dataclass(frozen=True)
class Job:
    """One rollout's inputs; with several seeds, those of several rollouts."""

    name: str
    """Of its files, without ending."""
    count: int
    """Actions."""
    read: Callable[[], Inputs] = field(repr=False)
    """Raises UserError."""
    source: str = ""
    """Digest of what it is made from: a split of shards, an annotation, a log."""


def single_job(asked: Asked, *, contract: ActionContract, recipe: Recipe, with_truth: bool) -> Job:
    """The job of a first frame and actions, read here. Raises UserError."""
    inputs = read_inputs(asked, contract=contract, recipe=recipe, with_truth=with_truth)
    named = asked.annotation or asked.first
    assert named is not None, "something gave the first frame"
    return Job(named.stem, len(inputs.actions), lambda: inputs, digest(named))


def episode_jobs(
    asked: Asked,
    episodes: Sequence[str],
    *,
    contract: ActionContract,
    recipe: Recipe,
    with_truth: bool,
) -> list[Job]:
    """A job for each episode that `episodes` names (choice.py) of the sets of the recipe's [data].

    What `asked` names takes the place of the episodes' own first frames and actions. Raises
    UserError when there is no such episode, or its actions mean something else than the model's.
    """
    jobs = []
    for choice in read_choices(episodes):
        split = _Split(asked, _opened(recipe, choice), contract, recipe)
        if with_truth and asked.own_actions:
            raise ConfigError(
                f"--compare: the recordings show their own actions, not those of "
                f"{asked.own_actions}"
            )
        jobs += list(split.jobs(choice))
    jobs = list({job.name: job for job in jobs}.values())
    if not jobs:
        raise DataError(f"{' '.join(episodes)}: none of these episodes holds an action")
    return jobs


def _opened(recipe: Recipe, choice: Choice) -> ShardSets:
    try:
        sets = ShardSets.load(recipe.data, choice.split)
    except DataError as error:
        raise DataError(f"{error}; --shards names another set") from None
    if sets.latents:
        raise DataError(
            f"{sets}: holds latents, and a rollout starts from a picture; name the shards that "
            "they were made from: --shards PATH"
        )
    return sets


class _Split:
    """One split of the sets, and what is rolled out of it."""

    def __init__(
        self, asked: Asked, sets: ShardSets, contract: ActionContract, recipe: Recipe
    ) -> None:
        self._asked, self._sets, self._contract, self._recipe = asked, sets, contract, recipe
        self._reader = VideoReader(sets, recipe.window)
        self._is_ours = sets.contract.digest == contract.digest
        self._has_spoken = False
        picture = read_picture(asked.first) if asked.first else None
        self._first = None if picture is None else fitted(picture, recipe.window)
        if not asked.own_actions:
            self._check_actions()

    def jobs(self, choice: Choice) -> Iterator[Job]:
        """One job an episode; those too short for an action are told and left out."""
        rows = [self._sets.find(row) for row in range(self._sets.episodes)]
        keys = [index.rows[at].key for index, at in rows]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise ConfigError(f"{self._sets}: both have an episode {twice[0]}; name one: --shards")
        short = []
        for row in choice.rows(keys):
            actions = self._given(row) if self._asked.own_actions else None
            count = self._count(row) if actions is None else len(actions)
            if count < 1:
                short.append(keys[row])
                continue
            yield Job(keys[row], count, partial(self._read, row, count, actions), self._sets.digest)
        if short:
            names = ", ".join(short[:SHOWN]) + (", ..." if len(short) > SHOWN else "")
            interval = self._recipe.window.interval
            warn(f"{len(short)} episodes hold no action at interval {interval}: {names}: left out")

    def _count(self, row: int) -> int:
        index, at = self._sets.find(row)
        count = (index.rows[at].frames - 1) // self._recipe.window.interval
        return min(count, self._asked.count or count)

    def _read(self, row: int, count: int, actions: np.ndarray | None) -> Inputs:
        window = self._recipe.window
        if actions is not None:
            first = self._reader.first(row) if self._first is None else self._first
            return Inputs(first, actions, None)
        frames = self._reader.read(row).frames[: count * window.interval + 1 : window.interval]
        state, action = self._arrays(row)
        rows = rollout_actions(
            self._contract, state, action, window=self._recipe.call_window, count=count
        )
        return Inputs(frames[0] if self._first is None else self._first, rows, frames)

    def _given(self, row: int) -> np.ndarray:
        """The actions of a .npy, or of the script as it is meant in an episode."""
        levels = None
        if self._asked.script is not None and self._is_ours:
            levels = start_of(self._contract, *self._arrays(row))
        try:
            return given_actions(
                self._asked,
                self._contract,
                self._recipe.call_window,
                levels,
                quiet=self._has_spoken,
            )
        except ConfigError as error:
            raise ConfigError(f"{self._sets.name(row)}: {error}") from None
        finally:
            self._has_spoken = True

    def _arrays(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """An episode's states (T, S) and actions (T-1, A)."""
        index, at = self._sets.find(row)
        action = read_rows(index, at, "action.npy", index.rows[at].frames - 1)
        return index.read_array(at, "state.npy"), action

    def _check_actions(self) -> None:
        """Raise UserError unless the episodes' actions are what the model takes."""
        self._sets.check_contract(self._contract)
        if self._recipe.infer.actions == "recorded" and self._contract.signal == "state":
            raise ConfigError(
                f"{self._sets}: holds actions computed from states, and [infer] actions = "
                '"recorded" asks for those that the recording says; name an annotation, or add '
                "--set infer.actions=contract"
            )


def batches(counts: Sequence[int], size: int) -> list[list[int]]:
    """Rollouts of `counts` actions, cut into batches of at most `size` of about equal length.

    Their numbers; the shortest come first.
    """
    order = sorted(range(len(counts)), key=lambda i: (counts[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def stacked(inputs: Sequence[Inputs]) -> tuple[np.ndarray, np.ndarray]:
    """First frames (B, H, W, 3) and actions (B, N, A), N being the largest of theirs.

    Shorter ones repeat their last action, as the last sampler call of each would by itself.
    """
    most = max(len(one.actions) for one in inputs)
    rows = [
        np.concatenate([one.actions, one.actions[-1:].repeat(most - len(one.actions), axis=0)])
        for one in inputs
    ]
    return np.stack([one.first for one in inputs]), np.stack(rows)


def digest(path: Path) -> str:
    """Sixteen hex digits of a file's content."""
    return sha256(path.read_bytes()).hexdigest()[:16]
