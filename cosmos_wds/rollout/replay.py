"""What `play` recorded, shown again: the same session, stepped through the log's actions."""

from collections.abc import Callable

import numpy as np
from rich.markup import escape

from cosmos_wds.console import warn
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.errors import CheckpointError, DataError
from cosmos_wds.rollout.action_log import ActionLog, weights_digest
from cosmos_wds.rollout.session import Session
from cosmos_wds.train.run import LoadedRun, Place


def check_log(name: str, log: ActionLog, contract: ActionContract, place: Place) -> None:
    """Warn of a log of other weights. Raises UserError for one that this model cannot follow."""
    if log.contract != contract.digest:
        raise CheckpointError(
            f"{name}: its actions mean something else than the model's (contract {log.contract} "
            f"there, {contract.digest} here); replay it with a checkpoint of the same contract"
        )
    if not len(log.actions):
        raise DataError(f"{name}: holds no action")
    if log.actions.shape[1] != len(contract.names):
        raise DataError(
            f"{name}: actions of {log.actions.shape[1]} numbers; the model takes "
            f"{len(contract.names)}: {' '.join(contract.names)}"
        )
    if not log.weights:
        warn(f"{escape(name)}: does not say which weights it was recorded with: frames may differ")
    elif log.weights != weights_digest(place):
        theirs = escape(log.checkpoint)
        warn(f"{escape(name)}: recorded with other weights ({theirs}): frames will differ")


def replay(
    run: LoadedRun, log: ActionLog, *, on_frame: Callable[[int], object] | None = None
) -> np.ndarray:
    """The frames of a log, (N+1, H, W, 3) uint8; with its weights, on a CPU, bit for bit.

    on_frame   told 1 for each generated frame

    Raises UserError as Session does.
    """
    session = Session(run, log.first[None], seed=log.seed, steps=log.steps)
    frames = [session.frames[0]]
    for row in log.actions:
        frames.append(session.step(row[None])[0])
        if on_frame:
            on_frame(1)
    return np.stack(frames)
