"""The training loop: batch, noise, loss, gradients, step, average; told, written, saved."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from rich.markup import escape

from cosmos_wds.config import write_text
from cosmos_wds.console import console, is_rank_zero, say
from cosmos_wds.data.episode import Batch
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.distribute import distributed
from cosmos_wds.train.folder import BAD_BATCH, CHECKPOINTS, locked
from cosmos_wds.train.parallel import Interrupted, join_ranks
from cosmos_wds.train.run import completion
from cosmos_wds.train.start import find_inputs, start
from cosmos_wds.train.state import write_weights
from cosmos_wds.train.step import gradients, update
from cosmos_wds.train.trackers import check_tracker
from cosmos_wds.train.training import Training
from cosmos_wds.train.validate import Validation
from cosmos_wds.train.watch import Watch, watching


def train(recipe: Recipe) -> Path:
    """Take the recipe's run from where it stands to its last step; returns the run's folder.

    Ctrl-C and SIGTERM save a checkpoint first; then KeyboardInterrupt, or SystemExit(0), is raised.
    Raises UserError for anything that the user can mend.
    """
    try:
        return _train(recipe)
    except torch.OutOfMemoryError as error:  # told here, where the ranks have parted
        message = (
            f"the GPU's memory is too small for {recipe.name}: {str(error).splitlines()[0]} "
            "`cosmos-wds train RECIPE --plan` says what fits"
        )
        if not is_rank_zero():
            console.print(f"error: {escape(message)}")
        raise ConfigError(message) from None


def _train(recipe: Recipe) -> Path:
    folder = escape(str(recipe.run_folder))
    with join_ranks(recipe.train) as ranks, ExitStack() as held:
        inputs = ranks.together(lambda: find_inputs(recipe, ranks))
        validation = ranks.together(lambda: Validation(recipe))
        ranks.on_first(lambda: check_tracker(recipe))
        ranks.on_first(lambda: held.enter_context(locked(recipe.run_folder)))
        run = start(recipe, ranks, inputs)
        if run is not None:
            with run.saver:
                train_steps(run, validation)
        # Also where a run that had come to its end was stopped just before.
        checkpoints, last = recipe.run_folder / CHECKPOINTS, recipe.train.steps
        ranks.on_first(lambda: write_weights(checkpoints, last, completion(recipe)))
        if run is None:
            say(f"{folder}: all {recipe.train.steps} steps are done; nothing to do")
        else:
            say(f"{folder}: trained {run.step} steps")
    return recipe.run_folder


def train_steps(run: Training, validation: Validation) -> None:
    """Do the remaining steps, saving on the way, at the end, and when asked to stop."""
    settings = run.recipe.train
    with (
        run.inputs.loader as loader,
        averaged(run),
        watching(run) as watch,
        stop_requests() as check_stop,
    ):
        batches = iter(loader)

        def fetch() -> Batch:
            check_stop()
            run.saver.check()
            return next(batches)

        try:
            validation.go_on(run, watch)
            while run.step < settings.steps:
                began = time.perf_counter()
                batch = run.ranks.together(fetch)
                waited = time.perf_counter() - began
                lr = train_step(run, batch)
                watch.step(run.step, run.recent, lr=lr, waited=waited)
                if run.step % settings.save_every == 0 or run.step == settings.steps:
                    save(run, watch)
                validation.after_step(run, watch)
            run.ranks.together(run.saver.wait)
        except Interrupted as request:
            leave(run, watch, request)


@contextmanager
def averaged(run: Training) -> Iterator[None]:
    """Within it, backward averages gradients over the ranks."""
    with distributed(run.denoiser, run.ranks) as run.model:
        try:
            yield
        finally:
            run.model = run.denoiser  # so that the wrapper ends before the ranks part


def train_step(run: Training, batch: Batch) -> float:
    """One optimizer step on this rank's share of a global batch; returns its learning rate."""
    found = gradients(run, batch)
    if not (math.isfinite(found.loss) and math.isfinite(found.norm)):
        refuse(run, batch, loss=found.mine, norm=found.norm)
    return update(run, found)


def save(run: Training, watch: Watch) -> None:
    """Begin to write a checkpoint of the run as it stands; the one before is finished first."""
    watch.sync()
    run.ranks.together(run.saver.wait)
    run.saver.start(run.step, run.tensors(), run.facts())
    say(f"step {run.step}: saving {escape(str(run.checkpoints))}")


def refuse(run: Training, batch: Batch, *, loss: float, norm: float) -> NoReturn:
    """Stop for a loss or gradient that is not finite, with the global batch written down."""
    mine = {"rank": run.ranks.rank, "loss": str(loss), "key": batch.key, "start": batch.start}
    shares = run.ranks.gather(mine)
    run.ranks.together(run.saver.wait)
    path, saved = run.folder / BAD_BATCH, run.saver.published
    step = run.step + 1  # counted as in metrics.jsonl: from 1
    report = {"step": step, "grad_norm": str(norm), "batch": shares}

    def stop() -> None:
        write_text(path, json.dumps(report, indent=1) + "\n")
        raise UserError(
            f"step {step}: the loss is {loss}, the gradient's norm {norm}: not finite; the "
            f"batch's keys are in {path}; the weights of "
            f"{f'step {saved}' if saved else 'no step'} are saved; look at those "
            "episodes, or lower [train] lr"
        )

    run.ranks.on_first(stop)
    raise AssertionError


def leave(run: Training, watch: Watch, request: Interrupted) -> NoReturn:
    """Save what has been done and end the process as the signal asks."""
    if run.step != run.saver.step:
        save(run, watch)
    run.ranks.together(run.saver.wait)
    say(f"stopped after step {run.step}; run the same command again to continue")
    if request.signal == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(0)


@contextmanager
def stop_requests() -> Iterator[Callable[[], None]]:
    """Within it, Ctrl-C and SIGTERM wait for the function given, which raises Interrupted.

    A second Ctrl-C, a moment later, is not waited with. (torchrun passes the first one on twice.)
    """
    asked: list[tuple[int, float]] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT and time.monotonic() - asked[0][1] > 2:
            raise KeyboardInterrupt
        asked.append((number, time.monotonic()))

    def check() -> None:
        if asked:
            raise Interrupted(asked[0][0])

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
