"""AdamW, its parameter groups by rule, and the learning rate as a function of the step."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError
from cosmos_wds.recipe_train import TrainSettings

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter."""

UNDECAYED = {"position", "logvar", "text", "text_mod"}
"""Modules of matrices that `decay = "matrices"` leaves alone."""


def lr_factor(step: int, *, steps: int, warmup: int, decay_to: float) -> float:
    """Factor on the learning rate at a 0-based step (spec.md d.7).

    Linear from 1e-6 to 1 over `warmup` steps, then linear to `decay_to` at the last step.
    """
    if step < warmup:
        return (1 - 1e-6) / warmup * step + 1e-6
    last = steps - 1
    if last <= warmup:
        return 1.0
    return 1.0 + (decay_to - 1.0) * (min(step, last) - warmup) / (last - warmup)


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts under `decay = "matrices"`: on what multiplies activations.

    Not on norms and biases (one dimension), position tables (they are added), the logvar head,
    or cross-attention, which zero text never trains and decay would only destroy (spec.md c).
    """
    return parameter.ndim >= 2 and UNDECAYED.isdisjoint(name.split("."))


def parameter_groups(
    named: Iterable[tuple[str, Tensor]], *, decay: str, weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into a decayed and an undecayed group; `all` decays everything."""
    decayed, plain = [], []
    for name, parameter in named:
        chosen = decayed if decay == "all" or is_decayed(name, parameter) else plain
        chosen.append(parameter)
    groups = (
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; fused, which is the fastest on CPU and on GPUs."""
    groups = parameter_groups(
        trainable(model).items(), decay=settings.decay, weight_decay=settings.weight_decay
    )
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Tensor]]:
    """The moments by parameter name, so that neither order nor grouping matters to a resume."""
    state = optimizer.state
    return {n: {k: state[p][k] for k in MOMENTS} for n, p in named.items() if p in state}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    saved: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Put moments back. Raises CheckpointError for names or shapes that do not fit."""
    unknown = sorted(set(saved) - set(named))
    if unknown:
        raise CheckpointError(f"optimizer state for unknown parameters: {', '.join(unknown[:3])}")
    for name, moments in saved.items():
        parameter = named[name]
        if moments["exp_avg"].shape != parameter.shape:
            raise CheckpointError(
                f"optimizer state of {name}: {tuple(moments['exp_avg'].shape)}, but the parameter "
                f"is {tuple(parameter.shape)}"
            )
        optimizer.state[parameter] = {
            # The step count of fused AdamW lives beside its parameter.
            k: torch.empty_like(moments[k], device=parameter.device).copy_(moments[k])
            for k in MOMENTS
        }
