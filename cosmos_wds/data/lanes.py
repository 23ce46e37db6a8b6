"""What a loader's workers do: the windows of their lanes, step after step, and how they start.

Workers are processes from a fork server. A fork of the training process, which runs torch's
threads, can deadlock; a spawned worker imports torch anew, two seconds each. The server imports it
once, while the model is being built, and its forks start in a moment.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cosmos_wds.data.episode import Batch
from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.plan import Plan
from cosmos_wds.data.reader import EpisodePool, Mp4Reader
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import Recipe

IDLE = -1  # a worker that reads no episode
GRACE_SECONDS = 2.0
PRELOAD = ["torch", "cosmos_wds.data.lanes"]


@dataclass(frozen=True)
class Part:
    """One worker's share of a batch, or the error that it met instead.

    decoded   episodes decoded for it;  replaced  (row, reason) of each window it had to replace
    """

    batch: Batch | None = None
    error: str = ""
    decoded: int = 0
    replaced: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Board:
    """Memory that the parent shares with its workers.

    start    (1,) the step that a new pass begins with
    pid      (W,) process of each worker;  reading  (W,) the episode that it reads, or IDLE
    """

    start: Tensor
    pid: Tensor
    reading: Tensor

    @classmethod
    def blank(cls, workers: int) -> "Board":
        """A board on which nothing is written yet."""
        sizes = (1, max(1, workers), max(1, workers))
        return cls(*(torch.full((size,), IDLE).share_memory_() for size in sizes))


class LaneStream(IterableDataset[Part]):
    """The parts of a worker, step after step from `board.start`; they end only in evaluation.

    lanes   the lanes of each worker
    """

    def __init__(
        self, plan: Plan, index: SplitIndex, recipe: Recipe, lanes: Sequence[range]
    ) -> None:
        self.plan, self.lanes, self.window = plan, lanes, recipe.window
        self.board = Board.blank(len(lanes))
        self.reader = Mp4Reader(index, recipe.window)
        self.pool = EpisodePool(plan, self.reader, skip_bad=recipe.data.on_bad == "skip")

    def __iter__(self) -> Iterator[Part]:
        info = get_worker_info()
        worker = info.id if info else 0
        self.board.pid[worker] = os.getpid()
        step = int(self.board.start[0])
        while self.plan.training or step < self.plan.steps_per_epoch:
            try:
                part = self._part(step, worker)
            except DataError as error:
                yield Part(error=str(error))
                return
            yield part
            step += 1

    def _part(self, step: int, worker: int) -> Part:
        """Cut the windows of one worker's lanes out of their episodes."""
        lanes, pool, window = self.lanes[worker], self.pool, self.window
        rows, starts = self.plan.batch(step, lanes)
        pool.keep(self.plan.pool_rows(step, lanes))
        decoded_before = pool.decoded
        count, width = len(rows), len(self.reader.contract.names)
        video = np.empty((count, 3, window.frames, window.height, window.width), np.uint8)
        action = np.empty((count, window.frames - 1, width), np.float32)
        keys, firsts, replaced = [], [], []
        for i, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
            self.board.reading[worker] = row
            episode = pool.get(row)
            if episode.row != row:
                start %= int(self.plan.counts[episode.row])
                replaced.append((row, pool.bad[row]))
            video[i] = episode.frames[:, start : start + self.plan.span : window.interval]
            action[i] = self.reader.actions(episode, start)
            keys.append(episode.key)
            firsts.append(start)
        self.board.reading[worker] = IDLE
        fps = torch.full((count,), self.reader.contract.fps / window.interval)
        batch = Batch(
            torch.from_numpy(video), torch.from_numpy(action), fps, tuple(keys), tuple(firsts)
        )
        return Part(batch, "", pool.decoded - decoded_before, tuple(replaced))


def worker_context() -> BaseContext:
    """Where workers come from: the fork server, or fresh interpreters where there is none."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def start_server() -> None:
    """Start the fork server, which then imports torch while the caller goes on.

    It and its forks are born with Ctrl-C blocked: that is for the parent to answer.
    """
    context = worker_context()
    if context.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver

    context.set_forkserver_preload(PRELOAD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def dead_workers(board: Board) -> list[int]:
    """Which workers have ended; if none has, look again for a moment.

    A killed worker's connection breaks a little before its end is known.
    """
    patience = time.monotonic() + GRACE_SECONDS
    while True:
        alive = {process.pid for process in multiprocessing.active_children()}
        dead = [w for w, pid in enumerate(board.pid.tolist()) if pid not in (IDLE, *alive)]
        if dead or time.monotonic() > patience:
            return dead
        time.sleep(0.05)


def begin_worker(_: int) -> None:
    """Let a worker end with its parent, however that ends, and without a word.

    Ctrl-C reaches every process of the terminal, and only the parent answers it. A killed parent
    tells nobody: torch's workers watch the fork server, which lives as long as they do. A parent
    that leaves breaks off what a worker's sending thread does, which would report that to
    excepthook; errors of the worker's own never go there.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *_: None
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
