"""The random draws of a training step, as a function of position (seed, step, lane).

Neither the number of ranks nor the history enters, so a resumed or re-sharded run sees the same
noise. B windows of this rank, C channels, T frames, h x w latent pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.recipe import DiffusionSettings


@dataclass(frozen=True)
class Draws:
    """What chance decides in one training step (spec.md d.3 and d.4)."""

    sigma: Tensor
    """(B,) noise level"""
    epsilon: Tensor
    """(B, C, T, h, w) unit noise on the window"""
    augment_sigma: Tensor
    """(B,) noise level on the given frame"""
    augment_noise: Tensor
    """(B, C, h, w) unit noise on the given frame"""
    is_given: Tensor
    """(B,) bool: the first frame counts as given (else it is generated too)"""
    is_visible: Tensor
    """(B,) bool: the given frame is shown to the network"""
    has_action: Tensor
    """(B,) bool: the actions are shown to the network"""

    def to(self, device: torch.device | str) -> "Draws":
        """The same draws on a device."""
        return Draws(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def part(self, rows: slice) -> "Draws":
        """The draws of some rows of the batch (gradient accumulation)."""
        return Draws(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw(
    diffusion: DiffusionSettings,
    *,
    seed: int,
    step: int,
    lanes: Sequence[int],
    latent_shape: tuple[int, int, int, int],
) -> Draws:
    """Draw for the lanes of one rank at one step; pure in (seed, step, lane).

    latent_shape   (C, T, h, w)
    """
    channels, _, height, width = latent_shape
    is_given, is_visible = _condition(diffusion, seed, step)
    rows = []
    for lane in lanes:
        rng = np.random.default_rng((seed, step, lane, 1))
        sigma = np.exp(diffusion.p_mean + diffusion.p_std * rng.standard_normal())
        spread = diffusion.augment_mean + diffusion.augment_std * rng.standard_normal()
        rows.append(
            (
                sigma,
                rng.standard_normal(latent_shape, dtype=np.float32),
                diffusion.augment_scale * np.exp(spread),
                rng.standard_normal((channels, height, width), dtype=np.float32),
                is_given,
                is_visible and rng.random() >= diffusion.given_drop,
                rng.random() >= diffusion.action_drop,
            )
        )
    sigma, epsilon, augment_sigma, augment_noise, *flags = (
        np.stack(column) for column in zip(*rows, strict=True)
    )
    return Draws(
        torch.from_numpy(sigma.astype(np.float32)),
        torch.from_numpy(epsilon),
        torch.from_numpy(augment_sigma.astype(np.float32)),
        torch.from_numpy(augment_noise),
        *(torch.from_numpy(flag) for flag in flags),
    )


def _condition(diffusion: DiffusionSettings, seed: int, step: int) -> tuple[bool, bool]:
    """Whether the first frame is given, and shown, in this step.

    The reference draws both once per step: given with probability 1/2, shown with 0.8 (d.4).
    """
    if diffusion.conditioning == "given":
        return True, True
    rng = np.random.default_rng((seed, step, 0, 2))
    return bool(rng.integers(0, 2)), bool(rng.random() < 0.8)
