"""Parallelism put around the model from outside: activation checkpointing, FSDP2, DDP.

The order is fixed: checkpointing changes what a block keeps, compilation takes that in, sharding
comes around both, and DDP, where it is chosen instead, around the whole.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import ConfigError
from cosmos_wds.train.parallel import Ranks

Kind = Literal["none", "selective", "full"]

_KEPT_OPS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}
"""What selective checkpointing keeps the results of: what costs most to compute again."""


def apply_checkpointing(denoiser: Denoiser, kind: Kind) -> None:
    """Let backward compute the blocks' activations again instead of keeping them.

    kind   none keeps all; selective keeps the results of matrix products and attention; full keeps
           each block's input only (Chen et al. 2016, arXiv 1604.06174)
    """
    if kind == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if kind == "selective":
        # Compiled, it is told to look for operations in place; a block has none.
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in denoiser.net.blocks:
        # The method of this one block: the module's class and its names stay as they are.
        block.forward = _recomputing(block.forward, options)


def _recomputing(forward: Callable[..., Tensor], options: dict[str, Any]) -> Callable[..., Tensor]:
    def call(*arguments: Any, **named: Any) -> Tensor:
        return checkpoint(forward, *arguments, **options, **named)

    return call


def _policy(_context: object, op: object, *_: object, **__: object) -> CheckpointPolicy:
    if op in _KEPT_OPS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def shard(denoiser: Denoiser, ranks: Ranks, *, replicate: int, precision: torch.dtype) -> None:
    """Split every parameter over the ranks (FSDP2), block by block and the rest as one.

    replicate   groups of ranks that each hold all parameters between them and average gradients
    precision   of the blocks' gathered weights; gradients are reduced in float32, and what lies
                outside the blocks, which is little, is gathered in float32

    Raises ConfigError when the ranks cannot be split so.
    """
    if ranks.world % replicate:
        raise ConfigError(
            f"[train] replicate = {replicate}: {ranks.world} ranks cannot form so many equal groups"
        )
    kind, each = ranks.device.type, ranks.world // replicate
    if replicate > 1:
        mesh = init_device_mesh(kind, (replicate, each), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(kind, (each,), mesh_dim_names=("shard",))
    gathered = None if precision == torch.float32 else precision
    inner, outer = (
        # What blocks are given stays as it is: autocast says what is computed in which precision.
        MixedPrecisionPolicy(one, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for one in (gathered, None)
    )
    for block in denoiser.net.blocks:
        fully_shard(block, mesh=mesh, mp_policy=inner)
    fully_shard(denoiser, mesh=mesh, mp_policy=outer)
    for method in ("denoise", "terms"):
        register_fsdp_forward_method(denoiser, method)


@contextmanager
def distributed(denoiser: Denoiser, ranks: Ranks) -> Iterator[nn.Module]:
    """Within it, backward through the module that it gives averages gradients over the ranks."""
    if ranks.world == 1 or isinstance(denoiser, FSDPModule):
        yield denoiser
        return
    yield DistributedDataParallel(
        denoiser,
        device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
        # In the reference's preset B_D reaches no output (spec.md b.7).
        find_unused_parameters=denoiser.net.settings.actions == "reference",
        gradient_as_bucket_view=True,
    )


def gradients_stay(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, backward averages no gradients: for all micro-batches but the last.

    FSDP still gives each rank its part of them, which is what keeps memory low, but leaves the
    average over replicas, the slow network's part, to the last.
    """
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    if isinstance(model, FSDPModule):
        return _without_all_reduce(model)
    return nullcontext()


@contextmanager
def _without_all_reduce(model: FSDPModule) -> Iterator[None]:
    model.set_requires_all_reduce(False)
    try:
        yield
    finally:
        model.set_requires_all_reduce(True)
