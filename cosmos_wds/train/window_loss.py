"""The training loss of held-out windows on fixed noise: what validation and `eval` compare.

n windows, T frames of each, A numbers an action.
"""

import torch
from torch import Tensor

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.train.validation_set import HeldWindows


def window_losses(
    denoiser: Denoiser,
    windows: HeldWindows,
    action: Tensor,
    *,
    rows: int,
    device: torch.device,
    precision: torch.dtype,
) -> Tensor:
    """The loss of each window under these actions, (n,) float64 on the device.

    action   (n, T-1, A) scaled
    rows     windows that pass through the network together
    """
    found = []
    for i in range(0, len(action), rows):
        part = slice(i, i + rows)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            losses = denoiser(
                windows.latent[part].to(device),
                action=action[part].to(device),
                fps=windows.fps[part].to(device),
                draws=windows.draws.part(part).to(device),
            )
        found.append(losses.double())
    return torch.cat(found)
