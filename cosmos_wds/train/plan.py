"""What a run will take, said before it: parameters, memory, operations, time, disk.

No weights, no shards and no GPU are needed. Shards that are there say how long an epoch is and how
wide an action.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cosmos_wds.data.actions import NAMES
from cosmos_wds.data.mixture import open_order
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.extras import check_extras
from cosmos_wds.train.meter import peak_bytes
from cosmos_wds.train.plan_advice import advise
from cosmos_wds.train.plan_gpus import (
    CAST,
    GPUS,
    LAUNCH,
    LAUNCH_COMPILED,
    LAUNCH_SELECTIVE,
    SHARE,
    SHARE_COMPILED,
    Gpu,
)
from cosmos_wds.train.plan_memory import (
    CPU_FIRST_USE,
    CPU_PIECES,
    CPU_PIECES_CHECKPOINTING,
    CPU_SAVING,
    GPU_CONTEXT,
    GPU_FRAGMENTS,
    state_bytes,
    weights_bytes,
)
from cosmos_wds.train.plan_outline import Operations, Outline

ASSUMED = (
    f"speed: {SHARE:.0%} of the peak rate that the GPU's maker publishes, {SHARE_COMPILED:.0%} "
    f"compiled, and {CAST} bytes of memory traffic a weight in each micro-batch, as measured on an "
    f"H100; but {LAUNCH * 1e6:.0f} microseconds at least for each of torch's operations, with "
    f"selective checkpointing {LAUNCH_SELECTIVE * 1e6:.0f}, compiled {LAUNCH_COMPILED * 1e6:.0f}; "
    "waiting for data and messages between GPUs not counted",
    f"memory of a GPU: {GPU_CONTEXT / 1e9:.1f} GB for CUDA's context and libraries, and "
    f"{GPU_FRAGMENTS:.0%} of what comes and goes for the allocator's gaps; a tokenizer that "
    "encodes videos is not counted",
    f"memory of a CPU: what this process has by now and {CPU_FIRST_USE / 1e6:.0f} MB; pieces of "
    f"freed memory that glibc keeps, {CPU_PIECES:.0%} of what activations take, or "
    f"{CPU_PIECES_CHECKPOINTING:.0%} of what they would without checkpointing; frames that the "
    "loader has ready are not counted",
)
"""What the figures rest on, besides the network itself."""


@dataclass(frozen=True)
class OnGpu:
    """A run on GPUs of one kind. Bytes, seconds, hours."""

    gpu: str
    memory: float
    """Of the GPU."""
    needed: int
    """Of it, by the run."""
    fits: bool
    seconds_per_step: float
    hours: float
    gpus: int
    changes: dict[str, Any]
    """Settings of [train] that are not the recipe's."""


@dataclass(frozen=True)
class OnCpu:
    """A run in one process on this machine's CPU. Bytes."""

    memory: int | None
    """Of the machine; None when it does not say."""
    parts: dict[str, int]
    """Of the process, at the peak of a step; without the loader's frames."""
    saving: int
    """More than that, while a checkpoint is written."""

    @property
    def needed(self) -> int:
        """At the peak of a step."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run. Bytes, operations, seconds, hours."""

    recipe: str
    gpus: int
    parallel: str
    precision: str
    checkpointing: str
    batch: int
    micro_batch: int
    """Windows that one GPU has at a time."""
    trained: int
    """Parameters."""
    frozen: int
    parts: dict[str, int]
    """Memory of each GPU, by what it is for, at the moment when most is held."""
    host: dict[str, int]
    """Memory of the CPU, beside each GPU."""
    operations: Operations
    """Of a step, on all GPUs together."""
    steps: int
    steps_per_epoch: int | None
    no_epoch: str
    """Why steps_per_epoch is not known."""
    checkpoint: int
    """One on the disk."""
    checkpoints: int
    """How many stay, the one that is being written counted."""
    weights_files: dict[str, int]
    """Files of weights that a run leaves at its end."""
    on_gpus: list[OnGpu]
    advice: list[OnGpu]
    """For those of `on_gpus` that it does not fit: with which changes it would."""
    on_cpu: OnCpu | None
    """Where this machine has no GPU to train on."""
    assumed: tuple[str, ...] = ASSUMED

    @property
    def needed(self) -> int:
        """Of each GPU's memory."""
        return sum(self.parts.values())

    def to_json(self) -> str:
        """One line."""
        table = {**asdict(self), "needed": self.needed}
        if self.on_cpu:
            table["on_cpu"]["needed"] = self.on_cpu.needed
        return json.dumps(table)


