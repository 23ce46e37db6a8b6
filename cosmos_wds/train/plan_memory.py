"""What one rank of a run holds in memory, part by part; what its checkpoints take on the disk."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.recipe_train import TrainSettings
from cosmos_wds.train.optim import BLOCK, has_8_bit_moments, trainable
from cosmos_wds.train.plan_step import Step

GPU_CONTEXT = 1.0e9
"""Bytes assumed for the CUDA context and the workspaces of cuBLAS and NCCL."""
GPU_FRAGMENTS = 0.03
"""Share of what comes and goes in a step that torch's allocator holds beyond it: 2 to 4 % with the
7B on an H100."""
CPU_FIRST_USE = 0.09e9
"""Bytes of the loader's libraries and of what torch's make ready at their first use."""
CPU_PIECES = 0.6
CPU_PIECES_CHECKPOINTING = 0.75
"""Pieces of freed memory that glibc keeps in a process, as a share of what activations of a step
take without checkpointing. They grow for some steps. After 8, in six settings without checkpointing
(4.8 and 102 million parameters, bfloat16 and float32, micro-batches of 4 to 16): 0.4 to 0.7; in
three with it: 0.6 to 0.9."""
CPU_SAVING = 1.25
"""Copies of the state, and of what of it is being serialised, while a checkpoint is written."""
GATHERED_BLOCKS = 3
"""Blocks whose whole weights FSDP holds at a time: in use, on the way, and just unpacked."""
FLOAT32 = 4


@dataclass(frozen=True)
class Parameters:
    """Numbers of a network."""

    trained: int
    frozen: int
    held: int
    """Bytes of all of them, and of buffers."""
    block: int
    """Of one block."""
    outside: int
    """Of what is no block."""
    in_8_bits: int
    """Trained ones whose moments adamw8bit keeps in 8 bits."""


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    device: dict[str, int]
    """On each GPU, or in the process when it trains on the CPU, at the moment of the peak."""
    host: dict[str, int]
    """In the CPU's memory, beside each GPU."""

    @property
    def total(self) -> int:
        """On the device."""
        return sum(self.device.values())


def count_parameters(denoiser: Denoiser) -> Parameters:
    """Count a network's numbers; it may be on the meta device."""
    trained = trainable(denoiser).values()
    everything = sum(p.numel() for p in denoiser.parameters())
    block = sum(p.numel() for p in denoiser.net.blocks[0].parameters())
    moved = sum(p.numel() for p in trained)
    return Parameters(
        trained=moved,
        frozen=everything - moved,
        held=sum(t.numel() * t.element_size() for t in denoiser.state_dict().values()),
        block=block,
        outside=everything - block * len(denoiser.net.blocks),
        in_8_bits=sum(p.numel() for p in trained if has_8_bit_moments(p)),
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a rank trains: what decides which part of the whole it holds."""

    settings: TrainSettings
    ranks: int
    precision: torch.dtype
    on_gpu: bool

    @property
    def parallel(self) -> Literal["single", "ddp", "fsdp"]:
        """How the ranks train together."""
        return self.settings.way(self.ranks)

    @property
    def gradients(self) -> Literal["made", "held", "sharded"]:
        """Where they are during a micro-batch (plan_step.StepRequest)."""
        if self.parallel == "fsdp":
            return "sharded"
        return "held" if self.parallel == "ddp" or self.settings.accumulate > 1 else "made"

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and the optimizer's state are in."""
        return self.ranks // self.settings.replicate if self.parallel == "fsdp" else 1


def memory(split: Split, count: Parameters, step: Step) -> Memory:
    """What a rank holds when it holds most: in a phase of `step`, or while the optimizer works."""
    settings, shards = split.settings, split.shards
    always = Counter(weights=count.held // shards)
    kept = {"optimizer state": moment_bytes(settings, count)}
    if settings.ema != "none":
        kept["running average"] = FLOAT32 * count.trained
    host = Counter()
    for part, size in kept.items():
        away = settings.offload if part == "optimizer state" else settings.ema_device == "cpu"
        (host if away and split.on_gpu else always)[part] = size // shards
    if host["optimizer state"]:  # it works on copies there
        host["weights and gradients"] = 2 * FLOAT32 * count.trained // shards
    gradients = FLOAT32 * count.trained // shards
    moments = [_in_phase(split, count, name, peak) for name, peak in step.peaks.items()]
    moments.append(Counter(gradients=gradients))
    if split.gradients != "made":
        for moment in moments[:-1]:
            moment["gradients"] += gradients
    most = max(moments, key=Counter.total)
    if split.on_gpu:
        always["context and fragments"] = int(GPU_CONTEXT + GPU_FRAGMENTS * most.total())
    host["checkpoint being written"] = state_bytes(settings, count) // shards
    return Memory(dict(always + most), dict(host))


def least_memory(split: Split, count: Parameters) -> int:
    """Bytes on the device that no choice of micro-batches lowers: while the optimizer works."""
    return memory(split, count, Step({}, 0, 0, 0)).total


def _in_phase(split: Split, count: Parameters, phase: str, peak: Counter[str]) -> Counter[str]:
    """What comes and goes, with what FSDP holds on its way between ranks."""
    held = Counter({part: size for part, size in peak.items() if part != "weights"})
    if split.parallel == "fsdp":
        width = split.precision.itemsize
        held["gathered weights"] = GATHERED_BLOCKS * width * count.block + FLOAT32 * count.outside
        if phase == "rest":
            held["gradients on their way"] = FLOAT32 * count.outside
        elif phase != "forward":
            held["gradients on their way"] = (width + FLOAT32) * count.block
    return held


def moment_bytes(settings: TrainSettings, count: Parameters) -> int:
    """Bytes of AdamW's two moments."""
    if settings.optimizer == "adamw":
        return 2 * FLOAT32 * count.trained
    scales = FLOAT32 * count.in_8_bits // BLOCK
    return 2 * (count.in_8_bits + scales + FLOAT32 * (count.trained - count.in_8_bits))


def state_bytes(settings: TrainSettings, count: Parameters) -> int:
    """Bytes of a checkpoint: weights that are trained, their average, moments."""
    average = FLOAT32 * count.trained if settings.ema != "none" else 0
    return FLOAT32 * count.trained + average + moment_bytes(settings, count)


def weights_bytes(count: Parameters) -> int:
    """Bytes of a file of weights, as trained or averaged."""
    return FLOAT32 * (count.trained + count.frozen)
