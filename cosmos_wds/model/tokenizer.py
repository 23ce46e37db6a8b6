"""Pixels <-> latents: what training and rollouts ask of a tokenizer, whichever it is.

B batch, T frames, H x W pixels, C latent channels, f pixels per side of a latent cell.
Each frame is encoded alone (`pixel_chunk_duration = 1`, spec.md e).
"""

from typing import Protocol

import torch
from torch import Tensor

LATENT_STD = 0.5
"""Latents are scaled to this standard deviation (sigma_data, spec.md d.1)."""


class Tokenizer(Protocol):
    """What training and rollouts need of a tokenizer."""

    factor: int
    """Pixels per side of one latent cell."""
    channels: int
    digest: str
    """Hex digest of the weights: equal digests mean equal latents."""

    def encode(self, video: Tensor) -> Tensor:
        """uint8 (B, 3, T, H, W) -> float32 latent (B, C, T, H/f, W/f)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, C, T, h, w) -> uint8 (B, 3, T, h*f, w*f)."""
        ...

    def to(self, device: torch.device | str) -> "Tokenizer":
        """Move to a device; returns itself."""
        ...


def to_unit(video: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1] (spec.md d.1)."""
    return video.float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """[-1, 1] -> uint8 by clamping and truncation, in the video's own dtype (spec.md e)."""
    return ((1 + video) / 2).clamp(0, 1).mul(255).to(torch.uint8)
