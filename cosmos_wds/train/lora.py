"""LoRA: frozen base weights, and low-rank adapters beside linear layers of the blocks (peft).

    W x  ->  W x + (alpha / rank) B A x       (Hu et al. 2021, arXiv 2106.09685, eq. 3)

A (rank, in), B (out, rank). The action embedders, which a base has not learnt, and the uncertainty
head are trained whole. A checkpoint of such a run keeps what is trained; the base is read again.
"""

import math
import re
from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.weights import put
from cosmos_wds.recipe_train import LoraSettings
from cosmos_wds.train.extras import import_extra

A, B, BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer.weight"
"""Ends of the names that peft gives to an adapter's matrices and to the layer that it stands by."""
WHOLE = re.compile(r"net\.action_(cond|shared)\.|logvar\.")
"""What is trained whole."""
STREAM = 2
"""Tells the adapters' random numbers from others of the same seed (diffusion/noise.py)."""


def add_lora(
    denoiser: Denoiser,
    settings: LoraSettings,
    *,
    seed: int,
    frozen: torch.dtype = torch.float32,
) -> None:
    """Freeze a loaded base and put an adapter beside each layer that `targets` names.

    seed     of A, which is the same on every device and rank; B is 0, so the base is unchanged
    frozen   number type of the blocks' frozen matrices: bfloat16 where autocast makes them that in
             every step anyway; then nothing changes but that they take half the memory

    torch's own generators are left alone. Call `check_extras` first.
    """
    peft = import_extra("peft")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets(denoiser, settings),
        bias="none",
    )
    # Adapters come without memory, and so without draws from torch's generator.
    peft.inject_adapter_in_model(config, denoiser, low_cpu_mem_usage=True)
    for name, parameter in denoiser.named_parameters():
        is_trained = name.endswith((A, B)) or WHOLE.match(name) is not None
        parameter.requires_grad_(is_trained)
        if not is_trained and name.startswith("net.blocks.") and parameter.ndim == 2:
            parameter.data = parameter.data.to(frozen)
    _fill(denoiser, seed)


def targets(denoiser: nn.Module, settings: LoraSettings) -> list[str]:
    """Names of the linear layers inside blocks that get an adapter."""
    return [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("net.blocks.")
        and name.rpartition(".")[2] in settings.targets
    ]


@torch.no_grad()
def _fill(denoiser: nn.Module, seed: int) -> None:
    """A as PyTorch begins a Linear, U(-1/sqrt(in), 1/sqrt(in)), as peft does; B 0."""
    layers = (module for module in denoiser.modules() if hasattr(module, "lora_A"))
    for number, layer in enumerate(layers):
        device = layer.base_layer.weight.device
        for part in (layer.lora_A, layer.lora_B):
            part.to_empty(device=device)
        weight = layer.lora_A["default"].weight
        bound = 1 / math.sqrt(weight.shape[1])
        rng = np.random.default_rng((seed, number, STREAM))
        drawn = rng.uniform(-bound, bound, tuple(weight.shape)).astype(np.float32)
        put(weight, torch.from_numpy(drawn))
        layer.lora_B["default"].weight.zero_()


def trained_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint has to keep: the module's own tensors by name, but for frozen parameters.

    Of a model without adapters that is its whole state.
    """
    frozen = {name for name, p in denoiser.named_parameters() if not p.requires_grad}
    return {name: t for name, t in denoiser.state_dict().items() if name not in frozen}


def frozen_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """The base's frozen weights, under the names that they have without adapters."""
    return {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in denoiser.named_parameters()
        if not parameter.requires_grad
    }


def frozen_digest(denoiser: nn.Module) -> str:
    """A checksum of the base's frozen weights, the same in bfloat16 as in float32."""
    sums = [
        tensor.to(torch.bfloat16).view(torch.int16).sum(dtype=torch.int64)
        for tensor in frozen_state(denoiser).values()
    ]
    return sha256(repr(torch.stack(sums).tolist()).encode()).hexdigest()


def merged_state(
    trained: Mapping[str, Tensor], base: Mapping[str, Tensor], settings: LoraSettings
) -> dict[str, Tensor]:
    """All weights of the network under its own names, with the adapters in theirs, in float32.

    trained   as `trained_state` names it, or averages of it
    base      the frozen weights, as `frozen_state` names them; W + (alpha / rank) B A

    Raises CheckpointError for an adapter of a layer that the base lacks.
    """
    stems = {name.removesuffix(B) for name in trained if name.endswith(B)}
    lost = sorted(stem for stem in stems if f"{stem}.weight" not in base)
    if lost:
        raise CheckpointError(f"the base has no {lost[0]}.weight, for which there is an adapter")
    merged = {n: t.float() for n, t in {**base, **trained}.items() if not n.endswith((A, B))}
    for stem in stems:
        a, b = trained[stem + A].float(), trained[stem + B].float()
        weight = merged[f"{stem}.weight"]
        merged[f"{stem}.weight"] = torch.addmm(weight, b, a, alpha=settings.alpha / settings.rank)
    return merged
