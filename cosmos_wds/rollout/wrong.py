"""Actions that are not an episode's own: what a model makes of them shows whether it listens.

E episodes, N actions, A numbers an action. In all of them a row is a pose as seen from the frame
before it, and the gripper: that is where they are made, whatever the contract says, and they are
chained up again as it does.

shuffled   the next episode's of the list; the last one's are the first's
zero       the pose stands still; the gripper does what it did in the recording
negated    the six differences of the pose with the opposite sign; open and closed exchanged
shifted    half of the rollout later, and on from its start: row i is row (i + N // 2) mod N

Contracts without poses have no gripper and no differences: zero and negated are then of the numbers
as they are.
"""

from collections.abc import Sequence

import numpy as np

from cosmos_wds.data.actions import ActionContract, integrate, relative_actions
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.rollout.inputs import chained

GRIPPER = "gripper"
WORDS = {
    "shuffled": "those of the next episode of the list, the first one's for the last",
    "zero": "no motion, and the gripper as in the recording",
    "negated": "differences of the pose with the opposite sign, open and closed exchanged",
    "shifted": "those of half of the rollout later, going on at its start",
}
"""What each kind of wrong actions is."""


def others(actions: np.ndarray) -> np.ndarray:
    """Actions (E, N, A) with each episode given those of the next one, the last the first's."""
    return np.roll(actions, -1, axis=0)


def wrong_actions(
    contract: ActionContract,
    actions: np.ndarray,
    *,
    window: WindowSettings,
    kinds: Sequence[str],
) -> dict[str, np.ndarray]:
    """Actions of each kind, (E, N, A) as the contract means them, from (E, N, A) that are so too.

    window   what one sampler call fills
    """
    rows = seen_from_before(contract, actions, window)
    made = {kind: _MAKERS[kind](rows, contract) for kind in kinds}
    return {
        kind: np.stack([chained(contract, episode, window) for episode in changed])
        for kind, changed in made.items()
    }


def seen_from_before(
    contract: ActionContract, actions: np.ndarray, window: WindowSettings
) -> np.ndarray:
    """Actions (E, N, A) as the contract means them -> each pose as seen from the frame before it.

    The way back of inputs.chained.
    """
    if not contract.accumulate:
        return actions
    each = window.frames - 1
    return np.stack(
        [
            np.concatenate([_unchained(rows[at : at + each]) for at in range(0, len(rows), each)])
            for rows in actions
        ]
    )


def _unchained(rows: np.ndarray) -> np.ndarray:
    """One call's rows: seen from its first frame -> seen from the frame before."""
    return relative_actions(integrate(np.zeros(rows.shape[1]), rows, accumulate=True))


def _zero(rows: np.ndarray, contract: ActionContract) -> np.ndarray:
    return np.where(_is_gripper(contract), rows, 0.0)


def _negated(rows: np.ndarray, contract: ActionContract) -> np.ndarray:
    return np.where(_is_gripper(contract), 1 - rows, -rows)


def _shifted(rows: np.ndarray, contract: ActionContract) -> np.ndarray:  # noqa: ARG001 (as others)
    return np.roll(rows, -(rows.shape[1] // 2), axis=1)


def _shuffled(rows: np.ndarray, contract: ActionContract) -> np.ndarray:  # noqa: ARG001 (as others)
    return others(rows)


def _is_gripper(contract: ActionContract) -> np.ndarray:
    return np.array([name == GRIPPER for name in contract.names])


_MAKERS = {"shuffled": _shuffled, "zero": _zero, "negated": _negated, "shifted": _shifted}