def plan(recipe: Recipe, gpus: int = 0) -> Plan:
    """Plan a recipe's run.

    gpus   ranks; 0: as many as this machine has GPUs, or 1

    Raises ConfigError when the recipe cannot be shared out over them, or a library is missing.
    """
    check_extras(recipe)
    found = torch.cuda.device_count()
    is_single = recipe.train.parallel == "single"
    if gpus < 0 or (gpus > 1 and is_single):
        limit = '1, as [train] parallel = "single"' if is_single else "1 or more"
        raise ConfigError(f"--gpus {gpus}: {limit}")
    steps, no_epoch, action_dims = _look_at_shards(recipe)
    outline = Outline(recipe, gpus or (1 if is_single else max(1, found)), action_dims)
    settings, count, memory = recipe.train, outline.parameters, outline.memory
    rows = [_on(outline, gpu, {}) for gpu in GPUS]
    kinds = ("reg",) if settings.ema == "none" else ("reg", "ema")
    is_on_cpu = settings.device == "cpu" or (settings.device == "auto" and not found)
    return Plan(
        recipe=recipe.name,
        gpus=outline.ranks,
        parallel=outline.split.parallel,
        precision=str(outline.split.precision).removeprefix("torch."),
        checkpointing=settings.checkpointing,
        batch=settings.batch,
        micro_batch=outline.windows,
        trained=count.trained,
        frozen=count.frozen,
        parts=memory.device,
        host=memory.host,
        operations=outline.operations,
        steps=settings.steps,
        steps_per_epoch=steps,
        no_epoch=no_epoch,
        checkpoint=state_bytes(settings, count),
        checkpoints=_checkpoints(recipe),
        weights_files={f"{kind}_model.pt": weights_bytes(count) for kind in kinds},
        on_gpus=rows,
        advice=list(_advice(outline, rows)),
        on_cpu=_on_cpu(recipe, action_dims) if is_on_cpu else None,
    )


def _look_at_shards(recipe: Recipe) -> tuple[int | None, str, int]:
    """Steps of an epoch, or why they are not known, and the width of an action."""
    try:
        sets = ShardSets.load(recipe.data)
        order = open_order(sets, recipe, recipe.train.batch, training=True)
    except UserError as error:
        return None, str(error), len(NAMES)
    return order.steps_per_epoch, "", len(sets.contract.names)


def _checkpoints(recipe: Recipe) -> int:
    settings = recipe.train
    all_of_them = -(-settings.steps // settings.save_every)
    # The last, `keep` older ones, and a new one before the oldest is deleted.
    return min(all_of_them, settings.keep + 2) if settings.keep else all_of_them


def _on(outline: Outline, gpu: Gpu, changes: dict[str, Any]) -> OnGpu:
    seconds, needed = outline.seconds(gpu), outline.memory.total
    return OnGpu(
        gpu=gpu.name,
        memory=gpu.memory,
        needed=needed,
        fits=needed <= gpu.memory,
        seconds_per_step=seconds,
        hours=seconds * outline.recipe.train.steps / 3600,
        gpus=outline.ranks,
        changes=changes,
    )


def _advice(outline: Outline, rows: list[OnGpu]) -> Any:
    for gpu, row in zip(GPUS, rows, strict=True):
        advice = None if row.fits else advise(outline, gpu)
        if advice:
            yield _on(advice.outline, gpu, advice.changes)


def _on_cpu(recipe: Recipe, action_dims: int) -> OnCpu:
    held, python = Outline(recipe, 1, action_dims, on_gpu=False), int(peak_bytes() + CPU_FIRST_USE)
    is_kept = recipe.train.checkpointing == "none"
    share = CPU_PIECES if is_kept else CPU_PIECES_CHECKPOINTING
    kept = held.changed(checkpointing="none").memory.device["activations"]
    return OnCpu(
        memory=_machine_memory(),
        parts={
            "Python and torch": python,
            **held.memory.device,
            "pieces of freed memory": int(share * kept),
        },
        saving=int(CPU_SAVING * state_bytes(recipe.train, held.parameters)),
    )


def _machine_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
