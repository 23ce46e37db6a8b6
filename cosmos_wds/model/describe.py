"""What a network is made of and what it costs, computed from the module itself on the meta device.

Nothing is allocated: the largest network is described in a moment on a laptop.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from cosmos_wds.model.dit import PATCH, CosmosDiT
from cosmos_wds.model.embed import LogVariance
from cosmos_wds.model.names import TEXT
from cosmos_wds.sizes import ModelSettings

TEXT_TOKENS = 512
"""Text tokens of a sample in the reference (spec.md a)."""

GROUPS = {
    "patch": "patch embedding",
    "noise": "noise level embedding",
    "cond_norm": "noise level embedding",
    "position": "position tables",
    "action_cond": "action embedders",
    "action_shared": "action embedders",
    "attention": "self-attention",
    "attention_mod": "self-attention, modulation",
    "text": "cross-attention to text",
    "text_mod": "cross-attention to text, modulation",
    "mlp": "MLP",
    "mlp_mod": "MLP, modulation",
    "final": "final layer",
}
"""Part of a parameter's name -> what it is counted as."""


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (multiply and add count two) of one sample's forward pass."""

    tokens: int
    flops: int
    """As training and rollouts run it, without text."""
    flops_with_text: int
    """As the reference runs it, over 512 text tokens that are zero."""


@dataclass(frozen=True)
class Facts:
    """Parameters of a network by what they do, and what a sample costs."""

    groups: dict[str, int]
    total: int
    """With the uncertainty head, as released files hold it."""
    on_device: int
    """Without the text path, which training and rollouts leave on disk."""
    cost: Cost


def describe(
    settings: ModelSettings, *, action_dims: int, frames: int, height: int, width: int
) -> Facts:
    """Count a network's parameters and operations.

    frames, height, width   of the latent: 2, 32, 40 for two frames of 256x320 pixels
    """
    with torch.device("meta"):
        net = CosmosDiT(settings, action_dims=action_dims, with_text=settings.text_width > 0)
        logvar = LogVariance()
    groups: dict[str, int] = {}
    text = 0
    for name, parameter in net.named_parameters(prefix="net"):
        parts = name.split(".")
        group = GROUPS[parts[3] if parts[1] == "blocks" else parts[1]]
        groups[group] = groups.get(group, 0) + parameter.numel()
        text += parameter.numel() if TEXT.match(name) else 0
    groups["uncertainty head"] = sum(p.numel() for p in logvar.parameters())
    total = sum(groups.values())
    shape = (frames, height, width)
    flops = _flops(net, shape, action_dims, text=False)
    cost = Cost(
        tokens=frames * (height // PATCH) * (width // PATCH),
        flops=flops,
        flops_with_text=_flops(net, shape, action_dims, text=True) if text else flops,
    )
    return Facts(groups=groups, total=total, on_device=total - text, cost=cost)


def _flops(net: CosmosDiT, shape: tuple[int, int, int], action_dims: int, *, text: bool) -> int:
    """Operations of matrix products and attention in one forward pass of one sample."""
    channels, tokens = net.settings.latent_channels, (1, TEXT_TOKENS, net.settings.text_width)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(
            torch.empty(1, channels, *shape),
            torch.empty(1),
            given=torch.empty(1, 1, *shape),
            fps=torch.empty(1),
            action=torch.empty(1, shape[0] - 1, action_dims),
            text=torch.empty(tokens) if text else None,
        )
    return counter.get_total_flops()
