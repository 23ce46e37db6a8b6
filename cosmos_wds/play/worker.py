"""One thread that does all the computing, so that tabs take turns at the model."""

import asyncio
import ctypes
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(BaseException):
    """The worker was closed while it did this job."""


class Worker:
    """Jobs in the order in which they came, one at a time, beside the server's own thread.

    Each tab waits for its job before it brings another one: the queue is no longer than there are
    tabs, and each gets its turn.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="play", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """What a function returns or raises. A job that is cancelled while it waits is not done."""
        job: Future[T] = Future()
        self._jobs.put((job, lambda: function(*args)))
        return await asyncio.wrap_future(job)

    def close(self, seconds: float) -> None:
        """Break off the present job, between two operations, with Stopped; do no more.

        seconds   how long to wait for that

        A large model's frame takes long, and a program that ends while torch computes is aborted.
        """
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Stopped))
        self._jobs.put(None)  # or a thread that waits for a job would not hear it
        self._thread.join(seconds)
        while not self._jobs.empty():
            if taken := self._jobs.get():
                taken[0].cancel()

    def _work(self) -> None:
        with suppress(Stopped):
            while True:
                taken = self._jobs.get()
                if taken:
                    _do(*taken)
                del taken  # or the last tab's world would live until the next job


def _do(job: "Future[Any]", function: Callable[[], Any]) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # whoever waits for the job raises it
        job.set_exception(error)
        if isinstance(error, Stopped):
            raise
        return
    job.set_result(result)
