"""A network's tensors complete again, as a release holds them: in NVIDIA's form or in diffusers'.

Training and rollouts have no text path. A release has one: it is taken from the base that the run
started from, unchanged, since nothing trained it. A network that never had text gets one of zeros,
which adds exactly zero whatever the text says.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cosmos_wds.model.dit import PATCH, CosmosDiT
from cosmos_wds.model.embed import LogVariance
from cosmos_wds.model.names import POSITIONS, TEXT, released_name, rename
from cosmos_wds.sizes import ModelSettings

DIFFUSERS_CLASS = "CosmosTransformer3DModel"
PLAIN_TEXT_WIDTH = 1024
"""Width of the text tokens of a network that has no text of its own (T5, as in the reference)."""


def shapes(settings: ModelSettings, *, action_dims: int) -> dict[str, torch.Size]:
    """Our names and shapes of a complete network with text path and uncertainty head."""
    with torch.device("meta"):
        net = CosmosDiT(settings, action_dims=action_dims, with_text=settings.text_width > 0)
        parts = {"net": net, "logvar": LogVariance()}
    return {
        f"{prefix}.{name}": tensor.shape
        for prefix, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def with_text(
    state: Mapping[str, Tensor], text: Mapping[str, Tensor], settings: ModelSettings
) -> dict[str, Tensor]:
    """The tensors (our names) of a complete network, text path included.

    state   the network without or with its text path
    text    what the base holds of it; where that is nothing, it becomes zeros
    """
    complete = dict(state)
    dims = next((t.shape[1] for n, t in state.items() if n.endswith("action_cond.fc1.weight")), 1)
    for name, shape in shapes(settings, action_dims=dims).items():
        if TEXT.match(name) and name not in complete:
            complete[name] = text[name] if name in text else _plain(name, shape)
    return complete


def _plain(name: str, shape: torch.Size) -> Tensor:
    """A text path that does nothing: zeros, and norms that change nothing."""
    return torch.ones(shape) if "_norm." in name else torch.zeros(shape)


def released(complete: Mapping[str, Tensor], settings: ModelSettings) -> dict[str, Tensor]:
    """Complete tensors under NVIDIA's names, with the range of positions that its files hold."""
    state = {released_name(name): tensor for name, tensor in complete.items()}
    longest = max(settings.max_frames, settings.max_height, settings.max_width)
    state[POSITIONS] = torch.arange(longest, dtype=torch.float32)
    return state


def diffusers(
    complete: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Complete tensors under diffusers' names, and apart those that it has no place for.

    The second are the action embedders, under NVIDIA's names without `net.`; the uncertainty head,
    which only training uses, is left out.
    """
    named: dict[str, Tensor] = {}
    actions: dict[str, Tensor] = {}
    for name, tensor in complete.items():
        theirs = rename(name, source="ours", target="diffusers")
        if theirs:
            named[theirs] = tensor
        elif name.startswith("net."):
            actions[released_name(name).removeprefix("net.")] = tensor
    return named, actions


def diffusers_config(settings: ModelSettings) -> dict[str, Any]:
    """The config.json of diffusers' class for a network (key_map: rope_scale is t, h, w)."""
    return {
        "_class_name": DIFFUSERS_CLASS,
        "in_channels": settings.latent_channels + 1,  # and the padding mask, which it adds itself
        "out_channels": settings.latent_channels,
        "num_attention_heads": settings.heads,
        "attention_head_dim": settings.width // settings.heads,
        "num_layers": settings.blocks,
        "mlp_ratio": 4.0,
        "text_embed_dim": settings.text_width,
        "adaln_lora_dim": settings.adaln_rank,
        "max_size": [
            settings.max_frames,
            settings.max_height * PATCH,
            settings.max_width * PATCH,
        ],
        "patch_size": [1, PATCH, PATCH],
        "rope_scale": [settings.rope_ratio_t, settings.rope_ratio_h, settings.rope_ratio_w],
        "concat_padding_mask": True,
        "extra_pos_embed_type": "learnable" if settings.position_tables else None,
    }


def text_or_plain(settings: ModelSettings) -> ModelSettings:
    """The settings of the complete network: one without text gets a plain path of usual width."""
    if settings.text_width:
        return settings
    return settings.model_copy(update={"text_width": PLAIN_TEXT_WIDTH})
