"""The machine: which device, how many ranks, and how they agree. The model knows none of it.

Every rank runs the same loop, whoever started it: launch.py, torchrun or Slurm. What can fail or
stop on one rank alone (a broken sample, a full disk, a signal) is run through `together`, so that
all ranks end at the same step, for the same reason, said once.
"""

import datetime
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.recipe_train import TrainSettings

T = TypeVar("T")

PATIENCE = datetime.timedelta(hours=1)
"""How long a rank waits for the others: rank zero may be fitting a tokenizer or writing files."""


class Interrupted(Exception):
    """The user (Ctrl-C) or the machine's owner (SIGTERM) asked the run to end."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass(frozen=True)
class Ranks:
    """This process among the run's processes, and its device."""

    rank: int
    world: int
    device: torch.device

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; if it is refused on one, raise that refusal on all.

        Refusals are UserError and Interrupted. Costs one small message when there is none.
        """
        if self.world == 1:
            return action()
        refusal, result = None, None
        try:
            result = action()
        except (UserError, Interrupted) as error:
            refusal = error
        count = torch.tensor(int(refusal is not None))
        dist.all_reduce(count)
        if count:
            refusals: list[Exception | None] = [None] * self.world
            dist.all_gather_object(refusals, refusal)
            told = [r for r in refusals if r is not None]
            if self.rank:
                time.sleep(1.0)  # torchrun ends all ranks when one exits: let rank zero speak
            raise next((r for r in told if isinstance(r, UserError)), told[0])
        return result  # type: ignore[return-value]

    def on_first(self, action: Callable[[], object]) -> None:
        """Run `action` on rank zero while the others wait; its refusal ends all ranks."""
        self.together(action if self.rank == 0 else lambda: None)

    def total(self, value: float) -> float:
        """The sum of the ranks' numbers, in float64."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values


@contextmanager
def join_ranks(settings: TrainSettings) -> Iterator[Ranks]:
    """Join the processes that were started together, or be the only one; leave at the end.

    Raises ConfigError when the recipe asks for what this machine or start cannot give.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    _check_start(settings, world)
    device = choose_device(settings.device, local)
    _let_segments_grow()
    if world == 1:
        yield Ranks(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Numbers and messages travel over gloo also beside GPUs, so they never wait for the device.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    is_agreed = True
    try:
        yield Ranks(rank, world, device)
    except UserError:
        raise
    except Exception:
        is_agreed = False  # the others may be waiting in a collective: leaving in order would hang
        raise
    finally:
        if is_agreed:
            # DDP lies in a reference cycle. Left to the interpreter's end, its gloo threads abort
            # the process now and then.
            gc.collect()
            dist.destroy_process_group()


def _let_segments_grow() -> None:
    """Let torch's allocator on a GPU enlarge what it has, where the user has not said otherwise.

    Else pieces of freed memory are left that nothing fits, several GB with a network of 7 billion
    parameters. It counts if nothing has been allocated yet.
    """
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def choose_device(wish: str, local_rank: int = 0) -> torch.device:
    """`auto` takes this rank's GPU when there is one. Raises ConfigError for a GPU not there."""
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            '[train] device = "cuda", but torch sees no GPU; use "auto" or "cpu", or install a '
            "torch built for your driver"
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} visible;"
            " start as many processes as there are GPUs"
        )
    return torch.device("cuda", local_rank)


def choose_precision(wish: str, device: torch.device) -> torch.dtype:
    """The type of activations: bfloat16 on a device that computes in it, else float32, unless told.

    On a CPU without its instructions, bfloat16 is emulated and slower than float32.
    """
    if wish == "auto":
        if device.type == "cuda":
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            able = cpu_computes_bfloat16()
        return torch.bfloat16 if able else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wish]


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has bfloat16 instructions (AVX512-BF16, AMX); an old torch cannot tell."""
    read = getattr(torch.cpu, "get_capabilities", None)
    has = read() if read else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def lanes_of(ranks: Ranks, settings: TrainSettings) -> range:
    """The lanes of the global batch that this rank trains on: a contiguous share.

    Raises ConfigError when the batch cannot be shared out evenly.
    """
    each = ranks.world * settings.accumulate
    if settings.batch % each:
        raise ConfigError(
            f"[train] batch = {settings.batch}: {ranks.world} ranks with accumulate = "
            f"{settings.accumulate} need a multiple of {each}; nearest is "
            f"{each * max(1, round(settings.batch / each))}"
        )
    share = settings.batch // ranks.world
    return range(ranks.rank * share, (ranks.rank + 1) * share)


def _check_start(settings: TrainSettings, world: int) -> None:
    if settings.parallel == "ddp" and world == 1:
        raise ConfigError(
            '[train] parallel = "ddp" needs several processes; this machine has no two GPUs: start '
            "them with --processes N"
        )
    if settings.parallel == "single" and world > 1:
        raise ConfigError(
            f'[train] parallel = "single", but {world} processes were started; use "auto"'
        )
