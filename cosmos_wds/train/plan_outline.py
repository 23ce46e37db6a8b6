"""A recipe on a number of ranks: its memory and operations, and the time of a step on a GPU.

Everything is computed from the network itself, which is built without memory.
"""

from dataclasses import astuple, dataclass, replace
from functools import cache, cached_property

import torch

from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.parallel import Ranks, choose_precision, lanes_of
from cosmos_wds.train.plan_gpus import CAST, HOST, LINK, Gpu, launch_seconds
from cosmos_wds.train.plan_memory import (
    FLOAT32,
    Memory,
    Parameters,
    Split,
    count_parameters,
    memory,
)
from cosmos_wds.train.plan_step import Step, StepRequest, build, estimate_step, measure_step

CLIP, MOVE, AVERAGE = 12, 28, 12
"""Bytes read and written for a parameter when gradients are clipped, when AdamW moves it, and when
its average follows, all in float32."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations; a multiply-add counts two."""

    forward: int
    backward: int
    recomputed: int
    """What checkpointing does again."""


@dataclass(frozen=True)
class Outline:
    """A recipe on a number of ranks, each a GPU or a process on the CPU."""

    recipe: Recipe
    ranks: int
    action_dims: int
    on_gpu: bool = True
    most: int = 0
    """When above 0, steps are estimated between micro-batches of one window and of so many."""

    @cached_property
    def split(self) -> Split:
        """What part of the whole each rank has."""
        settings = self.recipe.train
        if self.on_gpu:
            wish = settings.precision
            precision = torch.float32 if wish == "float32" else torch.bfloat16
        else:
            precision = choose_precision(settings.precision, torch.device("cpu"))
        return Split(settings=settings, ranks=self.ranks, precision=precision, on_gpu=self.on_gpu)

    @cached_property
    def windows(self) -> int:
        """Of a rank's micro-batch. Raises ConfigError when the batch cannot be shared out so."""
        settings = self.recipe.train
        share = lanes_of(Ranks(0, self.ranks, torch.device("cpu")), settings)
        if self.ranks % settings.replicate:
            raise ConfigError(
                f"[train] replicate = {settings.replicate}: {self.ranks} ranks cannot form so many "
                "equal groups"
            )
        return len(share) // settings.accumulate

    @cached_property
    def parameters(self) -> Parameters:
        """Numbers of the network."""
        return _count(replace(self._one(), checkpointing="none"))

    @cached_property
    def step(self) -> Step:
        """A micro-batch on one rank."""
        request = self._request()
        return estimate_step(request, self.most) if self.most else measure_step(request)

    @cached_property
    def memory(self) -> Memory:
        """What a rank holds at most."""
        return memory(self.split, self.parameters, self.step)

    @cached_property
    def operations(self) -> Operations:
        """Of a training step, on all ranks together."""
        windows = self.ranks * self.recipe.train.accumulate * self.windows
        step, kept = self._per_window, measure_step(replace(self._one(), checkpointing="none"))
        backward = windows * kept.backward
        return Operations(windows * step.forward, backward, windows * step.backward - backward)

    def seconds(self, gpu: Gpu) -> float:
        """Of a training step; without waiting for data, and with messages hidden by work."""
        operations = sum(astuple(self.operations)) / self.ranks
        settings = self.recipe.train
        here, then, beside = CLIP, 0.0, 0.0
        if settings.offload:
            then = 2 * FLOAT32 / LINK + MOVE / HOST
        else:
            here += MOVE
        if settings.ema != "none" and settings.ema_device == "cpu":
            beside = FLOAT32 / LINK + AVERAGE / HOST
        elif settings.ema != "none":
            here += AVERAGE
        moved = self.parameters.trained / self.split.shards
        launch = launch_seconds(settings.checkpointing, compiled=settings.compile)
        started = launch * settings.accumulate * self._per_window.calls
        work = operations / gpu.rate(self.split.precision, compiled=settings.compile)
        if self.split.precision != torch.float32 and self.split.shards == 1:
            work += settings.accumulate * self.parameters.trained * CAST / gpu.bandwidth
        work = max(work, started) + moved * here / gpu.bandwidth
        return max(work, moved * beside) + moved * then

    def changed(self, *, ranks: int = 0, **settings: object) -> "Outline":
        """The same with other settings of [train], or on another number of ranks."""
        train = self.recipe.train.model_copy(update=settings)
        recipe = self.recipe.model_copy(update={"train": train})
        return replace(self, recipe=recipe, ranks=ranks or self.ranks)

    @cached_property
    def _per_window(self) -> Step:
        return measure_step(self._one())

    def _one(self) -> StepRequest:
        """One window: operations depend on nothing else, and so are found once for all splits."""
        return replace(self._request(), windows=1, gradients="held")

    def _request(self) -> StepRequest:
        recipe = self.recipe
        return StepRequest(
            model=recipe.model,
            diffusion=recipe.diffusion,
            lora=recipe.lora,
            action_dims=self.action_dims,
            windows=self.windows,
            latent=recipe.latent_size,
            precision=self.split.precision,
            on_gpu=self.on_gpu,
            checkpointing=recipe.train.checkpointing,
            gradients=self.split.gradients,
        )


@cache
def _count(request: StepRequest) -> Parameters:
    return count_parameters(build(request))
