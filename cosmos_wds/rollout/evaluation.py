"""What an evaluation holds: rollouts of held-out episodes, yardsticks, and their scores.

E episodes, N actions, A numbers an action, H x W pixels. A row is a kind of video that is compared
with the recordings: rollouts under the episodes' own actions (TRUE) and under WRONG ones, and
YARDSTICKS, which no model made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.train.interval import Interval, mean_interval

TRUE = "true"
WRONG = ("shuffled", "zero", "negated", "shifted")
"""rollout/wrong.py says what each of them is."""
YARDSTICKS = ("first", "previous", "round_trip")
"""The first frame, standing still; the true frame before; the recording through the tokenizer."""
LOWER_IS_CLOSER = frozenset({"latent_l2", "lpips", "fvd", "fid"})


@dataclass(frozen=True)
class GripperPath:
    """How far the gripper is from where it should be."""

    error: Mapping[str, np.ndarray]
    """row -> (E, N) pixels between the gripper in the video and its true place; NaN where it is not
    found"""
    places: Mapping[str, np.ndarray]
    """row -> (E, N, 2): column and row of the gripper in the video; NaN where it is not found"""
    truth: np.ndarray
    """(E, N+1, 2): its true places"""


@dataclass(frozen=True)
class Control:
    """Does the model do what its actions say? (rollout/control.py)"""

    score: Interval
    """The share of the achievable gap that the model realises, against shuffled actions."""
    shares: Mapping[str, Interval]
    """The same against each kind of WRONG actions."""
    gaps: Mapping[str, Mapping[str, Interval]]
    """metric -> WRONG -> how much closer true actions come: paired, mean over steps"""
    loss_gap: Interval | None
    """Denoising loss under shuffled actions less under true ones, on the same noise; None when the
    rollouts are shorter than a window."""
    path: GripperPath | None
    """Where the camera is known."""


@dataclass(frozen=True)
class Evaluation:
    """Rollouts of held-out episodes beside the truth."""

    episodes: HeldOut
    rollouts: Mapping[str, np.ndarray]
    """TRUE, and those of WRONG that were asked for -> (E, N+1, H, W, 3) uint8"""
    yardsticks: Mapping[str, np.ndarray]
    """YARDSTICKS -> the same shape"""
    scores: Mapping[str, Mapping[str, np.ndarray]]
    """metric -> row -> (E, N); column s-1 is s steps ahead"""
    set_scores: Mapping[str, Mapping[str, float]]
    """metric of all videos together -> row -> number"""
    control: Control
    protocol: Mapping[str, str]
    """What was measured, and how, in words."""

    def curve(self, metric: str, row: str) -> tuple[Interval, ...]:
        """One interval for each step ahead: mean over episodes."""
        return tuple(mean_interval(values) for values in self.scores[metric][row].T)

    def gain(self, metric: str, over: str) -> tuple[Interval, ...]:
        """For each step ahead, how much closer true actions come than another row, paired."""
        return tuple(mean_interval(values) for values in closer(self.scores, metric, over).T)


def closer(scores: Mapping[str, Mapping[str, np.ndarray]], metric: str, over: str) -> np.ndarray:
    """(E, N) how much closer true actions come than another row; above zero: closer."""
    sign = -1 if metric in LOWER_IS_CLOSER else 1
    return sign * (scores[metric][TRUE] - scores[metric][over])
