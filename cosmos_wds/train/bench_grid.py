"""`cosmos-wds bench train --grid`: a step under each setting that trades memory for time.

Each kind of checkpointing, compiled or not, has a process of its own, in which micro-batches grow
until one does not fit. A row is a step of the recipe's whole batch: one micro-batch and what ends
a step are timed, and the step is put together of them.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import torch
from rich.table import Table

from cosmos_wds.console import say
from cosmos_wds.errors import UserError
from cosmos_wds.model.show import ACTION_DIMS
from cosmos_wds.recipe import Recipe
from cosmos_wds.train import meter
from cosmos_wds.train.bench_model import matrix_rate, seconds_of
from cosmos_wds.train.bench_train import WARM, random_batch, random_work
from cosmos_wds.train.extras import check_extras
from cosmos_wds.train.parallel import join_ranks, lanes_of
from cosmos_wds.train.rates import window_flops
from cosmos_wds.train.step import backward, gradients, update
from cosmos_wds.train.training import Work

CHECKPOINTING = ("none", "selective", "full")
COMPILED = (False, True)
SHOWN = (
    "checkpointing",
    "compile",
    "micro_batch",
    "seconds",
    "windows_per_second",
    "tflops",
    "share",
    "peak_gb",
)


def bench_grid(recipe: Recipe, *, steps: int) -> list[dict[str, Any]]:
    """Time each checkpointing, compilation and micro-batch (1, 2, 4, ...) that divides the batch.

    What does not fit, or cannot run, has `problem` in place of figures, and ends its process.
    """
    rows = []
    for checkpointing, compiled in product(CHECKPOINTING, COMPILED):
        settings = {"checkpointing": checkpointing, "compile": compiled}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                rows += pool.submit(timed, changed(recipe, settings), steps).result()
            except BrokenProcessPool:
                rows.append({**settings, "problem": "its process was killed"})
    return rows


def timed(recipe: Recipe, steps: int) -> list[dict[str, Any]]:
    """The rows of one kind of checkpointing, compiled or not; says each as it comes."""
    rows = []
    for row in _growing(recipe, steps):
        named = {"checkpointing": recipe.train.checkpointing, "compile": recipe.train.compile}
        rows.append({**named, **row})
        say(", ".join(f"{key} {_shown(value)}" for key, value in rows[-1].items()))
    return rows


def grid_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each cell."""
    table = Table(*(name.replace("_", " ") for name in SHOWN))
    for row in rows:
        values = [row.get(name, "does not fit" if name == "seconds" else "") for name in SHOWN]
        table.add_row(*map(_shown, values))
    return table


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with other values in [train]."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})


def _growing(recipe: Recipe, steps: int) -> Iterator[dict[str, Any]]:
    settings, size = recipe.train, 1
    try:
        check_extras(recipe)
        # An average that follows in the background takes part in no step.
        kept = "none" if settings.ema_device == "cpu" else settings.ema
        with join_ranks(settings) as ranks:
            work = random_work(changed(recipe, {"ema": kept, "ema_device": "same"}), ranks)
            on_gpu = ranks.device.type == "cuda"
            rate = matrix_rate(ranks.device, work.precision, size=8192 if on_gpu else 1024)
            while settings.batch % size == 0:
                yield {"micro_batch": size, **_cell(work, size, steps, rate)}
                size *= 2
    except torch.cuda.OutOfMemoryError as error:
        yield {"micro_batch": size, "problem": str(error).splitlines()[0]}
    except UserError as error:
        yield {"problem": str(error)}


def _cell(work: Work, size: int, steps: int, rate: float) -> dict[str, float]:
    """Figures of a step of the recipe's batch, `size` windows at a time."""
    micro = changed(work.recipe, {"batch": size, "accumulate": 1})
    part = replace(work, recipe=micro, lanes=lanes_of(work.ranks, micro.train))
    batch, device = random_batch(part), work.ranks.device
    count = work.recipe.train.batch // size
    torch.compiler.reset()  # or it would compile for any size, and slower code
    first, last = [], []
    for number in range(WARM + steps):
        if number == WARM and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if count > 1:  # the second of them adds to gradients that are there, as most do
            backward(part, batch)
            first.append(seconds_of(lambda: backward(part, batch), device))
        last.append(seconds_of(lambda: update(part, gradients(part, batch)), device))
    seconds = median(last[WARM:]) + (count - 1) * (median(first[WARM:]) if first else 0)
    operations = count * size * window_flops(work.recipe, work.latent_shape[1:], ACTION_DIMS)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else meter.peak_bytes()
    return {
        "seconds": seconds,
        "windows_per_second": count * size / seconds,
        "tflops": operations / seconds / 1e12,
        "share": operations / seconds / rate,
        "peak_gb": peak / 1e9,
    }
