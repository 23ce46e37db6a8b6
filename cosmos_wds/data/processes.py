"""Workers as processes, for decoders or codes of one's own that hold Python's lock.

Each has some of the rank's lanes, cuts their windows, and sends them through shared memory.

They come from a fork server. A fork of the training process, which runs torch's threads, can
deadlock; a spawned worker imports torch anew, two seconds each. The server imports it once, while
the model is being built, and its forks start in a moment.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cosmos_wds.data.cut import Cutter, Part, at_once
from cosmos_wds.data.memory import keep_freed_memory
from cosmos_wds.data.mixture import Mixture
from cosmos_wds.data.reader import Reader
from cosmos_wds.data.workers import ctrl_c_blocked
from cosmos_wds.errors import DataError

IDLE = -1  # a worker that reads no episode
GRACE_SECONDS = 2.0
PRELOAD = ["torch", "cosmos_wds.data.processes"]
UNBORN = "a worker died as it began (a script needs `if __name__ == '__main__':` around its code)"


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
        sizes = (1, workers, workers)
        return cls(*(torch.full((size,), IDLE).share_memory_() for size in sizes))


class LaneStream(IterableDataset[Part]):
    """The parts of a worker, step after step from `board.start`; they end only in evaluation.

    lanes   the lanes of each worker
    """

    def __init__(
        self, order: Mixture, reader: Reader, lanes: Sequence[Sequence[int]], *, skip_bad: bool
    ) -> None:
        self.order, self.reader, self.lanes, self._skip_bad = order, reader, lanes, skip_bad
        self.board = Board.blank(len(lanes))

    def __iter__(self) -> Iterator[Part]:
        info = get_worker_info()
        assert info is not None
        board, lanes = self.board, self.lanes[info.id]
        board.pid[info.id] = os.getpid()
        cutter = Cutter(self.order, self.reader, lanes, skip_bad=self._skip_bad, pin=False)
        cutter.on_read = lambda row: board.reading[info.id].fill_(row)
        for step in self.order.steps(int(board.start[0])):
            try:
                yield cutter.cut(cutter.ask(cutter.windows(step), at_once))
            except DataError as error:
                yield Part(error=str(error))
                return
            board.reading[info.id] = IDLE


class Processes:
    """The workers of one rank. They live from the first `parts` until `close`."""

    def __init__(
        self,
        order: Mixture,
        reader: Reader,
        lanes: range,
        *,
        workers: int,
        skip_bad: bool,
    ) -> None:
        self.count = min(workers, len(lanes))
        self._stream = LaneStream(order, reader, shares(lanes, self.count), skip_bad=skip_bad)
        self._loader: DataLoader[Part] | None = None
        start_server()

    def parts(self, first: int) -> Iterator[list[Part]]:
        """The parts of each step from `first` on, worker after worker.

        Raises DataError when a worker has died, naming what it was reading.
        """
        self._stream.board.start[0] = first
        try:
            found = self._workers()
            while parts := list(islice(found, self.count)):
                yield parts
        except (RuntimeError, OSError, EOFError) as error:
            death = self._death(error)
            if death is None:
                raise
            self.close()
            raise DataError(death) from None

    def close(self) -> None:
        """End the workers. `parts` starts new ones."""
        if self._loader is not None and self._loader._iterator is not None:
            # Without this they would live as long as any traceback that refers to them.
            self._loader._iterator._shutdown_workers()
        self._loader = None
        self._stream.board.pid.fill_(IDLE)

    def _workers(self) -> Iterator[Part]:
        with warnings.catch_warnings():
            # The number of workers is the recipe's choice, also on a machine of fewer cores.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            if self._loader is None:
                self._loader = DataLoader(
                    self._stream,
                    batch_size=None,
                    num_workers=self.count,
                    collate_fn=_as_it_is,
                    worker_init_fn=_begin_worker,
                    multiprocessing_context=worker_context(),
                    persistent_workers=True,
                    generator=torch.Generator(),  # else it draws from the trainer's random state
                )
            return iter(self._loader)

    def _death(self, error: BaseException) -> str | None:
        """What to say if `error` is the end of a worker process."""
        sets, board = self._stream.reader.sets, self._stream.board
        dead = dead_workers(board)
        if not dead and "DataLoader worker (pid" not in str(error):
            return None
        said = []
        for worker in dead:
            row = int(board.reading[worker])
            who = f"worker {worker} of {self.count} (process {board.pid[worker]})"
            doing = "between two episodes" if row == IDLE else f"reading {sets.name(row)}"
            said.append(f"{who} died {doing}")
        return (
            f"{sets}: loader {'; '.join(said) or UNBORN}. It "
            "was killed, or memory (RAM or /dev/shm) ran out: lower [data] workers or pool, or set "
            "workers = 0"
        )


def shares(lanes: range, count: int) -> list[range]:
    """`lanes` in `count` consecutive parts, as equal as can be."""
    borders = [lanes.start + len(lanes) * i // count for i in range(count + 1)]
    return [range(low, high) for low, high in zip(borders[:-1], borders[1:], strict=True)]


def worker_context() -> BaseContext:
    """Where workers come from: the fork server, or fresh interpreters where there is none."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def start_server() -> None:
    """Start the fork server, which then imports torch while the caller goes on."""
    context = worker_context()
    if context.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver

    context.set_forkserver_preload(PRELOAD)
    with ctrl_c_blocked():
        forkserver.ensure_running()


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


def _as_it_is(part: Part) -> Part:
    return part


def _begin_worker(_: int) -> None:
    """Let a worker end with its parent, however that ends, and without a word.

    Ctrl-C reaches every process of the terminal, and only the parent answers it. A killed parent
    tells nobody: torch's workers watch the fork server, which lives as long as they do. A parent
    that leaves breaks off what a worker's sending thread does, which would report that to
    excepthook; errors of the worker's own never go there.
    """
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *_: None
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
