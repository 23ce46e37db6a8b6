"""Batches in the plan's order, on any number of ranks and workers; state in, state out.

A rank owns consecutive lanes of the order (plan.py, mixture.py). Their windows are cut in line, by
threads (threads.py) or by processes (processes.py): a batch depends on the step alone, whoever cuts
it, and a position is one integer.
"""

import atexit
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from rich.markup import escape
from torch.utils.data import IterableDataset, get_worker_info

from cosmos_wds.console import console, say
from cosmos_wds.data.cut import Cutter, Part, open_reader
from cosmos_wds.data.episode import Batch
from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.memory import keep_freed_memory
from cosmos_wds.data.mixture import open_order
from cosmos_wds.data.processes import Processes
from cosmos_wds.data.reader import Held
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.data.threads import in_line, in_threads
from cosmos_wds.errors import CheckpointError, DataError
from cosmos_wds.recipe import Recipe


def open_loader(recipe: Recipe, *, split: str = "", **options: Any) -> "Loader":
    """The loader of a recipe's [data] and [window]; options as `Loader` takes them.

    split   one of the sets' splits; the recipe's when it is left out

    Raises DataError when the shards cannot be read, or do not go with the recipe.
    """
    keep_freed_memory()
    return Loader(ShardSets.load(recipe.data, split), recipe, **options)


