"""What a run tells while it goes: the live line, and metrics.jsonl."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from rich.progress import Progress

from cosmos_wds.config import write_text
from cosmos_wds.console import console, is_rank_zero, progress_bar, say
from cosmos_wds.recipe_train import TrainSettings

SPEAK_EVERY = 15.0
"""Seconds between plain lines where no live line can be drawn (a log file, CI)."""


class Watch:
    """Counts and times steps; speaks and writes on rank zero, keeps silent on the others."""

    def __init__(
        self, settings: TrainSettings, path: Path, progress: Progress, *, step: int
    ) -> None:
        """Go on after `step`; lines of later steps, which will come again, leave the file."""
        self.settings, self.progress = settings, progress
        self.bar = progress.add_task("train", total=settings.steps, completed=step, note="")
        self.file = None
        if is_rank_zero():
            write_text(path, "".join(_lines_until(path, step)))
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.spoken = time.monotonic()
        self._restart()

    def _restart(self) -> None:
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def step(self, done: int, recent: list[list[float]], *, lr: float, waited: float) -> None:
        """Tell of the step after which `done` are done, and empty `recent` with each line.

        recent   [loss, gradient norm] of the steps since the last line
        waited   seconds that the step waited for its batch
        """
        self.waited, self.steps = self.waited + waited, self.steps + 1
        loss, norm = recent[-1]
        seconds = max(time.perf_counter() - self.began, 1e-9)
        rate = self.steps * self.settings.batch / seconds
        note = f"loss {loss:.4f}  grad {norm:.2f}  lr {lr:.2e}  {rate:.1f} windows/s"
        self.progress.update(self.bar, completed=done, note=note)
        if done % self.settings.log_every and done != self.settings.steps:
            return
        line = {
            "step": done,
            "loss": fmean(pair[0] for pair in recent),
            "grad_norm": fmean(pair[1] for pair in recent),
            "lr": lr,
            "samples_per_second": round(rate, 3),
            "data_seconds": round(self.waited, 4),
            "compute_seconds": round(seconds - self.waited, 4),
        }
        recent.clear()
        self._restart()
        if self.file is None:
            return
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if not console.is_terminal and time.monotonic() - self.spoken > SPEAK_EVERY:
            self.spoken = time.monotonic()
            say(f"step {done}/{self.settings.steps}  {note}")

    def sync(self) -> None:
        """Bring the lines to the disk, before a checkpoint that builds on them."""
        if self.file:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """End the file."""
        if self.file:
            self.file.close()


@contextmanager
def watching(settings: TrainSettings, path: Path, *, step: int) -> Iterator[Watch]:
    """A Watch for the steps after `step`."""
    with progress_bar() as progress:
        watch = Watch(settings, path, progress, step=step)
        try:
            yield watch
        finally:
            watch.close()


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of metrics.jsonl up to a step, without one that a kill cut short."""
    lines = path.read_text(encoding="utf-8").splitlines() if step and path.is_file() else []
    return [f"{line}\n" for line in lines if _step_of(line) <= step]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
