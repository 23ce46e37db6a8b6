"""Recipe sections of training: optimizer, schedule, machines, what is watched. No torch here."""

from collections.abc import Iterator
from typing import Literal

from cosmos_wds.config import Settings, at_least


class TrainSettings(Settings):
    """Optimizer, schedule, checkpoints (spec.md d.6 to d.12)."""

    steps: int = 2000
    batch: int = 64
    """Windows per optimizer step, over all ranks."""
    accumulate: int = 1
    """Micro-steps per optimizer step; batch / ranks must be a multiple of it."""
    lr: float = 1e-4
    warmup: int = 500
    decay_to: float = 1.0
    """The factor that lr reaches, linearly, at the last step; 1 keeps it constant."""
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-10
    weight_decay: float = 0.1
    decay: Literal["matrices", "all"] = "matrices"
    clip: float = 1.0
    ema: Literal["power", "plain", "none"] = "power"
    """The running average of the weights: of a width that grows with the run, of a constant decay,
    or none."""
    ema_rate: float = 0.1
    """Width of the power-function EMA, relative to the run's length (spec.md d.9)."""
    ema_decay: float = 0.9999
    """Of the plain one, per step."""
    ema_device: Literal["same", "cpu"] = "same"
    """Where the average lies: beside the weights, or in the CPU's memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU or CPU that computes in it, float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["auto", "single", "ddp", "fsdp"] = "auto"
    """How ranks share the work: DDP gives each all weights, FSDP2 a part of them. `auto`: DDP when
    there are several."""
    replicate: int = 1
    """FSDP: groups of ranks that each hold the whole model between them and average gradients with
    the others; the number of nodes where the network between them is slow."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Which activations are computed again in backward instead of kept: none; all but the results
    of matrix products and attention; all but each block's input."""
    compile: bool = False
    """Compile the blocks, one by one."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit`: moments in 8 bits (cosmos-wds[torchao])."""
    offload: bool = False
    """Keep the optimizer's state in the CPU's memory (cosmos-wds[torchao])."""
    save_every: int = 500
    keep: int = 2
    """Checkpoints kept besides the last; 0 keeps all."""
    log_every: int = 10

    def way(self, ranks: int) -> Literal["single", "ddp", "fsdp"]:
        """How so many ranks train together."""
        if ranks == 1:
            return "single"
        return "fsdp" if self.parallel == "fsdp" else "ddp"

    def problems(self) -> Iterator[str]:
        yield from at_least(self, steps=1, batch=1, accumulate=1, save_every=1, log_every=1)
        yield from at_least(self, warmup=0, keep=0, replicate=1)
        if self.warmup >= self.steps:
            yield (
                f"warmup = {self.warmup}: not shorter than steps = {self.steps}, so the learning "
                f"rate would never be reached; use at most {max(0, self.steps // 4)}"
            )
        if self.lr <= 0 or self.eps <= 0:
            yield f"lr = {self.lr}, eps = {self.eps}: both must be above zero"
        if self.clip <= 0 or not 0 < self.ema_rate < 0.28:
            yield f"clip = {self.clip} must be above 0; ema_rate = {self.ema_rate} in (0, 0.28)"
        if not 0 <= self.ema_decay < 1:
            yield f"ema_decay = {self.ema_decay}: from 0 up to, not including, 1"
        if self.replicate > 1 and self.parallel != "fsdp":
            yield f'replicate = {self.replicate}: is for parallel = "fsdp"'
        if self.offload and self.parallel != "single":
            yield f'offload = true: is for one process, parallel = "single", not "{self.parallel}"'
        if self.optimizer == "adamw8bit" and self.eps < 1e-8:
            yield (
                f"eps = {self.eps}: too small for adamw8bit, which rounds small second moments to "
                "0, so that eps alone bounds their weights' steps; use 1e-8 or more"
            )
        if self.ema == "none" and self.ema_device != "same":
            yield f'ema_device = "{self.ema_device}": with ema = "none" there is no average'


class LoraSettings(Settings):
    """Low-rank adapters instead of all weights (Hu et al. 2021; cosmos-wds[peft])."""

    rank: int = 0
    """Of the adapters; 0 trains all weights."""
    alpha: float = 16.0
    """The adapters' output is times alpha / rank."""
    targets: tuple[Literal["q", "k", "v", "out", "up", "down"], ...] = (
        "q",
        "k",
        "v",
        "out",
        "up",
        "down",
    )
    """Last parts of the names of linear layers inside blocks that get one. The action embedders are
    always trained whole: a base has none."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, rank=0)
        if self.alpha <= 0:
            yield f"alpha = {self.alpha}: must be above 0"
        if self.rank and not self.targets:
            yield "targets = []: name at least one layer"


class WatchSettings(Settings):
    """What a run tells besides its live line and metrics.jsonl."""

    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where the same numbers go too; each is an extra of its own name."""
    validate_every: int = 0
    """Steps between validations, and one after the last step; 0: none."""
    split: str = "val"
    """The split that they are made on."""
    windows: int = 64
    """Windows of it that the loss is measured on, always the same ones with the same noise."""
    rollouts: int = 2
    """Episodes of it that are rolled out for pictures; 0: none."""
    rollout_frames: int = 8
    """Frames that each rollout generates; rounded up to whole windows."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, validate_every=0, windows=2, rollouts=0, rollout_frames=1)
