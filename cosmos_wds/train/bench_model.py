"""How fast a network of true size runs here, with random weights: `cosmos-wds bench model`.

The weights are random and all on the device, in bfloat16 where the device computes in it; memory
is what torch's allocator held at most. No optimizer, no data: forward, or forward and backward.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

import torch
from rich.table import Table
from torch import Tensor

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.diffusion.noise import draw
from cosmos_wds.errors import ConfigError
from cosmos_wds.model.describe import describe
from cosmos_wds.model.show import ACTION_DIMS, find_subject
from cosmos_wds.recipe import DiffusionSettings
from cosmos_wds.train.parallel import choose_device, choose_precision


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What to time."""

    name: str
    """A size or a recipe."""
    preset: Literal["ours", "reference"] = "ours"
    batch: int = 1
    backward: bool = False
    repeats: int = 5
    compile_blocks: bool = False
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a network took; times are medians."""

    name: str
    device: str
    precision: str
    batch: int
    latent: tuple[int, int, int]
    backward: bool
    parameters: int
    seconds: float
    tflop: float
    """Of the batch; a backward pass counts as two forward ones."""
    tflops: float
    """Per second, reached by the network."""
    matrix_tflops: float
    """Per second, reached by square matrix products on this device in this precision."""
    share: float
    """The network's part of the matrix rate."""
    peak_gb: float | None
    """Memory held at most, on a GPU."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    def table(self) -> Table:
        """A line for each value."""
        table = Table(show_header=False)
        for key, value in asdict(self).items():
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
        return table


def run_bench(request: BenchRequest) -> Measured:
    """Build the network, run it, time it. Raises ConfigError when it does not fit the device."""
    device = choose_device(request.device)
    precision = choose_precision("auto", device)
    settings, latent = find_subject(request.name, request.preset)
    facts = describe(
        settings,
        action_dims=ACTION_DIMS,
        frames=latent[0],
        height=latent[1],
        width=latent[2],
    )
    try:
        with torch.device("meta"):
            denoiser = Denoiser(settings, DiffusionSettings(), action_dims=ACTION_DIMS)
        denoiser = denoiser.to(precision).to_empty(device=device)
        fill_randomly(denoiser)
        if request.compile_blocks:
            for block in denoiser.net.blocks:
                block.compile()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = _time_network(denoiser, request, latent, device)
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
        del denoiser
        rate = matrix_rate(device, precision, size=8192 if device.type == "cuda" else 1024)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"{request.name}: does not fit {torch.cuda.get_device_name(device)} at batch "
            f"{request.batch}{' with gradients' if request.backward else ''}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    operations = facts.cost.flops * request.batch * (3 if request.backward else 1)
    return Measured(
        name=request.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=str(precision).removeprefix("torch."),
        batch=request.batch,
        latent=latent,
        backward=request.backward,
        parameters=facts.on_device,
        seconds=seconds,
        tflop=operations / 1e12,
        tflops=operations / seconds / 1e12,
        matrix_tflops=rate / 1e12,
        share=operations / seconds / rate,
        peak_gb=peak,
    )


@torch.no_grad()
def fill_randomly(denoiser: Denoiser) -> None:
    """Random weights, drawn on the device, that pass on what they are given about as large."""
    generator = torch.Generator(next(denoiser.parameters()).device).manual_seed(0)
    for name, tensor in denoiser.state_dict().items():
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
        else:
            tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)


def _time_network(
    denoiser: Denoiser,
    request: BenchRequest,
    latent: tuple[int, int, int],
    device: torch.device,
) -> float:
    """Median seconds of one pass over a batch."""
    frames, height, width = latent
    shape = (denoiser.net.settings.latent_channels, frames, height, width)
    draws = draw(
        DiffusionSettings(), seed=0, step=0, lanes=range(request.batch), latent_shape=shape
    ).to(device)
    video = torch.randn(request.batch, *shape, device=device)
    action = torch.zeros(request.batch, frames - 1, ACTION_DIMS, device=device)
    fps = torch.full((request.batch,), 5.0, device=device)

    def once() -> None:
        with torch.set_grad_enabled(request.backward):
            loss: Tensor = denoiser(video, action=action, fps=fps, draws=draws).mean()
            if request.backward:
                loss.backward()

    precision = next(denoiser.parameters()).dtype
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        return _median_seconds(once, request.repeats, device)


def matrix_rate(device: torch.device, precision: torch.dtype, *, size: int) -> float:
    """Operations per second of square matrix products: what the device can do at best."""
    a, b = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
    seconds = _median_seconds(lambda: torch.mm(a, b), 20, device)
    return 2 * size**3 / seconds


def _median_seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of `run` after two runs that do not count."""
    return median([seconds_of(run, device) for _ in range(repeats + 2)][2:])


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """How long `run` takes, with all that it leaves the device to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
