"""Power-function EMA of the weights (spec.md d.9; Karras et al. 2024, arXiv 2312.02696)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.errors import CheckpointError


def exponent(rate: float) -> float:
    """Exponent gamma of the profile whose width is `rate` of the run's length."""
    roots = np.roots([1, 7, 16 - rate**-2, 12 - rate**-2])
    return float(roots[np.isreal(roots)].real.max())


def beta(step: int, gamma: float) -> float:
    """Share of the old average that stays at a 0-based step; 0 at the first."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)


class Ema:
    """A float32 running average of named parameters; buffers take no part."""

    def __init__(self, named: Mapping[str, Tensor], rate: float) -> None:
        self.gamma = exponent(rate)
        self.average = {name: p.detach().float().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, named: Mapping[str, Tensor], step: int) -> None:
        """Take in the parameters as they are after the 0-based `step`."""
        old = list(self.average.values())
        new = [named[name].detach().float() for name in self.average]
        torch._foreach_lerp_(old, new, 1 - beta(step, self.gamma))

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from saved averages. Raises CheckpointError when one is missing or misshapen."""
        for name, average in self.average.items():
            if name not in saved or saved[name].shape != average.shape:
                raise CheckpointError(f"EMA weights: {name} is missing or has another shape")
            average.copy_(saved[name])
