"""The rich consoles: words and progress on stderr, from rank zero only; results on stdout."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For words and progress."""

result = Console(highlight=False, soft_wrap=True)
"""For what a command was asked for."""


def is_rank_zero() -> bool:
    """Whether this process speaks: the first rank under torchrun, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """Print one line (rich markup allowed) from rank zero."""
    if is_rank_zero():
        console.print(message)


def warn(message: str) -> None:
    """Print one warning line from rank zero."""
    say(f"[yellow]warning:[/yellow] {message}")


class _NotesBelow(Progress):
    """Shows what the tasks note in lines of its own, which a narrow terminal breaks."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:  # the console itself breaks no lines
            yield Text(task.fields["note"], no_wrap=False, overflow="fold")


@contextmanager
def progress_bar(*, notes_below: bool = False) -> Iterator[Progress]:
    """A rich progress display that is silent on other ranks and leaves cleanly on Ctrl-C.

    notes_below   for long notes: below the bar instead of beside it
    """
    kind = _NotesBelow if notes_below else Progress
    note = () if notes_below else (TextColumn("{task.fields[note]}"),)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *note,
    )
    with kind(*columns, console=console, disable=not is_rank_zero()) as progress:
        yield progress


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items` under a progress bar."""
    with progress_bar() as progress:
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