class Loader(IterableDataset[Batch]):
    """The batches of one rank: `for batch in loader`, endless in training, one pass in evaluation.

    Iterating again goes on with the batch after the last one handed out; an evaluation that has
    come to its end begins anew. Every rank makes the same number of steps; in the last batch of an
    evaluation a rank's share may be smaller, or empty.

    step      batches handed out, over all epochs: the position
    skipped   windows replaced because their episode was bad (`on_bad = "skip"`), of this loader
    decoded   episodes read for the batches handed out by this loader
    """

    def __init__(
        self,
        sets: ShardSets | SplitIndex,
        recipe: Recipe,
        *,
        rank: int = 0,
        world: int = 1,
        batch: int = 0,
        training: bool = True,
        pin: bool = False,
    ) -> None:
        """Raises DataError when the split, the windows and the batch do not go together.

        batch   windows per step over all ranks; 0 takes the recipe's
        pin     hand out page-locked memory, which a GPU copies from while it computes
        """
        self.sets = sets if isinstance(sets, ShardSets) else ShardSets((sets,))
        self._recipe, self._rank, self._pin = recipe, rank, pin
        batch = batch or recipe.train.batch
        lanes = lanes_of_rank(batch, rank, world)
        self.order = open_order(self.sets, recipe, batch, training=training)
        self._reader = open_reader(self.sets, recipe.window)
        self._parts: Iterator[list[Part]] | None = None
        self._told: dict[int, int] = {}
        self._told_bad: set[int] = set()
        self.step = self.skipped = self.decoded = 0
        skip_bad = recipe.data.on_bad == "skip"
        self._cutter = Cutter(self.order, self._reader, lanes, skip_bad=skip_bad, pin=pin)
        _OPEN.add(self)
        self._processes: Processes | None = None
        if recipe.data.workers and recipe.data.worker_kind == "process":
            self._processes = Processes(
                *(self.order, self._reader, lanes), workers=recipe.data.workers, skip_bad=skip_bad
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every window (but those that fill no batch, in training) comes once.

        Of several sets, the longest one's: each has epochs of its own.
        """
        return self.order.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self.step // self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise DataError(
                "this loader brings its own workers; give it to a DataLoader with num_workers = 0 "
                "and batch_size = None, or iterate over it as it is"
            )
        while self.order.training or self.step < self.steps_per_epoch:
            yield self._next()
        self._restart(0)

    def state_dict(self) -> dict[str, int | str]:
        """The position after the last batch handed out, and what the order depends on."""
        return {"step": self.step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state["step"]` batches, with any number of ranks and workers.

        Raises CheckpointError when the state says that another order was read; a state that holds
        only the step is taken at its word.
        """
        now = self._identity()
        changed = [
            f"{k} = {state[k]} then, {now[k]} now" for k in now if state.get(k, now[k]) != now[k]
        ]
        if changed:
            raise CheckpointError(
                f"the loader stood in another order of data: {'; '.join(changed)}; "
                "put back what the run began with, or start another one"
            )
        self._restart(int(state["step"]))

    def read(self, row: int) -> Held:
        """One episode by its row, counted through the sets, or what replaces a bad one.

        Raises DataError for a bad one that is not skipped.
        """
        return self._cutter.read(row, 0)

    def close(self) -> None:
        """End the workers. Iterating again starts new ones."""
        self._restart(self.step)
        if self._processes is not None:
            self._processes.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _identity(self) -> dict[str, int | str]:
        plan, window = self.order.plans[0], self._recipe.window
        return {
            "index": self.sets.digest,
            "lanes": "+".join(str(plan.batch_size) for plan in self.order.plans),
            "seed": plan.seed,
            "batch": self.order.batch_size,
            "frames": plan.frames,
            "interval": plan.interval,
            "height": window.height,
            "width": window.width,
            "camera": window.camera if isinstance(window.camera, int) else str(window.camera),
            "stacked": int(window.stacked),
            "resize": window.resize,
            "pool": plan.pool,
            "shard_group": plan.shard_group,
            "training": int(plan.training),
        }

    def _restart(self, step: int) -> None:
        """Let the next batch be that of `step`."""
        parts, self._parts, self.step = self._parts, None, step
        if parts is not None:
            parts.close()  # type: ignore[attr-defined]  # a generator: ends its threads
        self._cutter.forget()

    def _next(self) -> Batch:
        """The batch at `step`. Whatever goes wrong, the next call begins at this step again."""
        self._tell_dropped()
        try:
            if self._parts is None:
                self._parts = self._begin()
            parts = next(self._parts)
            for part in parts:
                if part.error:
                    raise DataError(part.error)
        except BaseException:
            self._restart(self.step)
            raise
        self._count(parts)
        self.step += 1
        return self._batch(parts)

    def _begin(self) -> Iterator[list[Part]]:
        """The parts of each step from `step` on."""
        if self._processes is not None:
            return self._processes.parts(self.step)
        if self._recipe.data.workers:
            return in_threads(self._cutter, self.step, workers=self._recipe.data.workers)
        return in_line(self._cutter, self.step)

    def _batch(self, parts: list[Part]) -> Batch:
        """Parts, in the order of lanes, as one batch."""
        reader, count = self._reader, sum(len(part.keys) for part in parts)
        frames, action = parts[0].frames, parts[0].action
        assert frames is not None and action is not None
        if self._processes is not None:
            frames = reader.blank(count, pin=self._pin)
            # numpy copies in this thread; torch.cat would wake others, which costs more.
            np.concatenate([part.frames.numpy() for part in parts], out=frames.numpy())
            action = torch.from_numpy(np.concatenate([part.action.numpy() for part in parts]))
        fps = torch.full((count,), self.sets.contract.fps / self.order.interval)
        return Batch(
            **reader.as_batch(frames),
            action=action.pin_memory() if self._pin else action,
            fps=fps.pin_memory() if self._pin else fps,
            key=tuple(chain.from_iterable(part.keys for part in parts)),
            start=tuple(chain.from_iterable(part.starts for part in parts)),
        )

    def _count(self, parts: list[Part]) -> None:
        self.decoded += sum(part.decoded for part in parts)
        for row, reason in chain.from_iterable(part.replaced for part in parts):
            self.skipped += 1
            if row not in self._told_bad:
                self._told_bad.add(row)
                console.print(  # from whichever rank it is: no other one meets this window
                    f"[yellow]warning:[/yellow] rank {self._rank}: bad episode replaced, "
                    f"{len(self._told_bad)} so far: {escape(reason)}"
                )

    def _tell_dropped(self) -> None:
        """Say, when an epoch of a set begins or is continued, which windows fill no batch in it."""
        for number, plan in enumerate(self.order.plans if not self._rank else ()):
            epoch = self.step // plan.steps_per_epoch
            if self._told.get(number) == epoch:
                continue
            self._told[number] = epoch
            index, (rows, starts) = self.sets.parts[number], plan.dropped(epoch)
            which = [
                f"{index.rows[r].key} {starts[rows == r].min()}-{starts[rows == r].max()}"
                for r in dict.fromkeys(rows.tolist())
            ]
            if which:
                say(
                    f"epoch {epoch}: {len(rows)} of {plan.windows} windows fill no batch and "
                    f"are left out: {escape(', '.join(which))}"
                )


_OPEN: "WeakSet[Loader]" = WeakSet()


@atexit.register
def _close_all() -> None:
    """End the workers of loaders that nobody closed, while the interpreter is still whole."""
    for loader in list(_OPEN):
        loader.close()


def lanes_of_rank(batch: int, rank: int, world: int) -> range:
    """The lanes of a rank. Raises DataError when ranks cannot have equally many."""
    if batch % world:
        low = batch // world * world
        raise DataError(
            f"batch = {batch}: {world} ranks cannot share it evenly; use "
            f"{f'{low} or ' if low else ''}{low + world}, or another number of ranks"
        )
    return range(rank * batch // world, (rank + 1) * batch // world)
