"""How fast rollouts are here, beside one done the reference's way: `cosmos-wds bench rollout`.

The reference's way (reference.py) and ours at equal output (one noise for all frames, through
pixels, a frame a call) come from the same weights, in turns in one process, and their outputs are
compared. Then ours as it rolls by default, and several at once. A frame is a generated one.
"""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.table import Table

from cosmos_wds.errors import ConfigError
from cosmos_wds.rollout.bench_subject import Inputs, inputs_of, open_subject
from cosmos_wds.rollout.bench_ways import Way, candidates, timed, whole_calls
from cosmos_wds.rollout.metrics import square_error
from cosmos_wds.rollout.ready import Ready, ready
from cosmos_wds.rollout.rollout import Rolled
from cosmos_wds.train.bench_model import matrix_rate
from cosmos_wds.train.parallel import choose_device

BATCH = 8
"""Rollouts at once on a CPU."""


@dataclass(frozen=True, kw_only=True)
class RolloutBenchRequest:
    """What to time."""

    name: str = ""
    """A size, or trained weights; empty: the 7B on a GPU, the tiny one elsewhere."""
    frames: int = 4
    """Of a rollout; where calls generate several together, rounded up to whole calls."""
    steps: int | None = None
    """Sampler steps; None: the recipe's, which of a size are 35."""
    batch: int | None = None
    """Rollouts at once; None: 8, or on a GPU the fastest of 2, 4, ... 64."""
    height: int | None = None
    width: int | None = None
    """Of pictures; None: as trained, or of a size the usual ones."""
    repeats: int = 3
    compile_blocks: bool = False
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class RolloutBench:
    """What rollouts took."""

    name: str
    inputs: str
    device: str
    precision: str
    compiled: bool
    steps: int
    latent: tuple[int, int]
    matrix_tflops: float
    ways: tuple[Way, ...]
    ratio: float
    """Frames per second of ours at equal output, over those of the reference's way."""
    largest_latent_difference: float
    """Between these two."""
    largest_level_difference: int
    psnr: float | None
    """Of their pictures, dB; None: they are equal."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    def table(self) -> Table:
        """A line for each way of rolling out, and how far the first two are apart."""
        table = Table(title=self._title(), title_justify="left", caption_justify="left")
        table.add_column("rollout", no_wrap=True)
        for heading in ("at once", "runs", "s/frame", "frames/s", "", "matrix rate"):
            table.add_column(heading, justify="right")
        for way in self.ways:
            table.add_row(
                way.name,
                str(way.batch),
                f"{way.network_runs:.4g}",
                f"{way.seconds:.4g}",
                f"{way.frames_per_second:.4g}",
                f"{way.frames_per_second / self.ways[0].frames_per_second:.2f} x",
                f"{way.share:.1%}",
            )
        pictures = "equal" if self.psnr is None else f"{self.psnr:.1f} dB PSNR"
        table.caption = (
            f"Ours at equal output is {self.ratio:.2f} times as fast as the reference's way. "
            f"Latents differ by {self.largest_latent_difference:.1e} at most, pictures by "
            f"{self.largest_level_difference} of 255 levels ({pictures})."
        )
        return table

    def _title(self) -> str:
        height, width = self.latent
        compiled = ", ours compiled" if self.compiled else ""
        return (
            f"{self.name} on {self.device}, {self.precision}{compiled}: {self.steps} sampler "
            f"steps, latents of {height}x{width}, {self.inputs} inputs"
        )


def bench_rollout(request: RolloutBenchRequest) -> RolloutBench:
    """Roll out in every way and time it. Raises UserError, also when it does not fit the device."""
    model, inputs = opened(request)
    try:
        return _measured(model, inputs, request)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"{model.run.place.file}: does not fit {torch.cuda.get_device_name(model.device)}: "
            f"{str(error).splitlines()[0]}"
        ) from None


def opened(request: RolloutBenchRequest) -> tuple[Ready, Inputs]:
    """The model to roll out, and what from. Raises UserError when there is none such."""
    device = choose_device(request.device)
    usual = "cosmos-predict1-7b" if device.type == "cuda" else "cosmos-tiny"
    run = open_subject(
        request.name or usual,
        size=(request.height, request.width),
        device=device,
        compiled=request.compile_blocks,
    )
    model = ready(run, request.steps)
    each = model.recipe.call_window.frames - 1
    return model, inputs_of(run, whole_calls(request.frames, each))


def _measured(model: Ready, inputs: Inputs, request: RolloutBenchRequest) -> RolloutBench:
    on_gpu = model.device.type == "cuda"
    rate = matrix_rate(model.device, model.precision, size=8192 if on_gpu else 1024)
    batch = request.batch or (None if on_gpu else BATCH)
    several = candidates(model, inputs, frames=request.frames, batch=batch)
    ways, made = timed(model, several, repeats=request.repeats, matrix_rate=rate)
    theirs, ours = made[:2]
    return RolloutBench(
        name=request.name or str(model.run.place.file),
        inputs="random" if inputs.truth is None else "held-out",
        device=torch.cuda.get_device_name(model.device) if on_gpu else "cpu",
        precision=str(model.precision).removeprefix("torch."),
        compiled=request.compile_blocks,
        steps=model.recipe.infer.steps,
        latent=model.recipe.latent_size[1:],
        matrix_tflops=rate / 1e12,
        ways=tuple(ways),
        ratio=ways[1].frames_per_second / ways[0].frames_per_second,
        largest_latent_difference=float(np.abs(ours.latents - theirs.latents).max()),
        largest_level_difference=int(np.abs(ours.frames.astype(int) - theirs.frames).max()),
        psnr=mean_psnr(ours, theirs.frames),
    )


def mean_psnr(found: Rolled, frames: np.ndarray) -> float | None:
    """Of all generated pictures against others (R, N+1, H, W, 3), dB; None when they are equal."""
    error = float(square_error(found.frames[:, 1:], frames[:, 1:]).mean())
    return float(10 * np.log10(255**2 / error)) if error else None
