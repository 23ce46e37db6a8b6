"""What a set's actions are like, and what in them looks wrong: numbers for people to look at."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.samples import Facts

JUMP = 5.0  # times the 99th percentile: more than a robot does between two frames
SHOWN = 3  # episodes that a concern names
POSE_PARTS = (("position", ("x", "y", "z")), ("rotation", ("roll", "pitch", "yaw")))


def action_statistics(actions: np.ndarray, contract: ActionContract) -> dict[str, Any]:
    """Per dimension of (N, A) actions, in physical units: mean, std, min, max, 1 % and 99 %."""
    exact = actions.astype(np.float64)
    columns = {
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        "min": exact.min(axis=0),
        "max": exact.max(axis=0),
        "q01": np.quantile(exact, 0.01, axis=0),
        "q99": np.quantile(exact, 0.99, axis=0),
    }
    # Machines may sum in another order: digits that depend on it must not make other bytes.
    rounded = {k: [float(f"{value:.9g}") for value in column] for k, column in columns.items()}
    return {"actions": len(actions), "names": list(contract.names), **rounded}


def concerns(
    facts: Sequence[Facts], actions: np.ndarray, contract: ActionContract
) -> Iterator[str]:
    """One line for each thing that looks wrong, with how many episodes it touches and which.

    `actions` (N, A) are those of all episodes, one after the other.
    """
    owners = np.repeat(np.arange(len(facts)), [fact.frames - 1 for fact in facts])

    def which(rows: np.ndarray) -> str:
        return _named([facts[i].key for i in dict.fromkeys(owners[rows].tolist())])

    yield from _still(actions, contract)
    if "gripper" in contract.names:
        values = actions[:, contract.names.index("gripper")]
        outside = (values < 0) | (values > 1)
        if outside.any():
            span = f"{values.min():.4g} to {values.max():.4g}"
            yield f"the gripper leaves 0..1 ({span}) in {which(np.flatnonzero(outside))}"
    yield from _jumps(actions, contract, which)
    yield from _rates(facts, contract)
    longer = [fact.key for fact in facts if any(n > fact.frames for n in fact.video_frames)]
    if longer:
        yield f"videos hold more frames than there are states, the rest is unused: {_named(longer)}"


def _still(actions: np.ndarray, contract: ActionContract) -> Iterator[str]:
    for column, name in enumerate(contract.names):
        values = actions[:, column]
        if len(values) > 1 and values.min() == values.max():
            yield f"{name} never moves: it is {values[0]:.4g} in all {len(values)} actions"


def _jumps(
    actions: np.ndarray, contract: ActionContract, which: Callable[[np.ndarray], str]
) -> Iterator[str]:
    for part, names in POSE_PARTS:
        if not set(names) <= set(contract.names):
            continue
        columns = [contract.names.index(name) for name in names]
        length = np.linalg.norm(actions[:, columns].astype(np.float64), axis=1)
        usual = float(np.quantile(length, 0.99))
        jumps = np.flatnonzero(length > JUMP * usual)
        if usual and len(jumps):
            unit = contract.units[columns[0]]
            most = f"up to {length.max():.3g} {unit}, the 99th percentile is {usual:.3g}"
            yield f"jumps of the {part} ({most}) in {which(jumps)}"


def _rates(facts: Sequence[Facts], contract: ActionContract) -> Iterator[str]:
    for whose, rate_of in (
        ("videos", lambda fact: set(fact.video_fps)),
        ("recordings", lambda fact: {fact.source_fps}),
    ):
        odd: dict[float, list[str]] = {}
        for fact in facts:
            for rate in rate_of(fact):
                if rate and abs(rate - contract.fps) > 0.01 * contract.fps:
                    odd.setdefault(round(rate, 3), []).append(fact.key)
        for rate, keys in sorted(odd.items()):
            taken = f"taken as {contract.fps:g} (actions.fps)"
            yield f"{whose} say {rate:g} fps, {taken}: {_named(keys)}"


def _named(keys: Sequence[str]) -> str:
    """How many episodes, and the first of them."""
    first = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
    return f"{len(keys)} episode{'s' if len(keys) != 1 else ''} ({first})"
