"""What a run tells while it goes: the live line, metrics.jsonl, validation.jsonl, a tracker."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.markup import escape
from rich.progress import Progress

from cosmos_wds.config import write_text
from cosmos_wds.console import console, progress_bar, say, warn
from cosmos_wds.train.folder import METRICS, VALIDATION, flat
from cosmos_wds.train.rates import device_peak, held_bytes, window_flops
from cosmos_wds.train.trackers import Tracker, open_tracker
from cosmos_wds.train.training import Training

SPEAK_EVERY = 15.0
"""Seconds between plain lines where no live line can be drawn (a log file, CI)."""
WAITING = 0.2
"""Share of the time that training may wait for data before the user is told."""
LOOK_AT = 10
"""Steps, at least, whose waiting is looked at together."""


class Watch:
    """Counts and times steps; speaks and writes on rank zero, keeps silent on the others."""

    def __init__(self, run: Training, progress: Progress, tracker: Tracker | None) -> None:
        """Go on after the run's step; lines of later steps, which will come again, leave the files.

        tracker   of rank zero
        """
        self.tracker = tracker
        self.run, self.settings, self.progress = run, run.recipe.train, progress
        self.bar = progress.add_task(
            "train", total=self.settings.steps, completed=run.step, note=""
        )
        self.metrics = self.validations = None
        if run.ranks.rank == 0:
            self.metrics = _Lines(run.folder / METRICS, run.step)
            if run.recipe.watch.validate_every or (run.folder / VALIDATION).is_file():
                self.validations = _Lines(run.folder / VALIDATION, run.step)
        dims = len(run.inputs.sets.contract.names)
        self.flops = window_flops(run.recipe, run.latent_shape[1:], dims)
        peak = device_peak(run.ranks.device)
        self.peak = peak and peak * run.ranks.world
        self.loader = _Bottleneck(run)
        self.spoken = time.monotonic()
        self._restart()

    @property
    def validated(self) -> int:
        """The last step in validation.jsonl; 0 when there is none. For rank zero to ask."""
        return self.validations.last if self.validations else 0

    def _restart(self) -> None:
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def step(self, done: int, recent: list[list[float]], *, lr: float, waited: float) -> None:
        """Tell of the step after which `done` are done, and empty `recent` with each line.

        recent   [loss, gradient norm] of the steps since the last line
        waited   seconds that the step waited for its batch
        """
        self.waited, self.steps = self.waited + waited, self.steps + 1
        seconds = max(time.perf_counter() - self.began, 1e-9)
        rates = self._rates(seconds)
        note = self._note(recent[-1], lr, seconds, rates)
        self.progress.update(self.bar, completed=done, note=note)
        if done % self.settings.log_every and done != self.settings.steps:
            return
        line = {
            "step": done,
            "loss": fmean(pair[0] for pair in recent),
            "grad_norm": fmean(pair[1] for pair in recent),
            "lr": lr,
            "samples_per_second": round(rates["samples_per_second"], 3),
            "data_seconds": round(self.waited, 4),
            "compute_seconds": round(seconds - self.waited, 4),
            **{key: rates[key] for key in ("memory_bytes", "flops_per_second", "mfu")},
        }
        left = seconds / self.steps * (self.settings.steps - done)
        self.loader.look(self.steps, waited=self.waited, seconds=seconds)
        recent.clear()
        self._restart()
        if self.metrics is None:
            return
        self.metrics.write(line)
        self._track("train", done, line)
        if not console.is_terminal and time.monotonic() - self.spoken > SPEAK_EVERY:
            self.spoken = time.monotonic()
            say(f"step {done}/{self.settings.steps}  {note}  {spell(left)} left")

    def _rates(self, seconds: float) -> dict[str, Any]:
        """Windows and operations per second over all ranks, memory of this one, share of peak."""
        rate = self.steps * self.settings.batch / seconds
        flops = rate * self.flops
        return {
            "samples_per_second": rate,
            "memory_bytes": held_bytes(self.run.ranks.device),
            "flops_per_second": flops,
            "mfu": flops / self.peak if self.peak else None,
        }

    def _note(self, pair: list[float], lr: float, seconds: float, rates: Mapping[str, Any]) -> str:
        """The live line: this step's loss and norm, what steps took since the last line."""
        data, total = (1e3 * spent / self.steps for spent in (self.waited, seconds))
        parts = [
            f"loss {pair[0]:.4f}",
            f"grad {pair[1]:.2f}",
            f"lr {lr:.2e}",
            f"{rates['samples_per_second']:.1f} windows/s",
            f"data {data:.0f} ms",
            f"compute {total - data:.0f} ms",
            f"{rates['memory_bytes'] / 1e9:.1f} GB",
            f"MFU {rates['mfu']:.1%}"
            if self.peak
            else f"{rates['flops_per_second'] / 1e12:.3g} TFLOP/s",
        ]
        return "  ".join(parts)

    def validation(
        self, line: Mapping[str, Any], pictures: Mapping[str, np.ndarray], *, seconds: float
    ) -> None:
        """Keep a validation's line, pass it on, and leave its time out of the steps'.

        line       `step`, and numbers, or tables of them
        pictures   (H, W, 3) uint8 by name
        """
        self.began += seconds
        if self.validations is None:
            return
        self.validations.write({**line, "seconds": round(seconds, 3)})
        self._track("validation", line["step"], line)
        if self.tracker and pictures:
            named = {f"validation/{name}": picture for name, picture in pictures.items()}
            self.tracker.pictures(line["step"], named)

    def _track(self, group: str, step: int, line: Mapping[str, Any]) -> None:
        """Pass on what a line holds of numbers."""
        if self.tracker is None:
            return
        found = {f"{group}/{k.replace('.', '/', 1)}": v for k, v in flat(line).items()}
        found.pop(f"{group}/step")
        self.tracker.numbers(step, {k: v for k, v in found.items() if v is not None})

    def sync(self) -> None:
        """Bring the lines to the disk, before a checkpoint that builds on them."""
        for lines in filter(None, (self.metrics, self.validations)):
            os.fsync(lines.file.fileno())

    def close(self) -> None:
        """End the files."""
        for lines in filter(None, (self.metrics, self.validations)):
            lines.file.close()


