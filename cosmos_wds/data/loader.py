"""Batches in the plan's order: join what the workers send, hand out, pin; state in, state out.

A rank owns consecutive lanes of the plan, and each of its workers a consecutive part of these
(lanes.py). A worker sends its part of every batch, and the parent joins the parts in lane order:
a batch depends on the step alone, and a position is one integer.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor
from torch.utils.data import DataLoader

from cosmos_wds.console import say, warn
from cosmos_wds.data.episode import Batch
from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.lanes import (
    IDLE,
    LaneStream,
    Part,
    begin_worker,
    dead_workers,
    start_server,
    worker_context,
)
from cosmos_wds.data.plan import Plan
from cosmos_wds.errors import CheckpointError, DataError
from cosmos_wds.recipe import Recipe


class Loader:
    """The batches of one rank: `for batch in loader`, endless in training, one pass in evaluation.

    Iterating again goes on with the batch after the last one handed out; an evaluation that has
    come to its end begins anew. Every rank makes the same number of steps; in the last batch of an
    evaluation a rank's share may be smaller, or empty.

    step      batches handed out, over all epochs: the position
    skipped   windows replaced because their episode was bad (`on_bad = "skip"`), of this loader
    decoded   episodes decoded for the batches handed out by this loader
    """

    def __init__(
        self,
        index: SplitIndex,
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
        batch = batch or recipe.train.batch
        if batch % world:
            low = batch // world * world
            raise DataError(
                f"batch = {batch}: {world} ranks cannot share it evenly; use "
                f"{f'{low} or ' if low else ''}{low + world}, or another number of ranks"
            )
        self._index, self._recipe, self._rank, self._pin = index, recipe, rank, pin
        self.plan = _plan(index, recipe, batch, training)
        lanes = range(rank * batch // world, (rank + 1) * batch // world)
        self.workers = min(recipe.data.workers, len(lanes))
        self._stream = LaneStream(self.plan, index, recipe, _shares(lanes, max(1, self.workers)))
        self._processes: DataLoader[Part] | None = None
        self._parts: Iterator[Part] | None = None
        self._told_epoch = -1
        self._told_bad: set[int] = set()
        self.step = self.skipped = self.decoded = 0
        if self.workers:
            start_server()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every window (but those that fill no batch, in training) comes once."""
        return self.plan.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self.step // self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        while self.plan.training or self.step < self.steps_per_epoch:
            yield self._next()
        self.step, self._parts = 0, None

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
        self.step, self._parts = int(state["step"]), None

    def close(self) -> None:
        """End the workers. Iterating again starts new ones."""
        if self._processes is not None and self._processes._iterator is not None:
            # Without this they would live as long as any traceback that refers to them.
            self._processes._iterator._shutdown_workers()
        self._parts = self._processes = None
        self._stream.board.pid.fill_(IDLE)
        self._stream.pool.keep(frozenset())

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _identity(self) -> dict[str, int | str]:
        plan, window = self.plan, self._recipe.window
        return {
            "index": self._index.digest,
            "seed": plan.seed,
            "batch": plan.batch_size,
            "frames": plan.frames,
            "interval": plan.interval,
            "height": window.height,
            "width": window.width,
            "camera": window.camera,
            "pool": plan.pool,
            "shard_group": plan.shard_group,
            "training": int(plan.training),
        }

    def _next(self) -> Batch:
        """The batch at `step`. Whatever goes wrong, the next call begins at this step again."""
        self._tell_dropped()
        try:
            if self._parts is None:
                self._parts = self._begin()
            parts = list(islice(self._parts, max(1, self.workers)))
            for part in parts:
                if part.error:
                    raise DataError(part.error)
        except BaseException as error:
            self._parts = None
            death = self._death(error)
            if death is None:
                raise
            self.close()
            raise DataError(death) from None
        self._count(parts)
        self.step += 1
        return _join([part.batch for part in parts if part.batch], self._pin)

    def _begin(self) -> Iterator[Part]:
        """Parts from `step` on: worker 0, 1, ... of it, then of the next."""
        self._stream.board.start[0] = self.step
        if not self.workers:
            return iter(self._stream)
        with warnings.catch_warnings():
            # The number of workers is the recipe's choice, also on a machine of fewer cores.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            if self._processes is None:
                self._processes = DataLoader(
                    self._stream,
                    batch_size=None,
                    num_workers=self.workers,
                    collate_fn=_as_it_is,
                    worker_init_fn=begin_worker,
                    multiprocessing_context=worker_context(),
                    persistent_workers=True,
                    generator=torch.Generator(),  # else it draws from the trainer's random state
                )
            return iter(self._processes)

    def _death(self, error: BaseException) -> str | None:
        """What to say if `error` is the end of a worker process."""
        if not self.workers or not isinstance(error, RuntimeError | OSError | EOFError):
            return None
        board, dead = self._stream.board, dead_workers(self._stream.board)
        if not dead and "DataLoader worker (pid" not in str(error):
            return None
        said = []
        for worker in dead:
            row, doing = int(board.reading[worker]), "between two episodes"
            if row != IDLE:
                doing = f"reading {self._index.rows[row].key} of {self._index.rows[row].shard}"
            said.append(
                f"worker {worker} of {self.workers} (process {board.pid[worker]}) died {doing}"
            )
        return (
            f"{self._index.storage}: loader {'; '.join(said) or 'a worker died as it began'}. It "
            "was killed, or memory (RAM or /dev/shm) ran out: lower [data] workers or pool, or set "
            "workers = 0"
        )

    def _count(self, parts: Sequence[Part]) -> None:
        self.decoded += sum(part.decoded for part in parts)
        for row, reason in chain.from_iterable(part.replaced for part in parts):
            self.skipped += 1
            if row not in self._told_bad:
                self._told_bad.add(row)
                warn(f"bad episode replaced, {len(self._told_bad)} so far: {escape(reason)}")

    def _tell_dropped(self) -> None:
        if self._rank or self.epoch == self._told_epoch:
            return
        self._told_epoch = self.epoch
        rows, starts = self.plan.dropped(self.epoch)
        if len(rows):
            which = [
                f"{self._index.rows[r].key} {starts[rows == r].min()}-{starts[rows == r].max()}"
                for r in dict.fromkeys(rows.tolist())
            ]
            say(
                f"epoch {self.epoch}: {len(rows)} of {self.plan.windows} windows fill no batch and "
                f"are left out: {escape(', '.join(which))}"
            )


