"""torchao's AdamW8bit with a step that keeps a GPU busy.

torchao hands its tensor subclasses to a function compiled for each shape, and finds each code by a
search of ten lookups: some 0.4 s a step for 6.2 billion parameters on an H100. Here plain tensors
in rows of one block go through one function for all shapes, and a code is computed and then checked
against its neighbours: 0.11 s. State and codes are torchao's.

R rows, of the 256 numbers that share a scale.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torchao.optim import AdamW8bit as TorchaosAdamW8bit
from torchao.optim.quant_utils import dequant_with_qmap, scale_tensor

from cosmos_wds.model.weights import local_part

BLOCK = 256
DECADES = 7
"""Powers of ten that the 255 levels of a moment cover (Dettmers et al. 2022, arXiv 2110.02861,
dynamic tree quantisation): the highest decade has most of them."""


class AdamW8bit(TorchaosAdamW8bit):
    """Its state must be there: `optim.fill_state`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002 (as torch's optimizers)
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            small: dict[str, list[Tensor]] = defaultdict(list)
            rates: dict[float, Tensor] = {}
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                p, grad = local_part(parameter.detach()), local_part(parameter.grad)
                m, v = local_part(state["exp_avg"]), local_part(state["exp_avg_sq"])
                if not hasattr(m, "codes"):
                    values = p, grad, m, v, state["step"]
                    for name, tensor in zip(SMALL, values, strict=True):
                        small[name].append(tensor)
                    continue
                state["step"] += 1
                step = state["step"].item()
                if step not in rates:
                    rates[step] = _rates(group, step, p.device)
                if p.numel():  # a rank's part may be empty
                    run = _compiled() if p.is_cuda else move
                    rows = (tensor.view(-1, BLOCK) for tensor in (p, grad, m.codes, v.codes))
                    scales = m.scale, v.scale, m.qmap, v.qmap
                    run(*rows, *scales, rates[step], *group["betas"], group["eps"])
            _move_small(group, small)


SMALL = ("params", "grads", "exp_avgs", "exp_avg_sqs", "state_steps")


def _move_small(group: dict[str, Any], small: dict[str, list[Tensor]]) -> None:
    """Parameters whose moments are float32."""
    if not small:
        return
    adamw(
        **small,
        max_exp_avg_sqs=[],
        foreach=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _rates(group: dict[str, Any], step: float, device: torch.device) -> Tensor:
    """What of a weight stays, the step's size, and what the second moment's root is divided by."""
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    rates = 1 - lr * group["weight_decay"], lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    return torch.tensor(rates).to(device, non_blocking=True)


@cache
def _compiled() -> Callable[..., None]:
    return torch.compile(move, fullgraph=True)


def move(  # noqa: PLR0913 (what an update takes)
    p: Tensor,
    grad: Tensor,
    m_codes: Tensor,
    v_codes: Tensor,
    m_scale: Tensor,
    v_scale: Tensor,
    m_levels: Tensor,
    v_levels: Tensor,
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """AdamW's step, in place (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

    p, grad             (R, 256) float32
    m_codes, v_codes    (R, 256) uint8    moments, as numbers of levels
    m_scale, v_scale    (R,) float32      the largest absolute value of each row
    m_levels, v_levels  (256,) float32    ascending, in -1..1 and 0..1
    """
    stays, rate, root = rates.unbind()
    m = dequant_with_qmap(m_codes, m_levels, m_scale).lerp(grad, 1 - beta1)
    v = dequant_with_qmap(v_codes, v_levels, v_scale).lerp(grad.square(), 1 - beta2)
    p.copy_(p * stays - rate * m / (v.sqrt() / root + eps))
    for moment, codes, scale, levels in (
        (m, m_codes, m_scale, m_levels),
        (v, v_codes, v_scale, v_levels),
    ):
        scaled, largest = scale_tensor(moment, BLOCK)
        codes.copy_(nearest_level(scaled, levels, is_signed=moment is m))
        scale.copy_(largest)


def nearest_level(x: Tensor, levels: Tensor, *, is_signed: bool) -> Tensor:
    """The number of the level nearest to each of `x`, the upper of two, as int64.

    levels   of torchao's `create_dynamic_map`: decade i of 7 is cut into 2^i cells (unsigned:
             2^(i+1)) between a tenth of its end and its end, and levels are the cells' middles;
             besides these 0 and 1
    """
    size = x.abs()
    decade = (size.log10().floor() + DECADES).clamp(0, DECADES - 1)
    cells = torch.exp2(decade if is_signed else decade + 1)
    in_decade = size * torch.exp2((DECADES - 1 - decade) * math.log2(10))
    cell = ((in_decade - 0.1) / 0.9 * cells).floor().clamp(min=0).minimum(cells)
    if is_signed:  # 127 levels below 0, 0 itself, 127 above, and 1
        guess = torch.where(x < 0, 127 - cells - cell, 127 + cells + cell)
    else:  # 0, 254 levels, and 1
        guess = cells - 1 + cell
    guess = guess.long().clamp(0, 255)
    below, level, above = (levels[(guess + by).clamp(0, 255)] for by in (-1, 0, 1))
    is_above = (guess < 255) & (x - level >= (above - level) * 0.5)
    is_below = (guess > 0) & (x - below < (level - below) * 0.5)
    return guess + is_above.long() - is_below.long()
