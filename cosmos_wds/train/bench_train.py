"""How long a recipe's training step takes here, and how much memory: `cosmos-wds bench train`.

The network has the recipe's true size and random weights; batches are random latents that lie
ready. So it needs neither weights nor shards, and what it times is the step that `train` does:
noise, forward, backward, clipping, optimizer, average. With a plain loop of the same network beside
it, in turns, it says what our step adds.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
from rich.table import Table

from cosmos_wds.data.episode import Batch
from cosmos_wds.diffusion.noise import Draws
from cosmos_wds.errors import ConfigError
from cosmos_wds.model.show import ACTION_DIMS
from cosmos_wds.recipe import Recipe
from cosmos_wds.train import meter
from cosmos_wds.train.bench_model import fill_randomly, matrix_rate, seconds_of
from cosmos_wds.train.distribute import distributed
from cosmos_wds.train.extras import check_extras
from cosmos_wds.train.parallel import Ranks, choose_precision, join_ranks
from cosmos_wds.train.rates import window_flops
from cosmos_wds.train.run import build_denoiser
from cosmos_wds.train.start import equip, spread
from cosmos_wds.train.step import gradients, update
from cosmos_wds.train.training import Work

WARM = 2
"""Steps that do not count: the optimizer's first, and compilation."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchRequest:
    """What to time."""

    recipe: Recipe
    steps: int = 10
    against_plain: bool = False
    """Time a plain loop of the same network too, in turns."""


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """What a step took; times are medians."""

    device: str
    precision: str
    ranks: int
    batch: int
    micro_batch: int
    checkpointing: str
    compile: bool
    optimizer: str
    parameters: int
    """Trained ones."""
    seconds: float
    windows_per_second: float
    tflop: float
    """Of a step's forward and backward pass on one rank; what is computed again does not count."""
    tflops: float
    matrix_tflops: float
    """Per second, of square matrix products on this device in this precision."""
    share: float
    peak_gb: float
    """At most: of the GPU's memory, or of the process on a CPU."""
    plain_seconds: float | None = None
    overhead: float | None = None
    """What our step takes more than the plain one, as a share of it."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    def table(self) -> Table:
        """A line for each figure."""
        table = Table(show_header=False)
        for key, value in asdict(self).items():
            if value is not None:
                shown = f"{value:.4g}" if isinstance(value, float) else str(value)
                table.add_row(key.replace("_", " "), shown)
        return table


def bench_train(request: TrainBenchRequest) -> TrainBench:
    """Build the recipe's training step and time it. Raises ConfigError when it does not fit."""
    recipe = request.recipe
    check_extras(recipe)
    with join_ranks(recipe.train) as ranks:
        try:
            work = random_work(recipe, ranks)
            with distributed(work.denoiser, ranks) as work.model:
                times, plain = _time_steps(work, request)
            work.model = work.denoiser
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"a step of {recipe.name} does not fit {torch.cuda.get_device_name(ranks.device)}: "
                f"{str(error).splitlines()[0]}; `cosmos-wds train --plan` says what would"
            ) from None
        return _told(work, times, plain)


def random_work(recipe: Recipe, ranks: Ranks) -> Work:
    """What the recipe trains, with random weights."""
    denoiser = build_denoiser(recipe, None)
    precision = choose_precision(recipe.train.precision, ranks.device)
    spread(denoiser, recipe, ranks, precision)
    if next(denoiser.parameters()).is_meta:
        denoiser.to_empty(device=ranks.device)
    fill_randomly(denoiser)
    return equip(recipe, ranks, denoiser, precision, None)


def _time_steps(work: Work, request: TrainBenchRequest) -> tuple[list[float], list[float]]:
    """Seconds of our steps, and of a plain loop's if it is asked for."""
    batch = random_batch(work)

    def ours() -> None:
        update(work, gradients(work, batch))

    loops = [ours, _plain_loop(work, batch)] if request.against_plain else [ours]
    times: list[list[float]] = [[] for _ in loops]
    for number in range(WARM + request.steps):
        for loop, taken in zip(loops, times, strict=True):
            seconds = seconds_of(loop, work.ranks.device)
            if number >= WARM:
                taken.append(seconds)
            elif work.ranks.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
    return times[0], times[1] if len(times) > 1 else []


def random_batch(work: Work) -> Batch:
    """Latents and actions of this rank's part of the batch, on the CPU as the loader gives them."""
    count, frames = len(work.lanes), work.recipe.window.frames
    generator = torch.Generator().manual_seed(0)
    return Batch(
        latent=torch.randn(count, *work.latent_shape, generator=generator).half(),
        action=torch.randn(count, frames - 1, ACTION_DIMS, generator=generator),
        fps=torch.full((count,), 5.0),
        key=("",) * count,
        start=(0,) * count,
    )


def _plain_loop(work: Work, batch: Batch) -> Callable[[], None]:
    """The step as one would write it for this network alone, in one process."""
    if work.ranks.world > 1 or work.recipe.train.accumulate > 1:
        raise ConfigError("--against plain: for one process and accumulate = 1")
    device, settings, diffusion = work.ranks.device, work.recipe.train, work.recipe.diffusion
    denoiser, parameters = work.denoiser, list(work.parameters.values())
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )
    average = [p.detach().clone() for p in parameters]
    assert batch.latent is not None
    count, shape = len(batch.key), batch.latent.shape
    yes = torch.ones(count, dtype=torch.bool, device=device)

    def step() -> None:
        latent = batch.latent.to(device).float()
        draws = Draws(
            sigma=(diffusion.p_mean + diffusion.p_std * torch.randn(count, device=device)).exp(),
            epsilon=torch.randn(shape, device=device),
            augment_sigma=torch.full((count,), 0.05, device=device),
            augment_noise=torch.randn(count, shape[1], *shape[3:], device=device),
            is_given=yes,
            is_visible=yes,
            has_action=yes,
        )
        with torch.autocast(device.type, work.precision, enabled=work.precision != torch.float32):
            loss = denoiser(
                latent, action=batch.action.to(device), fps=batch.fps.to(device), draws=draws
            ).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 0.01)
        loss.item()

    return step


def _told(work: Work, times: list[float], plain: list[float]) -> TrainBench:
    settings, device = work.recipe.train, work.ranks.device
    on_gpu = device.type == "cuda"
    seconds, batch = median(times), len(work.lanes)
    operations = batch * window_flops(work.recipe, work.latent_shape[1:], ACTION_DIMS)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else meter.peak_bytes()
    parameters = sum(p.numel() for p in work.parameters.values())
    rate = matrix_rate(device, work.precision, size=8192 if on_gpu else 1024)
    return TrainBench(
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        precision=str(work.precision).removeprefix("torch."),
        ranks=work.ranks.world,
        batch=settings.batch,
        micro_batch=batch // settings.accumulate,
        checkpointing=settings.checkpointing,
        compile=settings.compile,
        optimizer=settings.optimizer,
        parameters=parameters,
        seconds=seconds,
        windows_per_second=settings.batch / seconds,
        tflop=operations / 1e12,
        tflops=operations / seconds / 1e12,
        matrix_tflops=rate / 1e12,
        share=operations / seconds / rate,
        peak_gb=peak / 1e9,
        plain_seconds=median(plain) if plain else None,
        overhead=seconds / median(plain) - 1 if plain else None,
    )