@contextmanager
def watching(run: Training) -> Iterator[Watch]:
    """A Watch for the run's coming steps.

    Raises ConfigError, on all ranks, when the tracker cannot start. A tracker may ask and tell
    things on the terminal, so it starts before the live line and ends after it.
    """
    is_first = run.ranks.rank == 0
    tracker = run.ranks.together(lambda: open_tracker(run.recipe, run.step) if is_first else None)
    try:
        with progress_bar(notes_below=True) as progress:
            watch = Watch(run, progress, tracker)
            try:
                yield watch
            finally:
                watch.close()
    finally:
        if tracker:
            tracker.close()


class _Bottleneck:
    """Whether training waits for its loader; told once."""

    def __init__(self, run: Training) -> None:
        self.data, self.latents = run.recipe.data, run.inputs.sets.latents
        self.is_warm = self.is_told = False
        self.steps, self.waited, self.seconds = 0, 0.0, 0.0

    def look(self, steps: int, *, waited: float, seconds: float) -> None:
        """Take in the steps of a line. Those of the first warm up: workers start, kernels load."""
        if not self.is_warm:
            self.is_warm = True
            return
        self.steps, self.waited = self.steps + steps, self.waited + waited
        self.seconds += seconds
        if self.steps < LOOK_AT:
            return
        if self.waited > WAITING * self.seconds and not self.is_told:
            self.is_told = True
            warn(escape(self._words()))
        self.steps, self.waited, self.seconds = 0, 0.0, 0.0

    def _words(self) -> str:
        help_ = [f"[data] workers above {self.data.workers}"]
        if self.latents is None:
            help_.append("latents made once (cosmos-wds shard --latents)")
            help_.append("smaller videos (shard with [video] height and width)")
        data, total = (1e3 * spent / self.steps for spent in (self.waited, self.seconds))
        return (
            f"the loader holds up training: {self.waited / self.seconds:.0%} of the last "
            f"{self.steps} steps was waiting for data ({data:.0f} of {total:.0f} ms a step); what "
            f"helps: {', '.join(help_)}"
        )


class _Lines:
    """A file of JSON lines with a `step` each, cut to the steps that a run goes on from."""

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if step and path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]  # a kill may cut one short
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.last = int(_step_of(kept[-1])) if kept else 0
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by Watch.close)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one, for others to read at once."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.last = line["step"]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def spell(seconds: float) -> str:
    """A span of time in words: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
