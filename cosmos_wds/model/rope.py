"""Rotary position angles over frames, rows and columns (spec.md b.5).

B batch, T frames, R rows, S columns of the token grid, L = T*R*S tokens, K width of a head.
"""

import torch
from torch import Tensor

BASE_FPS = 24.0
"""Frame rate at which one frame step is one position (Cosmos-Predict1, `base_fps`)."""


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Shares (frame, row, column) of a head's width; 128 gives 44, 42, 42."""
    row = column = head_width // 6 * 2
    return head_width - row - column, row, column


def _frequencies(width: int, ratio: float, device: torch.device) -> Tensor:
    """(width/2,) angular frequencies; `ratio` stretches the base (NTK rule)."""
    theta = 10000.0 * ratio ** (width / (width - 2))
    exponent = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return 1.0 / theta**exponent


def rope_angles(
    grid: tuple[int, int, int], fps: Tensor, *, head_width: int, ratios: tuple[float, float, float]
) -> Tensor:
    """Angles of every token, in float32.

    grid     (T, R, S) frames, rows, columns
    fps      (B,) frames per second: frame t sits at t / fps * 24
    ratios   extrapolation ratios (frame, row, column)
    result   (B, L, K)
    """
    frames, rows, columns = grid
    widths = axis_widths(head_width)
    f_t, f_r, f_s = (_frequencies(w, r, fps.device) for w, r in zip(widths, ratios, strict=True))
    position = torch.arange(max(grid), device=fps.device, dtype=torch.float32)
    seconds = position[:frames] / fps.float()[:, None]  # (B, T)
    batch = fps.shape[0]
    shape = (batch, frames, rows, columns, -1)
    half = torch.cat(
        [
            ((seconds * BASE_FPS)[..., None] * f_t)[:, :, None, None].expand(shape),
            torch.outer(position[:rows], f_r)[None, None, :, None].expand(shape),
            torch.outer(position[:columns], f_s)[None, None, None].expand(shape),
        ],
        dim=-1,
    )
    return torch.cat([half, half], dim=-1).flatten(1, 3)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys (B, heads, L, K) by angles given as cos and sin (B, 1, L, K)."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
