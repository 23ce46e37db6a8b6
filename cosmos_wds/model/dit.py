"""The Cosmos-Predict1 diffusion transformer (spec.md section b), in plain PyTorch.

B batch, C latent channels, T frames, H x W latent pixels, P patch, R x S tokens per frame,
N = R*S, D width, A action width, F 1 or T.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_wds.model.attention import RMSNorm
from cosmos_wds.model.block import Block, FinalLayer, Modulation, cos_sin
from cosmos_wds.model.embed import ActionMLP, NoiseEmbedding, PositionTables
from cosmos_wds.model.rope import rope_angles
from cosmos_wds.model.weights import put
from cosmos_wds.sizes import ModelSettings

PATCH = 2
"""Latent pixels per side of a token."""


class Terms(NamedTuple):
    """What all runs of the network on one window share, whatever its noise."""

    rope: tuple[Tensor, Tensor]
    """cos and sin of the rotary angles, (B, 1, T*N, K)"""
    position: Tensor | None
    """(T, N, D) learnable position embedding"""
    cond: Tensor | None
    """(B, T, D): the actions' part of the conditioning"""
    shared: Tensor | None
    """(B, F, 3D): their part of the shared modulation"""


class CosmosDiT(nn.Module):
    """Noisy latent, noise level and actions -> network output F of EDM's preconditioning.

    `with_text` builds the cross-attention to text tokens. Training and rollouts leave it out: they
    have no text, and for zero text it adds exactly zero (spec.md c).
    """

    def __init__(
        self, settings: ModelSettings, *, action_dims: int, with_text: bool = False
    ) -> None:
        super().__init__()
        s, width = settings, settings.width
        self.settings = settings
        self.patch = nn.Linear((s.latent_channels + 2) * PATCH**2, width, bias=False)
        self.noise = NoiseEmbedding(width)
        self.cond_norm = RMSNorm(width, eps=1e-6)
        if s.position_tables:
            self.position = PositionTables(s.max_frames, s.max_height, s.max_width, width)
        if s.actions != "none":
            self.action_cond = ActionMLP(action_dims, width, width)
            self.action_shared = ActionMLP(action_dims, width, 3 * width)
        text_width = s.text_width if with_text else 0
        self.blocks = nn.ModuleList(
            Block(width, s.heads, s.adaln_rank, text_width) for _ in range(s.blocks)
        )
        self.final = FinalLayer(width, s.adaln_rank, s.latent_channels * PATCH**2)

    def forward(  # noqa: PLR0913 (conditions go by name)
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        given: Tensor,
        fps: Tensor,
        action: Tensor | None = None,
        has_action: Tensor | None = None,
        padding: Tensor | None = None,
        text: Tensor | None = None,
        terms: Terms | None = None,
    ) -> Tensor:
        """Run the network.

        x        (B, C, T, H, W)    latent, already times c_in
        c_noise  (B,)               ln(sigma) / 4
        given    (B, 1, T, H, W)    1 where the frame is given, 0 where it is generated
        fps      (B,)               frames per second
        action   (B, T-1, A)        scaled actions between the frames; None: no action
        has_action (B,) bool        False hides a sample's actions; None: all are shown
        padding  (B, 1, h, w)       padding mask; None: zeros
        text     (B, S, text width) text tokens; None: no text
        terms    of the window, fps and actions included, if they are known already
        result   (B, C, T, H, W)
        """
        grid = (x.shape[2], x.shape[3] // PATCH, x.shape[4] // PATCH)
        x = x.to(self.patch.weight.dtype)
        tokens = self.patch(_patchify(torch.cat([x, given.to(x), _padding_channel(x, padding)], 1)))
        if terms is None:
            terms = self.terms(x, fps=fps, action=action, has_action=has_action)
        cond, shared = self._condition(c_noise, terms)
        assert shared.shape[1] in (1, x.shape[2]), (shared.shape, x.shape)
        for block in self.blocks:
            tokens = block(tokens, cond, shared, terms.rope, position=terms.position, text=text)
        return rearrange(
            self.final(tokens, cond, shared),
            "b t (r s) (pr ps c) -> b c t (r pr) (s ps)",
            r=grid[1],
            pr=PATCH,
            ps=PATCH,
        )

    def terms(
        self,
        x: Tensor,
        *,
        fps: Tensor,
        action: Tensor | None = None,
        has_action: Tensor | None = None,
    ) -> Terms:
        """What does not depend on the noise: of a window of the shape of `x`; else as `forward`."""
        s, grid = self.settings, (x.shape[2], x.shape[3] // PATCH, x.shape[4] // PATCH)
        angles = rope_angles(
            grid,
            fps,
            head_width=s.width // s.heads,
            ratios=(s.rope_ratio_t, s.rope_ratio_h, s.rope_ratio_w),
        )
        position = self.position(grid) if s.position_tables else None
        return Terms(cos_sin(angles), position, *self._acted(action, has_action))

    def _acted(
        self, action: Tensor | None, has_action: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What actions add to the conditioning and to the shared modulation."""
        if action is None or self.settings.actions == "none":
            return None, None
        like = self.noise.linear_1.weight
        action = action.to(like)
        shown = 1 if has_action is None else has_action[:, None, None].to(like)
        if self.settings.actions == "reference":
            # Spec b.7: only the first action counts, and only through the shared modulation.
            return None, shown * self.action_shared(action[:, :1])
        # One embedding per generated frame; the given frame, which no action leads to, has 0.
        return (
            F.pad(shown * self.action_cond(action), (0, 0, 1, 0)),
            F.pad(shown * self.action_shared(action), (0, 0, 1, 0)),
        )

    def _condition(self, c_noise: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """Conditioning (B, F, D) and shared modulation (B, F, 3D) from noise level and actions."""
        sinusoid, shared = (e[:, None] for e in self.noise(c_noise))
        if terms.cond is not None:
            sinusoid = sinusoid + terms.cond
        if terms.shared is not None:
            shared = shared + terms.shared
        return F.silu(self.cond_norm(sinusoid)), shared


def _patchify(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, T, N, C*P*P), channel slowest."""
    return rearrange(x, "b c t (r pr) (s ps) -> b t (r s) (c pr ps)", pr=PATCH, ps=PATCH)


def _padding_channel(x: Tensor, padding: Tensor | None) -> Tensor:
    """The padding mask at the latent's size, (B, 1, T, H, W)."""
    if padding is None:
        return torch.zeros_like(x[:, :1])
    resized = F.interpolate(padding.to(x), size=x.shape[-2:], mode="nearest")
    return resized[:, :, None].expand(-1, -1, x.shape[2], -1, -1)


def initialise(net: CosmosDiT, generator: torch.Generator) -> None:
    """Fill a fresh network: Xavier matrices; gates, modulation and output start at zero.

    adaLN-Zero (Peebles & Xie 2023, section 3.2): at step 0 every block is the identity.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, PositionTables):
            for table in (module.frame, module.row, module.column):
                nn.init.trunc_normal_(table, std=0.02, generator=generator)
    modulations = (m.up for m in net.modules() if isinstance(m, Modulation))
    for layer in (*modulations, net.noise.linear_2, net.final.linear):
        nn.init.zeros_(layer.weight)
    if net.settings.actions != "none":
        initialise_actions(net, generator)


def initialise_actions(net: CosmosDiT, generator: torch.Generator) -> None:
    """Fill the action embedders as the preset says.

    per_frame: output layers start at zero, so that step 0 equals the base. reference: PyTorch's
    default for Linear, U(-1/sqrt(in), 1/sqrt(in)) (spec.md b.7).
    """
    zero_output = net.settings.actions == "per_frame"
    for mlp in (net.action_cond, net.action_shared):
        for layer in (mlp.fc1, mlp.fc2):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                # Drawn on the CPU: the same values on every device.
                value = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                put(parameter, value)
        if zero_output:
            nn.init.zeros_(mlp.fc2.weight)
            nn.init.zeros_(mlp.fc2.bias)
