"""Attention with normalised queries and keys (spec.md b.4).

B batch, L query tokens, M key tokens, D width, C context width, K width of a head.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_wds.model.rope import rotate


class RMSNorm(nn.RMSNorm):
    """RMS normalisation computed in float32, whatever the input's dtype (spec.md b.9)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., K), in the dtype of x."""
        y = F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps)
        return y.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention without biases; queries and keys are RMS-normalised per head."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context_width, width, bias=False)
        self.v = nn.Linear(context_width, width, bias=False)
        self.q_norm = RMSNorm(width // heads, eps=1e-6)
        self.k_norm = RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, context: Tensor, rope: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Attend from `x` to `context`.

        x        (B, L, D)
        context  (B, M, C)   `x` itself in self-attention
        rope     cos and sin (B, 1, L, K), self-attention only
        result   (B, L, D)
        """
        q, k, v = (
            rearrange(t, "b l (n k) -> b n l k", n=self.heads)
            for t in (self.q(x), self.k(context), self.v(context))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype))
        return self.out(rearrange(y, "b n l k -> b l (n k)"))
