"""A run in memory, between two steps: what it reads, what it moves, where it stands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_wds.data.loader import Loader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.ema import Ema
from cosmos_wds.train.folder import CHECKPOINTS
from cosmos_wds.train.lora import frozen_digest, trained_state
from cosmos_wds.train.optim import Offloaded, optimizer_state
from cosmos_wds.train.parallel import Ranks
from cosmos_wds.train.run import Place
from cosmos_wds.train.state import Saver


@dataclass(frozen=True)
class Inputs:
    """What a run reads: found and checked before anything is written."""

    sets: ShardSets
    loader: Loader
    lanes: range
    base: Place | None
    """Weights to start from; None when there are none, or the run continues and holds its own. (A
    LoRA run keeps no frozen weights.)"""


@dataclass(kw_only=True)
class Work:
    """A model in training between two steps: all that a step needs besides its batch."""

    recipe: Recipe
    ranks: Ranks
    tokenizer: Tokenizer | None
    """Makes latents of video; None where batches hold latents."""
    latent_shape: tuple[int, int, int, int]
    """(C, T, h, w) of one window."""
    denoiser: Denoiser
    model: nn.Module
    """The denoiser; while training under DDP, wrapped (loop.averaged)."""
    parameters: dict[str, nn.Parameter]
    """What training moves, by name."""
    optimizer: torch.optim.Optimizer | Offloaded
    ema: Ema
    precision: torch.dtype
    """Of activations; weights, gradients and averages are float32."""
    lanes: range
    """This rank's part of the global batch."""
    step: int = 0
    """Steps done: the next one's 0-based number."""
    recent: list[list[float]] = field(default_factory=list)
    """[loss, gradient norm] of each step since the last line of metrics.jsonl."""


@dataclass(kw_only=True)
class Training(Work):
    """A run between two steps: what it reads and writes besides."""

    tokenizer: Tokenizer
    inputs: Inputs
    saver: Saver

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.recipe.run_folder

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / CHECKPOINTS

    def digests(self) -> dict[str, str]:
        """Of what the weights depend on, and a resume must find again."""
        contract = self.inputs.sets.contract
        found = {"action contract": contract.digest, "tokenizer": self.tokenizer.digest}
        return found | ({"base": frozen_digest(self.denoiser)} if self.recipe.lora.rank else {})

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint keeps, by the names of state.py; under FSDP, DTensors."""
        moments = optimizer_state(self.optimizer, self.parameters)
        return {
            **{f"reg.{name}": tensor for name, tensor in trained_state(self.denoiser).items()},
            **{f"ema.{name}": tensor for name, tensor in self.ema.average.items()},
            **{f"optim.{k}.{name}": t for name, kept in moments.items() for k, t in kept.items()},
        }

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says besides."""
        return {
            "iteration": self.step,
            # A rank may have fetched a batch that another one's stop kept it from using.
            "loader": {**self.inputs.loader.state_dict(), "step": self.step},
            "digests": self.digests(),
            "recent": self.recent,
        }
