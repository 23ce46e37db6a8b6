"""Ways of rolling out the same model, timed in turns: the reference's, and ours in three settings.

R rollouts at once, N frames of each.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from cosmos_wds.console import progress_bar
from cosmos_wds.model.describe import describe
from cosmos_wds.recipe import with_infer
from cosmos_wds.rollout.bench_subject import Inputs
from cosmos_wds.rollout.ready import Ready, ready
from cosmos_wds.rollout.reference import reference_rollout, with_text
from cosmos_wds.rollout.rollout import Rolled, rolled
from cosmos_wds.train.bench_model import seconds_of
from cosmos_wds.train.run import LoadedRun

AS_REFERENCE: dict[str, Any] = {
    "noise": "reference",
    "recondition": "pixels",
    "frames_per_call": 1,
    "guidance": 0.0,
}
"""[infer] of ours at equal output."""
MOST = 64
"""Rollouts at once that are tried on a GPU, from 2, in powers of two."""
FEW = 4
"""Sampler steps of a rollout that only finds out how many at once are fastest."""


@dataclass(frozen=True)
class Way:
    """What one way of rolling out took."""

    name: str
    batch: int
    network_runs: float
    """On one rollout's window, for one frame of it."""
    seconds: float
    """A frame of one rollout; median."""
    frames_per_second: float
    share: float
    """Of the device's rate of matrix products: the operations of the network's runs."""


@dataclass(frozen=True)
class Candidate:
    """A way of rolling out, before it is timed."""

    name: str
    batch: int
    frames: int
    net: nn.Module
    """What it runs."""
    roll: Callable[[int, int], Rolled]
    """(frames, sampler steps) -> rollouts"""


def candidates(model: Ready, inputs: Inputs, *, frames: int, batch: int | None) -> list[Candidate]:
    """The reference's way, ours at equal output, ours as it is, and ours `batch` at once.

    frames   of a rollout, rounded up to whole calls; of several at once together
    batch    None: as many as are fastest beside all that the others hold
    """
    run, each = model.run, model.recipe.call_window.frames - 1
    net = with_text(run.denoiser, len(model.contract.names))
    batch = batch or fastest_batch(model, inputs)
    alike = replace(run, recipe=with_infer(run.recipe, **AS_REFERENCE))

    def theirs(count: int, steps: int) -> Rolled:
        first, actions = inputs.of(1, count)
        return reference_rollout(ready(alike, steps), net, first[0], actions[0], seed=0)

    found = [Candidate("reference", 1, frames, net, theirs)]
    for name, one, several, count in (
        ("ours, equal output", alike, 1, frames),
        ("ours", run, 1, whole_calls(frames, each)),
        ("ours", run, batch, whole_calls(-(-frames // batch), each)),
    ):
        if several == 1 and len(found) == 3:
            break
        ours = rolled_by(one, inputs, several)
        found.append(Candidate(name, several, count, run.denoiser.net, ours))
    return found


def rolled_by(run: LoadedRun, inputs: Inputs, batch: int) -> Callable[[int, int], Rolled]:
    """(frames, sampler steps) -> `batch` rollouts that run together."""
    together = replace(run, recipe=with_infer(run.recipe, batch=batch))

    def roll(count: int, steps: int) -> Rolled:
        return rolled(together, *inputs.of(batch, count), seed=0, steps=steps)

    return roll


def whole_calls(frames: int, each: int) -> int:
    """At least `frames`, in calls that generate `each` together."""
    return -(-frames // each) * each


def fastest_batch(model: Ready, inputs: Inputs) -> int:
    """How many rollouts at once give the most frames a second, as far as memory allows."""
    each, batch, rates = model.recipe.call_window.frames - 1, 2, {}
    while batch <= MOST:
        roll = rolled_by(model.run, inputs, batch)
        try:
            roll(each, 1)
            rates[batch] = batch / seconds_of(lambda one=roll: one(each, FEW), model.device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        batch *= 2
    return max(rates, key=rates.__getitem__, default=1)


def timed(
    model: Ready, ways: Sequence[Candidate], *, repeats: int, matrix_rate: float
) -> tuple[list[Way], list[Rolled]]:
    """Time every way `repeats` times, in turns; also what each made, which is the same each time.

    matrix_rate   operations a second that the device reaches in matrix products
    """
    steps, device = model.recipe.infer.steps, model.device
    times: list[list[float]] = [[] for _ in ways]
    made: list[Rolled] = []
    for way in ways:  # the first of each is slower: kernels are chosen, blocks compiled
        way.roll(min(way.frames, model.recipe.call_window.frames - 1), 1)
    counters = [_Counter(way.net) for way in ways]
    with progress_bar() as progress:
        task = progress.add_task("rollouts", total=repeats * len(ways), note="")
        for turn in range(repeats):
            for way, taken, counter in zip(ways, times, counters, strict=True):

                def once(way: Candidate = way) -> None:
                    made.append(way.roll(way.frames, steps))

                with counter if turn == 0 else nullcontext():
                    taken.append(seconds_of(once, device))
                progress.advance(task)
    found = [
        _way(way, median(taken), counter, model, matrix_rate)
        for way, taken, counter in zip(ways, times, counters, strict=True)
    ]
    return found, made[: len(ways)]


def _way(
    way: Candidate, seconds: float, counter: "_Counter", model: Ready, matrix_rate: float
) -> Way:
    count = way.batch * way.frames
    operations = sum(
        runs * _operations(model, frames, with_text=with_text)
        for (frames, with_text), runs in counter.runs.items()
    )
    return Way(
        name=way.name,
        batch=way.batch,
        network_runs=counter.runs.total() / count,
        seconds=seconds / count,
        frames_per_second=count / seconds,
        share=operations / seconds / matrix_rate,
    )


class _Counter(AbstractContextManager["_Counter"]):
    """Within it, the runs of a network are counted."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self.runs: Counter[tuple[int, bool]] = Counter()
        """Rows of all batches, by frames of their windows and whether there was text."""

    def __enter__(self) -> "_Counter":
        self._hook = self._net.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows, frames = inputs[0].shape[0], inputs[0].shape[2]
        self.runs[frames, named.get("text") is not None] += rows


def _operations(model: Ready, frames: int, *, with_text: bool) -> int:
    """Of one run on one window."""
    recipe = model.recipe
    _, height, width = recipe.latent_size
    dims = len(model.contract.names)
    cost = describe(recipe.model, action_dims=dims, frames=frames, height=height, width=width).cost
    return cost.flops_with_text if with_text else cost.flops
