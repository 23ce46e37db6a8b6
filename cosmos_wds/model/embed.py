"""Noise level, action and position -> what the blocks are conditioned on.

B batch, T frames, R rows, S columns of tokens, D width, A width of an action.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """c_noise -> raw sinusoid (for `cond`) and full-rank modulation (spec.md b.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, 3 * width, bias=False)

    def forward(self, c_noise: Tensor) -> tuple[Tensor, Tensor]:
        """c_noise (B,) -> sinusoid (B, D) and shared modulation (B, 3D)."""
        half = self.width // 2
        j = torch.arange(half, device=c_noise.device, dtype=torch.float32)
        angle = c_noise.float()[:, None] * torch.exp(-math.log(10000.0) * j / half)
        sinusoid = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return sinusoid, self.linear_2(F.silu(self.linear_1(sinusoid)))


class ActionMLP(nn.Module):
    """A -> 4D -> out, with biases and tanh GELU (spec.md b.7)."""

    def __init__(self, action_dims: int, width: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(action_dims, 4 * width)
        self.fc2 = nn.Linear(4 * width, out)

    def forward(self, action: Tensor) -> Tensor:
        """action (..., A) -> (..., out)."""
        return self.fc2(F.gelu(self.fc1(action), approximate="tanh"))


class PositionTables(nn.Module):
    """Learnable tables for frame, row and column, scaled to unit RMS (spec.md b.6)."""

    def __init__(self, frames: int, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self.frame = nn.Parameter(torch.empty(frames, width))
        self.row = nn.Parameter(torch.empty(rows, width))
        self.column = nn.Parameter(torch.empty(columns, width))

    def forward(self, grid: tuple[int, int, int]) -> Tensor:
        """(T, R, S) -> embedding of every token (T, R*S, D)."""
        t, r, s = grid
        e = self.frame[:t, None, None] + self.row[None, :r, None] + self.column[None, None, :s]
        rms = e.float().square().mean(dim=-1, keepdim=True).sqrt()
        return (e / (1e-6 + rms).to(e.dtype)).flatten(1, 2)


class LogVariance(nn.Module):
    """Uncertainty of the loss at a noise level: 128 fixed random Fourier features (spec.md b.11).

    Weighting as in EDM2 (Karras et al. 2024, eq. 14 to 16): loss * exp(-u) + u.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels))
        self.register_buffer("phases", torch.empty(channels))
        self.linear = nn.Linear(channels, 1, bias=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise (B,) -> u (B,)."""
        angle = c_noise.float()[:, None] * self.freqs.float() + self.phases.float()
        return self.linear((math.sqrt(2) * angle.cos()).to(self.linear.weight.dtype))[:, 0]
