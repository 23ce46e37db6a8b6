"""A pool of fresh processes that dies with its parent, stops at once, and says how far it is."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cosmos_wds.data.memory import keep_freed_memory
from cosmos_wds.errors import UserError

J = TypeVar("J")
R = TypeVar("R")
Tick = Callable[[], None]
"""Called once for each piece of work that is done."""

POLL_SECONDS = 0.2


def cores() -> int:
    """The cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Let this process alone answer Ctrl-C, and not before the end of the block.

    Processes that are begun within are born with it blocked: to ignore it in their own code would
    be too late for one that comes while they import. Nor is this process interrupted as it hands
    them their work. Where signals cannot be blocked (Windows), children hear it.
    """
    heard: list[Any] = []
    usual = signal.getsignal(signal.SIGINT)
    is_handled = callable(usual) and threading.current_thread() is threading.main_thread()
    has_mask = hasattr(signal, "pthread_sigmask")
    if is_handled:  # another thread, which does not block it, may be the one to be told
        signal.signal(signal.SIGINT, lambda *words: heard.append(words))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if has_mask else ()
    try:
        yield
    finally:
        if has_mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_handled:
            signal.signal(signal.SIGINT, usual)
    if heard and callable(usual):
        usual(*heard[0])


def run_jobs(
    function: Callable[[J, Tick], R],
    jobs: Sequence[J],
    *,
    processes: int,
    on_progress: Callable[[int], None],
) -> Iterator[tuple[int, R]]:
    """Yield (place in `jobs`, result) as jobs end; `on_progress` is told of new ticks.

    One process works in this one. What a job raises is raised here and stops the others. Processes
    are spawned, because the caller may hold threads; `function` and jobs must pickle.
    """
    if processes <= 1 or len(jobs) <= 1:
        for place, job in enumerate(jobs):
            yield place, function(job, lambda: on_progress(1))
        return
    context = multiprocessing.get_context("spawn")
    counter, begun = context.Value("q", 0), context.Value("q", 0)
    # Processes leave as soon as the other end closes: when we say so, or when we are killed.
    watched, held = context.Pipe(duplex=False)
    initargs = (watched, counter, begun)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), context, _begin, initargs)
    try:
        with ctrl_c_blocked():
            waiting = {pool.submit(_call, function, job): place for place, job in enumerate(jobs)}
        watch = _Watch(counter, on_progress)
        while waiting:
            done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            watch.tell()
            for future in done:
                yield waiting.pop(future), _result(future)
        pool.shutdown(wait=True)
    finally:
        held.close()
        pool.shutdown(wait=True, cancel_futures=True)
        watched.close()


def ahead(function: Callable[[J], R], jobs: Iterable[J], *, threads: int) -> Iterator[R]:
    """Yield results in the order of `jobs`; threads work a little ahead of whoever takes them."""
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[R]] = deque()
        try:
            for job in jobs:
                running.append(pool.submit(function, job))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Watch:
    """Turns the processes' common counter into steps of progress."""

    def __init__(self, counter: Any, on_progress: Callable[[int], None]) -> None:
        self._counter, self._told, self._on_progress = counter, 0, on_progress

    def tell(self) -> None:
        count = self._counter.value
        self._on_progress(count - self._told)
        self._told = count


def _result(future: "Future[R]") -> R:
    try:
        return future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died: killed, or out of memory; run again to go on, with fewer "
            "workers if it stays so"
        ) from None


_counter: Any = None  # of this worker process, set once when it begins
_number = 0


def worker_number() -> int:
    """Which of the pool's processes this one is, from 0: each may have a GPU of its own."""
    return _number


def _begin(watched: Connection, counter: Any, begun: Any) -> None:
    global _counter, _number
    _counter = counter
    keep_freed_memory()
    with begun.get_lock():
        _number, begun.value = begun.value, begun.value + 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which closes the pipe
    threading.Thread(target=_leave_with_parent, args=(watched,), daemon=True).start()


def _leave_with_parent(watched: Connection) -> None:
    try:
        watched.recv()
    except (EOFError, OSError):
        os._exit(1)


def _call(function: Callable[[J, Tick], R], job: J) -> R:
    return function(job, _count_one)


def _count_one() -> None:
    with _counter.get_lock():
        _counter.value += 1
