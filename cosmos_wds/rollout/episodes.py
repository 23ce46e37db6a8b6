"""Held-out episodes, and how close rollouts come to them: does the model follow its actions?

E episodes, N actions, A numbers an action. Every episode is rolled out twice from its own first
frame with the same noise: under its own actions, and under those of the next episode of the list
(the last one's of the first). A model that does not listen is as far from the truth either way.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cosmos_wds.console import say
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.reader import VideoReader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.rollout.inputs import rollout_actions
from cosmos_wds.rollout.metrics import StepRow, psnr
from cosmos_wds.rollout.rollout import rollout_with_bar
from cosmos_wds.train.interval import Interval, mean_interval
from cosmos_wds.train.run import LoadedRun


@dataclass(frozen=True)
class HeldOut:
    """Episodes that training has not seen, cut to one length, at the model's size."""

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    frames: np.ndarray
    """(E, N+1, H, W, 3) uint8"""
    actions: np.ndarray
    """(E, N, A) float64, physical units"""
    digest: str
    """Of the split that they are taken from."""


@dataclass(frozen=True)
class Evaluation:
    """Rollouts of held-out episodes beside the truth."""

    episodes: HeldOut
    true: np.ndarray
    """(E, N+1, H, W, 3) uint8, under the episode's own actions"""
    other: np.ndarray
    """The same under another episode's actions."""

    @property
    def copy(self) -> np.ndarray:
        """The first frame, N+1 times."""
        return np.broadcast_to(self.episodes.frames[:, :1], self.episodes.frames.shape)

    @cached_property
    def psnr(self) -> dict[str, np.ndarray]:
        """`true`, `other`, `copy`: (E, N) in dB; column s-1 is s steps ahead."""
        truth = self.episodes.frames[:, 1:]
        videos = {"true": self.true, "other": self.other, "copy": self.copy}
        return {name: psnr(video[:, 1:], truth) for name, video in videos.items()}

    @cached_property
    def gain(self) -> Interval:
        """How much closer true actions come than another episode's, in dB: mean over all steps."""
        return mean_interval((self.psnr["true"] - self.psnr["other"]).mean(axis=1))

    @cached_property
    def rows(self) -> tuple[StepRow, ...]:
        """One row for each step ahead, 1 .. N."""
        true, other, copy = (self.psnr[name].T for name in ("true", "other", "copy"))
        return tuple(
            StepRow(
                step,
                *map(mean_interval, (t, o, c)),
                over_other=mean_interval(t - o),
                over_copy=mean_interval(t - c),
            )
            for step, (t, o, c) in enumerate(zip(true, other, copy, strict=True), start=1)
        )


def held_out(
    shards: Path | str,
    split: str,
    *,
    contract: ActionContract,
    window: WindowSettings,
    steps: int,
    episodes: int | None = None,
) -> HeldOut:
    """Read the episodes of at least `steps` actions, cut to that length.

    episodes   how many, evenly spread over the split; None: all

    Raises DataError when there are fewer than two, since each needs another one's actions, and when
    the shards' actions mean something else than `contract`, the model's.
    """
    index = ShardIndex.read(shards).split(split)
    if index.contract.digest != contract.digest:
        lines = "\n  ".join(contract.differences(index.contract))
        raise DataError(
            f"{shards}: the shards' actions mean something else than the model's (contract "
            f"{index.contract.digest} there, {contract.digest} here); shard the recordings with "
            f"the model's [actions]\n  {lines}"
        )
    long_enough = np.flatnonzero(index.lengths > steps * window.interval)
    if len(long_enough) < 2:
        raise DataError(
            f"{shards}: {len(long_enough)} episodes of split {split} have {steps} actions at "
            f"interval {window.interval}, and comparing actions takes two; lower the steps"
        )
    count = min(episodes or len(long_enough), len(long_enough))
    if count < min(episodes or len(index.rows), len(index.rows)):
        say(f"{split}: {count} of {len(index.rows)} episodes have {steps} actions")
    rows = [int(long_enough[i * len(long_enough) // count]) for i in range(count)]
    reader = VideoReader(ShardSets((index,)), window)
    frames, actions = [], []
    for row in rows:
        shown = reader.read(row).frames
        frames.append(shown[: steps * window.interval + 1 : window.interval])
        state, action = (index.read_array(row, f"{name}.npy") for name in ("state", "action"))
        actions.append(rollout_actions(contract, state, action, window=window, count=steps))
    return HeldOut(
        keys=tuple(index.rows[row].key for row in rows),
        texts=tuple(str(index.read_json(row).get("text", "")) for row in rows),
        frames=np.stack(frames),
        actions=np.stack(actions),
        digest=index.digest,
    )


def others(actions: np.ndarray) -> np.ndarray:
    """Actions (E, N, A) with each episode given those of the next one, the last the first's."""
    return np.roll(actions, -1, axis=0)


def evaluate(
    run: LoadedRun, episodes: HeldOut, *, seed: int = 0, steps: int | None = None
) -> Evaluation:
    """Roll out every episode under its own actions and under another one's, with equal noise.

    steps   sampler steps per call; None: the recipe's
    """
    first = episodes.frames[:, 0]
    true, other = (
        rollout_with_bar(run, first, actions, seed=seed, steps=steps, title=title)
        for title, actions in (
            ("true actions", episodes.actions),
            ("another episode's actions", others(episodes.actions)),
        )
    )
    return Evaluation(episodes, true, other)