def _plan(index: SplitIndex, recipe: Recipe, batch: int, training: bool) -> Plan:
    """The order of a split. Raises DataError when there is none."""
    try:
        return Plan(
            lengths=index.lengths,
            shards=index.shard_numbers,
            frames=recipe.window.frames,
            interval=recipe.window.interval,
            batch_size=batch,
            pool=recipe.data.pool,
            shard_group=recipe.data.shard_group,
            seed=recipe.seed,
            training=training,
        )
    except DataError as error:
        raise DataError(f"{index.storage}, split {index.split}: {error}") from None


def _shares(lanes: range, count: int) -> list[range]:
    """`lanes` in `count` consecutive parts, as equal as can be."""
    borders = [lanes.start + len(lanes) * i // count for i in range(count + 1)]
    return [range(low, high) for low, high in zip(borders[:-1], borders[1:], strict=True)]


def _join(batches: Sequence[Batch], pin: bool) -> Batch:
    """Parts in lane order as one batch."""
    return Batch(
        video=_cat([b.video for b in batches], pin),
        action=_cat([b.action for b in batches], pin),
        fps=_cat([b.fps for b in batches], pin),
        key=tuple(chain.from_iterable(b.key for b in batches)),
        start=tuple(chain.from_iterable(b.start for b in batches)),
    )


def _cat(tensors: Sequence[Tensor], pin: bool) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].pin_memory() if pin else tensors[0]
    size = (sum(len(t) for t in tensors), *tensors[0].shape[1:])
    out = torch.empty(size, dtype=tensors[0].dtype, pin_memory=pin)
    # numpy copies in this thread; torch.cat would wake others, which costs more than the copy.
    np.concatenate([t.numpy() for t in tensors], out=out.numpy())
    return out


def _as_it_is(part: Part) -> Part:
    return part
