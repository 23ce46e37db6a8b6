"""Workers as threads of this process: decoders let go of Python's lock while they work.

    readers   read the episodes of coming windows, and no more than a few at a time
    cutter    one thread that cuts a few batches ahead of whoever takes them, and reads if it is
              the only worker: two threads that share a core's caches cost more together

Training waits for the first step, so readers on all cores read that one for a lone cutter too.

A worker process would send each window through shared memory, which costs more than decoding it.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from cosmos_wds.data.cut import Asked, Cutter, Part, Reading, Submit, at_once
from cosmos_wds.data.plan import Windows
from cosmos_wds.data.remote import RemoteStorage
from cosmos_wds.data.workers import ahead, cores

WINDOWS_AHEAD = 256
"""How far readers look: what is read so early is held in memory besides the lanes' pools."""
WINDOWS_EXPECTED = 1024
"""How far ahead shards that are far away are fetched into the cache."""


def in_line(cutter: Cutter, first: int) -> Iterator[list[Part]]:
    """Parts from step `first` on, made when they are asked for."""
    for step in cutter.order.steps(first):
        yield [cutter.cut(cutter.ask(cutter.windows(step), at_once))]


def in_threads(cutter: Cutter, first: int, *, workers: int) -> Iterator[list[Part]]:
    """Parts from step `first` on, made ahead by threads, which end with the iterator.

    workers   at most; fewer where this rank has not so many cores and one to train with
    """
    mine = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    later = min(workers, max(1, mine - 1))
    readers = ThreadPoolExecutor(later if later > 1 else min(workers, mine), "reader")
    asking = _Asking(cutter, readers, first, workers=later)
    try:
        steps = cutter.order.steps(first)
        for part in ahead(lambda _: cutter.cut(asking.next()), steps, threads=1):
            yield [part]
    finally:
        readers.shutdown(wait=True, cancel_futures=True)


class _Asking:
    """Asks for the windows of coming steps as long as that keeps all readers busy."""

    def __init__(
        self, cutter: Cutter, readers: ThreadPoolExecutor, first: int, *, workers: int
    ) -> None:
        self._cutter, self._readers, self._most = cutter, readers, 2 * workers
        is_instant = cutter.reader.is_instant
        self._is_alone = workers == 1 or is_instant
        self._steps = cutter.order.steps(first)
        self._seen: deque[Windows] = deque()
        self._asked: deque[Asked] = deque()
        self._running: list[Future[Any]] = []
        self._submit: Submit = at_once if is_instant else self._to_readers
        self._far = 0 if self._is_alone else max(2, WINDOWS_AHEAD // cutter.width)
        is_remote = any(isinstance(p.storage, RemoteStorage) for p in cutter.reader.sets.parts)
        self._seen_far = WINDOWS_EXPECTED // cutter.width if is_remote else 0

    def next(self) -> Asked:
        """The windows of the next step."""
        while not self._asked or (len(self._asked) <= self._far and self._is_idle()):
            self._look_ahead()
            if not self._seen:
                break
            self._asked.append(self._cutter.ask(self._seen.popleft(), self._submit))
            if self._is_alone:
                self._submit = at_once
        return self._asked.popleft()

    def _look_ahead(self) -> None:
        for step in islice(self._steps, self._seen_far + 1 - len(self._seen)):
            self._seen.append(self._cutter.windows(step))
            if self._seen_far:
                self._cutter.expect(self._seen[-1])

    def _is_idle(self) -> bool:
        self._running = [future for future in self._running if not future.done()]
        return len(self._running) < self._most

    def _to_readers(self, *call: Any) -> Reading:
        self._running.append(self._readers.submit(*call))
        return self._running[-1]
