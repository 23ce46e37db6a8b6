"""RES second-order multistep sampler, "2ab" (spec.md f.1; Zhang et al. 2023, arXiv:2308.02157).

Deterministic; its state is float64, the denoiser is called in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0


def sigmas(steps: int) -> list[float]:
    """steps + 1 noise levels from 80 down to 0.002 (Karras et al. 2022, eq. 5)."""
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return [(high + i / steps * (low - high)) ** RHO for i in range(steps + 1)]


def sample(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, *, steps: int) -> Tensor:
    """Turn unit noise into a sample with steps + 1 denoiser calls.

    denoise   (x (B, ...) float32, sigma (B,) float32) -> prediction of the clean x
    noise     (B, ...) unit Gaussian
    result    (B, ...) float32
    """
    levels = sigmas(steps)

    def call(x: Tensor, sigma: float) -> Tensor:
        return denoise(x.float(), torch.full((x.shape[0],), sigma, device=x.device))

    x = levels[0] * noise.double()
    before: tuple[float, Tensor] | None = None
    for s, t in zip(levels[:-1], levels[1:], strict=True):
        x0 = call(x, s).double()
        h = math.log(s / t)
        decay = math.exp(-h)
        if before is None:
            x = decay * x + (1 - decay) * x0
        else:
            s_before, x0_before = before
            c2 = math.log(s / s_before) / h
            p1 = (1 - decay) / h
            p2 = (p1 - 1) / -h
            x = decay * x + h * ((p1 - p2 / c2) * x0 + (p2 / c2) * x0_before)
        before = (s, x0)
    return call(x, levels[-1])
