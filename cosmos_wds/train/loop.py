"""The training loop: batch, noise, loss, gradients, step, average; told, written, saved."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from rich.markup import escape
from torch import Tensor
from torch.distributed.tensor import DTensor

from cosmos_wds.config import write_text
from cosmos_wds.console import say
from cosmos_wds.data.episode import Batch
from cosmos_wds.data.memory import keep_freed_memory
from cosmos_wds.diffusion.noise import draw
from cosmos_wds.errors import UserError
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.distribute import distributed, gradients_stay
from cosmos_wds.train.folder import BAD_BATCH, CHECKPOINTS, METRICS, locked
from cosmos_wds.train.optim import lr_factor, set_lr
from cosmos_wds.train.parallel import Interrupted, join_ranks
from cosmos_wds.train.start import find_inputs, start
from cosmos_wds.train.state import write_weights
from cosmos_wds.train.training import Training
from cosmos_wds.train.watch import Watch, watching


def train(recipe: Recipe) -> Path:
    """Take the recipe's run from where it stands to its last step; returns the run's folder.

    Ctrl-C and SIGTERM save a checkpoint first; then KeyboardInterrupt, or SystemExit(0), is raised.
    Raises UserError for anything that the user can mend.
    """
    folder = escape(str(recipe.run_folder))
    with join_ranks(recipe.train) as ranks, ExitStack() as held:
        if ranks.device.type == "cpu":
            keep_freed_memory()
        inputs = ranks.together(lambda: find_inputs(recipe, ranks))
        ranks.on_first(lambda: held.enter_context(locked(recipe.run_folder)))
        run = start(recipe, ranks, inputs)
        if run is not None:
            with run.saver:
                train_steps(run)
        # Also where a run that had come to its end was stopped just before.
        ranks.on_first(lambda: write_weights(recipe.run_folder / CHECKPOINTS, recipe.train.steps))
        if run is None:
            say(f"{folder}: all {recipe.train.steps} steps are done; nothing to do")
        else:
            say(f"{folder}: trained {run.step} steps")
    return recipe.run_folder


def train_steps(run: Training) -> None:
    """Do the remaining steps, saving on the way, at the end, and when asked to stop."""
    settings, metrics = run.recipe.train, run.folder / METRICS
    with (
        run.inputs.loader as loader,
        averaged(run),
        watching(settings, metrics, step=run.step) as watch,
        stop_requests() as check_stop,
    ):
        batches = iter(loader)

        def fetch() -> Batch:
            check_stop()
            run.saver.check()
            return next(batches)

        try:
            while run.step < settings.steps:
                began = time.perf_counter()
                batch = run.ranks.together(fetch)
                waited = time.perf_counter() - began
                lr = train_step(run, batch)
                watch.step(run.step, run.recent, lr=lr, waited=waited)
                if run.step % settings.save_every == 0 or run.step == settings.steps:
                    save(run, watch)
            run.ranks.together(run.saver.wait)
        except Interrupted as request:
            leave(run, watch, request)


@contextmanager
def averaged(run: Training) -> Iterator[None]:
    """Within it, backward averages gradients over the ranks."""
    all_used = run.recipe.model.actions != "reference"  # there B_D reaches no output (spec.md b.7)
    with distributed(run.denoiser, run.ranks, all_used=all_used) as run.model:
        try:
            yield
        finally:
            run.model = run.denoiser  # so that the wrapper ends before the ranks part


def train_step(run: Training, batch: Batch) -> float:
    """One optimizer step on this rank's share of a global batch; returns its learning rate."""
    settings = run.recipe.train
    lr = settings.lr * lr_factor(
        run.step, steps=settings.steps, warmup=settings.warmup, decay_to=settings.decay_to
    )
    total = backward(run, batch)
    norm = torch.nn.utils.clip_grad_norm_(list(run.parameters.values()), settings.clip)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    mine, norm = torch.stack([total, norm.double()]).tolist()
    mean = run.ranks.total(mine) / settings.batch
    if not (math.isfinite(mean) and math.isfinite(norm)):
        refuse(run, batch, loss=mine / len(batch.key), norm=norm)
    set_lr(run.optimizer, lr)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.ema.update(run.parameters, run.step)
    run.step += 1
    run.recent.append([mean, norm])
    return lr


def backward(run: Training, batch: Batch) -> Tensor:
    """Leave the gradients of the mean loss, micro-batch by micro-batch.

    Returns the sum of the windows' losses in float64, where it hardly depends on their order: runs
    on any number of ranks report the same.
    """
    recipe, device = run.recipe, run.ranks.device
    count = recipe.train.accumulate
    rows = len(batch.key) // count
    draws = draw(
        recipe.diffusion,
        seed=recipe.seed,
        step=run.step,
        lanes=run.inputs.lanes,
        latent_shape=run.latent_shape,
    )
    total = torch.zeros((), dtype=torch.float64, device=device)
    for i in range(count):
        part = slice(i * rows, (i + 1) * rows)
        latent = encoded(run, batch, part)
        with gradients_stay(run.model) if i + 1 < count else nullcontext():
            with torch.autocast(device.type, run.precision, enabled=run.precision != torch.float32):
                losses = run.model(
                    latent,
                    action=batch.action[part].to(device, non_blocking=True),
                    fps=batch.fps[part].to(device, non_blocking=True),
                    draws=draws.part(part).to(device),
                )
            (losses.mean() / count).backward()
        total += losses.detach().double().sum()
    return total


@torch.no_grad()
def encoded(run: Training, batch: Batch, part: slice) -> Tensor:
    """Some of the batch's windows as float32 latents (B, C, T, h, w) on the run's device."""
    if batch.latent is not None:
        return batch.latent[part].to(run.ranks.device, non_blocking=True).float()
    assert batch.video is not None
    video = batch.video[part].to(run.ranks.device, non_blocking=True)
    return run.tokenizer.encode(video.contiguous())


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
