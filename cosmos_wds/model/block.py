"""Transformer block (spec.md b.4).

B batch, T frames, N tokens of a frame, D width, S text tokens, C text width, K width of a head,
F 1 or T: modulation is one for the sample, or one for each frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_wds.model.attention import Attention


class Modulation(nn.Module):
    """Shift, scale and gate from the conditioning: a low-rank part of its own plus the shared one.

    adaLN with LoRA: [shift, scale, gate] = up(down(cond)) + shared.
    """

    def __init__(self, width: int, rank: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, chunks * width, bias=False)

    def forward(self, cond: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
        """cond (B, F, D), shared (B, F, chunks*D) -> `chunks` tensors (B, F, 1, D)."""
        total = self.up(self.down(cond)) + shared
        return total[:, :, None].chunk(self.chunks, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights (eps 1e-6), then scale and shift. x (B, T, N, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class MLP(nn.Module):
    """D -> 4D -> D with exact GELU, no biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Self-attention over the video, cross-attention to the text, then an MLP.

    A block never sees an action. Actions arrive inside `cond` and `shared`, so the model without
    actions is this very class. A network without text (`text_width = 0`, or built text-free) has
    no cross-attention: for zero text it adds exactly zero (spec.md c).
    """

    def __init__(self, width: int, heads: int, rank: int, text_width: int) -> None:
        super().__init__()
        self.attention = Attention(width, width, heads)
        self.attention_mod = Modulation(width, rank, 3)
        if text_width:
            self.text = Attention(width, text_width, heads)
            self.text_mod = Modulation(width, rank, 3)
        self.mlp = MLP(width)
        self.mlp_mod = Modulation(width, rank, 3)

    def forward(
        self,
        x: Tensor,
        cond: Tensor,
        shared: Tensor,
        rope: tuple[Tensor, Tensor],
        *,
        position: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Update the video tokens once.

        x         (B, T, N, D)  video tokens
        cond      (B, F, D)     embedding of noise level and action
        shared    (B, F, 3D)    full-rank modulation, one for all blocks
        rope      cos, sin of the rotary angles, (B, 1, T*N, K)
        position  (T, N, D)     learnable position embedding, added first
        text      (B, S, C)     text tokens; None when there is no text
        result    (B, T, N, D)
        """
        if position is not None:
            x = x + position
        shift, scale, gate = self.attention_mod(cond, shared)
        y = modulate(x, shift, scale).flatten(1, 2)
        x = x + gate * self.attention(y, y, rope).unflatten(1, x.shape[1:3])
        if text is not None:
            shift, scale, gate = self.text_mod(cond, shared)
            y = modulate(x, shift, scale).flatten(1, 2)
            x = x + gate * self.text(y, text).unflatten(1, x.shape[1:3])
        shift, scale, gate = self.mlp_mod(cond, shared)
        return x + gate * self.mlp(modulate(x, shift, scale))


class FinalLayer(nn.Module):
    """Modulated LayerNorm and the projection of each token to its patch (spec.md b.8)."""

    def __init__(self, width: int, rank: int, out: int) -> None:
        super().__init__()
        self.mod = Modulation(width, rank, 2)
        self.linear = nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor, cond: Tensor, shared: Tensor) -> Tensor:
        """x (B, T, N, D), shared (B, F, 3D) of which the first 2D count -> (B, T, N, out)."""
        shift, scale = self.mod(cond, shared[..., : 2 * x.shape[-1]])
        return self.linear(modulate(x, shift, scale))


def cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary angles (B, L, K) -> cos and sin (B, 1, L, K), float32."""
    return torch.cos(angles)[:, None], torch.sin(angles)[:, None]
