"""Rollouts being made: batch by batch, each written as soon as it is ready."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from cosmos_wds.console import progress_bar, say
from cosmos_wds.diffusion.guardrail import Blocked
from cosmos_wds.rollout.action_log import ActionLog
from cosmos_wds.rollout.asked import Inputs
from cosmos_wds.rollout.jobs import Job, batches, stacked
from cosmos_wds.rollout.metrics import psnr, shown_steps
from cosmos_wds.rollout.outputs import Finished, Ledger, Outputs
from cosmos_wds.rollout.replay import replay
from cosmos_wds.rollout.rollout import rollout
from cosmos_wds.train.run import LoadedRun


@dataclass(frozen=True)
class Work:
    """One rollout to make."""

    name: str
    """Of its files."""
    job: Job
    seed: int


def make(
    run: LoadedRun,
    works: Sequence[Work],
    outputs: Outputs,
    ledger: Ledger | None,
    log: ActionLog | None,
) -> None:
    """Make rollouts and write them.

    ledger   of a folder that a later command may go on with
    log      what they are to follow, instead of their actions alone
    """
    done = 0
    try:
        for batch in _rolled(run, works, log):
            if ledger:
                outputs.remove([finished.name for finished in batch])
                ledger.note(batch)
            else:  # it may have come meanwhile
                outputs.check_free([finished.name for finished in batch])
            for finished in batch:
                outputs.write(finished)
                done += 1
                if not ledger:
                    _tell_file(outputs.mp4(finished.name), finished)
    except KeyboardInterrupt:
        if ledger:
            say(f"{done} of {len(works)} rollouts made: run the same command again to go on")
        raise


def _rolled(
    run: LoadedRun, works: Sequence[Work], log: ActionLog | None
) -> Iterator[list[Finished]]:
    """Rollouts, a batch at a time, under a progress bar that counts frames."""
    groups = batches([work.job.count for work in works], run.recipe.infer.batch)
    total = sum(len(group) * max(works[i].job.count for i in group) for group in groups)
    with progress_bar() as progress:
        task = progress.add_task("rollout", total=total, note="")

        def on_frame(count: int) -> None:
            progress.advance(task, count)

        for group in groups:
            yield _batch(run, [works[i] for i in group], log, on_frame)


def _batch(
    run: LoadedRun,
    works: Sequence[Work],
    log: ActionLog | None,
    on_frame: Callable[[int], object],
) -> list[Finished]:
    read = {work.job.name: work.job.read for work in works}
    by_name = {name: one() for name, one in read.items()}
    inputs = [by_name[work.job.name] for work in works]
    try:
        if log:
            frames = replay(run, replace(log, actions=inputs[0].actions), on_frame=on_frame)[None]
        else:
            first, actions = stacked(inputs)
            seeds = [work.seed for work in works]
            frames = rollout(run, first, actions, seed=seeds, on_frame=on_frame)
    except Blocked as refusal:
        if len(works) == 1:
            raise
        names = ", ".join(work.name for work in works)
        raise Blocked(f"{refusal} (rollouts from 0: {names})") from None
    return [
        _finished(work, one, video[: len(one.actions) + 1])
        for work, one, video in zip(works, inputs, frames, strict=True)
    ]


def _finished(work: Work, inputs: Inputs, frames: np.ndarray) -> Finished:
    about: dict[str, Any] = {"actions": len(inputs.actions), "source": work.job.source}
    if inputs.truth is not None:
        values = psnr(frames[1:], inputs.truth[1:])
        about["psnr"] = [round(float(value), 3) for value in values]
    return Finished(work.name, work.seed, frames, inputs.actions, inputs.truth, about)


def _tell_file(path: Path, finished: Finished) -> None:
    values = finished.about.get("psnr")
    if values:
        say(f"PSNR against the recording, dB: {_in_steps([values])}")
    count = len(finished.actions)
    say(f"{escape(str(path))}: {len(finished.frames)} frames, {count} actions")


def tell_folder(folder: Path, works: Sequence[Work], ledger: Ledger, made: int) -> None:
    """Say what is in a folder, and how close it comes to the recordings."""
    rollouts = [ledger.rollouts[work.name] for work in works]
    values = [one["psnr"] for one in rollouts if one.get("psnr")]
    if values:
        of = f"{len(values)} recordings" if len(values) > 1 else "the recording"
        say(f"PSNR against {of}, dB: {_in_steps(values)}")
    noun = "rollout" if len(works) == 1 else "rollouts"
    say(f"{escape(str(folder))}: {len(works)} {noun}, {made} of them made now")


def _in_steps(values: Sequence[Sequence[float]]) -> str:
    """Means over rollouts at the steps that all have, and over all frames."""
    least = min(map(len, values))
    parts = [f"{np.mean([v[s - 1] for v in values]):.1f} at step {s}" for s in shown_steps(least)]
    return f"{', '.join(parts)}; mean {np.mean(np.concatenate(values)):.1f}"
