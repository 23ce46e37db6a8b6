"""EDM denoiser and loss around the network (Karras et al. 2022; spec.md d.2 to d.5, f.2).

B batch, C latent channels, T frames, h x w latent pixels, A action width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cosmos_wds.diffusion.noise import Draws
from cosmos_wds.model.dit import CosmosDiT, Terms, initialise
from cosmos_wds.model.embed import LogVariance
from cosmos_wds.recipe import DiffusionSettings
from cosmos_wds.sizes import ModelSettings

SIGMA_DATA = 0.5
"""Standard deviation of latents (Cosmos-Predict1)."""


class Scaling(NamedTuple):
    """Preconditioning coefficients (Karras et al. 2022, table 1, column EDM)."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor


def scaling(sigma: Tensor) -> Scaling:
    """c_skip, c_out, c_in, c_noise of noise levels, in their shape and dtype."""
    total = sigma**2 + SIGMA_DATA**2
    return Scaling(
        SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4
    )


def loss_weight(sigma: Tensor) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022)."""
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


class Denoiser(nn.Module):
    """Network, preconditioning, first-frame conditioning and training loss."""

    def __init__(
        self,
        model: ModelSettings,
        diffusion: DiffusionSettings,
        *,
        action_dims: int,
        with_text: bool = False,
    ) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.net = CosmosDiT(model, action_dims=action_dims, with_text=with_text)
        self.logvar = LogVariance()

    def initialise(self, seed: int) -> None:
        """Fill every parameter and buffer; the same values for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        initialise(self.net, generator)
        # EDM2: Fourier features with frequencies 2 pi N(0, 1) and phases 2 pi U(0, 1).
        self.logvar.freqs.normal_(generator=generator).mul_(2 * torch.pi)
        self.logvar.phases.uniform_(generator=generator).mul_(2 * torch.pi)
        nn.init.zeros_(self.logvar.linear.weight)

    def forward(self, latent: Tensor, *, action: Tensor, fps: Tensor, draws: Draws) -> Tensor:
        """Training loss of each window.

        latent  (B, C, T, h, w) clean;  action (B, T-1, A) scaled;  fps (B,)
        result  (B,) float32
        """
        noisy = latent + draws.sigma[:, None, None, None, None] * draws.epsilon
        x0 = self.predict(
            noisy,
            draws.sigma,
            given=latent[:, :, 0],
            action=action,
            fps=fps,
            draws=draws,
        )
        error = (x0.float() - latent.float()).square() * loss_weight(draws.sigma)[
            :, None, None, None, None
        ]
        if self.diffusion.loss_frames == "generated":
            frames = error.mean(dim=(1, 3, 4))  # (B, T); a given frame has error 0
            shown = draws.is_given.to(frames)
            error = frames.sum(1) / (frames.shape[1] - shown)
        else:
            error = error.mean(dim=(1, 2, 3, 4))
        u = self.logvar(scaling(draws.sigma).noise).float()
        return error * torch.exp(-u) + u

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        given: Tensor,
        action: Tensor,
        fps: Tensor,
        draws: Draws,
        terms: Terms | None = None,
    ) -> Tensor:
        """Denoise `x` at `sigma`; the first frame is replaced by the given one where it is given.

        x       (B, C, T, h, w) noisy latent;  sigma (B,)
        given   (B, C, h, w) clean latent of the first frame
        draws   conditioning; its sigma and epsilon are not used
        terms   the network's of this window, if they are known already
        result  (B, C, T, h, w) prediction of the clean latent
        """
        c = Scaling(*(v[:, None, None, None, None] for v in scaling(sigma)))
        is_given = draws.is_given[:, None, None, None]
        is_visible = (draws.is_given & draws.is_visible)[:, None, None, None]
        # The network gets c_in(sigma_a) (x0 + sigma_a n) as its first frame (spec.md d.4).
        sigma_a = draws.augment_sigma[:, None, None, None]
        augmented = scaling(sigma_a).inp * (given + sigma_a * draws.augment_noise)
        augmented = torch.where(is_visible, augmented, 0)
        first = torch.where(is_given, augmented, (c.inp * x)[:, :, 0])
        mask = torch.zeros_like(x[:, :1])
        mask[:, :, 0] = is_visible.to(mask)
        net_x = torch.cat([first[:, :, None], (c.inp * x)[:, :, 1:]], dim=2)
        out = self.net(
            net_x,
            c.noise.flatten(),
            given=mask,
            fps=fps,
            action=action,
            has_action=draws.has_action,
            terms=terms,
        )
        x0 = c.skip * x + c.out * out
        first = torch.where(is_given, given, x0[:, :, 0])
        return torch.cat([first[:, :, None], x0[:, :, 1:]], dim=2)

    def denoise(  # noqa: PLR0913 (conditions go by name)
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        given: Tensor,
        action: Tensor,
        fps: Tensor,
        augment_sigma: float,
        augment_noise: Tensor,
        has_action: Tensor | None = None,
        terms: Terms | None = None,
    ) -> Tensor:
        """Denoise for sampling: the first frame is given, shown, and nearly clean (spec.md f.2).

        x (B, C, T, h, w), sigma (B,), given and augment_noise (B, C, h, w), action (B, T-1, A)
        scaled, fps (B,), has_action (B,) bool, None: all see theirs -> (B, C, T, h, w)
        terms: those of `self.terms`, which need not be made at each call of one window
        """
        yes = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        draws = Draws(
            sigma=sigma,
            epsilon=x,
            augment_sigma=torch.full_like(sigma, augment_sigma),
            augment_noise=augment_noise,
            is_given=yes,
            is_visible=yes,
            has_action=yes if has_action is None else has_action,
        )
        return self.predict(x, sigma, given=given, action=action, fps=fps, draws=draws, terms=terms)

    def terms(
        self, x: Tensor, *, action: Tensor, fps: Tensor, has_action: Tensor | None = None
    ) -> Terms:
        """What the network's runs on windows of the shape of `x` share; arguments of `denoise`."""
        return self.net.terms(x, fps=fps, action=action, has_action=has_action)
