"""A loaded model made ready to generate: its precision, compiled blocks, what it is given and fed.

B rollouts that run together, C latent channels, h x w latent pixels, H x W pixels.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from cosmos_wds.console import warn
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.diffusion.guardrail import load_guardrail
from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.recipe import Recipe, with_infer
from cosmos_wds.rollout.inputs import fitted
from cosmos_wds.train.parallel import choose_precision
from cosmos_wds.train.run import LoadedRun

DTYPE_GIVERS = {"net.patch", "net.noise.linear_1"}
"""Layers whose weights tell the network which type its input is turned to."""


@dataclass(frozen=True)
class Ready:
    """A model with its action contract, on a device, in a precision."""

    run: LoadedRun
    contract: ActionContract
    device: torch.device
    precision: torch.dtype

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.run.recipe

    def fitted(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (B, any, any, 3) uint8 at the model's size."""
        return fitted(pictures, self.recipe.window)

    def encoded(self, pictures: np.ndarray) -> Tensor:
        """Pictures (B, H, W, 3) uint8 -> latents (B, C, h, w) on the device."""
        video = torch.from_numpy(np.ascontiguousarray(pictures)).to(self.device)
        clip = rearrange(video, "b h w c -> b c 1 h w").contiguous()
        return self.run.tokenizer.encode(clip)[:, :, 0]

    def scaled(self, actions: np.ndarray) -> Tensor:
        """Actions in physical units, as the contract means them -> as the network sees them."""
        return torch.from_numpy(self.contract.scaled(actions)).to(self.device)

    def fps(self, count: int) -> Tensor:
        """Frames per second of `count` windows, (count,)."""
        rate = self.contract.fps / self.recipe.window.interval
        return torch.full((count,), rate, device=self.device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it, the network computes in its precision, and nothing is kept for gradients."""
        is_mixed = self.precision != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.precision, enabled=is_mixed),
        ):
            yield


def ready(run: LoadedRun, steps: int | None = None) -> Ready:
    """Make a loaded model ready for rollouts as its recipe's [infer] says.

    steps   sampler steps per call; None: the recipe's

    The weights are held in the precision of the computations from then on, the blocks stay
    compiled. The guardrail is found before anything is sampled. Raises CheckpointError for a model
    without an action contract, ConfigError for settings that it cannot follow.
    """
    contract = contract_of(run)
    recipe = with_infer(run.recipe, steps=run.recipe.infer.steps if steps is None else steps)
    load_guardrail(recipe.infer.guardrail)
    _tell_untrained(recipe.window.frames - 1, recipe.call_window.frames - 1)
    device = next(run.denoiser.parameters()).device
    precision = choose_precision(recipe.infer.precision or recipe.train.precision, device)
    hold(run.denoiser, precision)
    if recipe.infer.compile:
        compile_blocks(run.denoiser)
    return Ready(replace(run, recipe=recipe), contract, device, precision)


def contract_of(run: LoadedRun) -> ActionContract:
    """The run's action contract. Raises CheckpointError when the model takes no actions."""
    if run.contract is None:
        raise CheckpointError(
            f"{run.place.file}: a model without actions, which no action can steer; post-train it "
            "first with `cosmos-wds train`"
        )
    return run.contract


def hold(denoiser: Denoiser, precision: torch.dtype) -> None:
    """Keep matrices in the type that they are computed in.

    Autocast turns float32 weights to bfloat16 at every use, which for a large network takes as long
    as computing with them. Turned once, they give the same numbers in half the memory.
    """
    if precision == torch.float32:
        denoiser.float()
        return
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("net.") and name not in DTYPE_GIVERS:
            module.to(precision)


def compile_blocks(denoiser: Denoiser) -> None:
    """Compile each block, if it is not. Raises ConfigError without the compiler that it takes."""
    device = next(denoiser.parameters()).device
    compiler = os.environ.get("CXX") or "g++"
    if device.type == "cpu" and not shutil.which(compiler):
        raise ConfigError(
            f"[infer] compile = true: on a CPU that takes a C++ compiler, and there is no "
            f"{compiler}; install one, or leave it false"
        )
    for block in denoiser.net.blocks:
        if block._compiled_call_impl is None:
            block.compile()


@cache
def _tell_untrained(trained: int, asked: int) -> None:
    """Warn, once, that calls generate another number of frames than the model learned to."""
    if trained != asked:
        warn(
            f"a sampler call generates {asked} frame{'s' * (asked > 1)} together, and the model "
            f"was trained to generate {trained}: expect worse pictures"
        )
