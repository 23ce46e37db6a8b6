"""Which episodes of an evaluation are shown: the closest, typical ones and the furthest.

E episodes, N steps ahead.
"""

from dataclasses import dataclass

import numpy as np

from cosmos_wds.rollout.evaluation import TRUE, Evaluation
from cosmos_wds.rollout.metrics import psnr

CLOSEST, TYPICAL, FURTHEST = "closest", "typical", "furthest"


@dataclass(frozen=True)
class Case:
    """An episode that is shown, and why."""

    episode: int
    """Its place in the evaluation."""
    kind: str
    """CLOSEST, TYPICAL or FURTHEST."""
    rank: int
    """Its place by mean PSNR under true actions; 1 comes closest to its recording."""


def decibels(evaluation: Evaluation, row: str = TRUE) -> np.ndarray:
    """(E, N) PSNR of rollouts, also where it was not asked for."""
    if "psnr" in evaluation.scores:
        return evaluation.scores["psnr"][row]
    return psnr(evaluation.rollouts[row][:, 1:], evaluation.episodes.frames[:, 1:])


def ranked(evaluation: Evaluation) -> np.ndarray:
    """(E,) episodes by mean PSNR over all steps under true actions, the closest first."""
    return np.argsort(-decibels(evaluation).mean(axis=1), kind="stable")


def cases(evaluation: Evaluation, count: int = 6) -> tuple[Case, ...]:
    """About `count` cases, a third of each kind: the ends of the ranking and its middle.

    One of each kind at least, as far as there are episodes; never an episode twice.
    """
    order = ranked(evaluation)
    size = max(1, min(count, len(order)) // 3)
    tail = max(size, len(order) - size)  # where the furthest begin
    start = max(size, (len(order) - size + 1) // 2)  # the typical ones lie about the median
    places = {
        CLOSEST: range(min(size, len(order))),
        TYPICAL: range(start, min(start + size, tail)),
        FURTHEST: range(tail, len(order)),
    }
    return tuple(
        Case(int(order[place]), kind, place + 1) for kind in places for place in places[kind]
    )


def typical(evaluation: Evaluation) -> int:
    """The episode of the median rank."""
    order = ranked(evaluation)
    return int(order[(len(order) - 1) // 2])
