"""AdamW, its parameter groups by rule, and the learning rate as a function of the step.

Moments are float32, or 8 bits with a scale for each block of 256 numbers (Dettmers et al. 2022,
arXiv 2110.02861; torchao's AdamW8bit, with the step of adamw8bit.py). They are on the parameters'
device or in the CPU's memory (torchao's CPUOffloadOptimizer), and there from the start, as zeros,
so that a checkpoint can be read straight into them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cosmos_wds.console import say
from cosmos_wds.model.weights import local_part
from cosmos_wds.recipe_train import TrainSettings
from cosmos_wds.train.extras import import_extra

BLOCK = 256
"""Numbers of an 8-bit moment that share a scale."""
FEWEST_ROWS = 256
"""Of a matrix whose moments are in 8 bits, so that each of so many ranks has a part of it."""

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


def build_optimizer(model: nn.Module, settings: TrainSettings) -> "Optimizer | Offloaded":
    """AdamW over the trainable parameters, as `optimizer` and `offload` in [train] say.

    `adamw` is fused, which is the fastest on CPU and on GPUs. Parameters that lie in the CPU's
    memory already have nothing to offload. Call `check_extras` first.
    """
    named = trainable(model)
    groups = parameter_groups(
        named.items(), decay=settings.decay, weight_decay=settings.weight_decay
    )
    options = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    in_8_bits = settings.optimizer == "adamw8bit"
    is_offloaded = settings.offload and any(p.device.type != "cpu" for p in named.values())
    if in_8_bits:
        own = "torchao.optim" if is_offloaded else "cosmos_wds.train.adamw8bit"
        kind: Callable[..., Optimizer] = import_extra(own).AdamW8bit
    else:
        kind, options = torch.optim.AdamW, {**options, "fused": True}
    if is_offloaded:
        return Offloaded(groups, kind, options, in_8_bits=in_8_bits)
    if settings.offload:
        say("[train] offload changes nothing on a CPU: the state is in its memory anyway")
    optimizer = kind(groups, **options)
    fill_state(optimizer, in_8_bits=in_8_bits)
    return optimizer


class Offloaded:
    """AdamW whose state and step are in the CPU's memory (torchao's CPUOffloadOptimizer).

    torchao takes weights when it is built, before a checkpoint may have filled them, and gradients
    during backward, before they are clipped. Here both are taken when a step begins. For one
    process: gradients that ranks have yet to average must not be taken earlier either.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        kind: Callable[..., Optimizer],
        options: Mapping[str, Any],
        *,
        in_8_bits: bool,
    ) -> None:
        offload = import_extra("torchao.optim").CPUOffloadOptimizer
        self._inner = offload(groups, kind, **options)
        self._has_weights = False
        small = self._inner.d_opt  # what is not worth a transfer stays on the device
        self._parts = [*self._inner.optim_dict.values(), *([] if small is None else [small])]
        for part in self._parts:
            fill_state(part, in_8_bits=in_8_bits)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, as torch's optimizers have them; one for each offloaded parameter."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """What is kept for each of the model's parameters, as torch's optimizers have it."""
        own = {host: p for p, host in self._inner.param_d2h_map.items()}
        return {own.get(p, p): kept for part in self._parts for p, kept in part.state.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients as they are now."""
        self._inner.stream.synchronize()  # torchao's own copies
        for parameter, host in self._inner.param_d2h_map.items():
            if not self._has_weights:
                host.copy_(parameter)
            if parameter.grad is not None:
                host.grad.copy_(parameter.grad)
        self._has_weights = True
        self._inner.step()

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self._inner.zero_grad(set_to_none=set_to_none)


def has_8_bit_moments(parameter: Tensor) -> bool:
    """Whether AdamW8bit keeps a parameter's moments in 8 bits: large matrices, in whole blocks.

    A function of the shape of the whole parameter, of which FSDP splits the rows: so a checkpoint
    fits any number of ranks. (torchao's rule looks at each rank's part.) All else stays float32.
    """
    return (
        parameter.ndim == 2
        and parameter.shape[0] >= FEWEST_ROWS
        and parameter.shape[1] % BLOCK == 0
    )


@torch.no_grad()
def fill_state(optimizer: Optimizer, *, in_8_bits: bool) -> None:
    """Give every parameter its state, zeros, in the form that the optimizer makes by itself."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        blank = _zeros_in_8_bits if in_8_bits and has_8_bit_moments(parameter) else _zeros
        optimizer.state[parameter] = {
            # That of fused AdamW lives beside its parameter, torchao's on the CPU.
            "step": torch.zeros((), device="cpu" if in_8_bits else parameter.device),
            "exp_avg": blank(parameter, is_signed=True),
            "exp_avg_sq": blank(parameter, is_signed=False),
        }


def _zeros(parameter: Tensor, *, is_signed: bool) -> Tensor:  # noqa: ARG001 (as the other)
    return torch.zeros_like(parameter)


def _zeros_in_8_bits(parameter: Tensor, *, is_signed: bool) -> Tensor:
    local = local_part(parameter)
    kind = import_extra("torchao.optim.subclass_8bit").OptimState8bit
    zeros = kind.zeros(local.shape, is_signed, BLOCK, local.device)
    return _placed_like(parameter, zeros)


def _placed_like(tensor: Tensor, local: Tensor) -> Tensor:
    """`local` as this rank's part of a DTensor that is split as `tensor` is; else itself."""
    if not isinstance(tensor, DTensor):
        return local
    shape = torch.Size((*tensor.shape[:-1], local.shape[-1]))
    return DTensor.from_local(
        local,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_lr(optimizer: "Optimizer | Offloaded", lr: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's, which its compiled step refers to
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@torch.no_grad()
def optimizer_state(
    optimizer: "Optimizer | Offloaded", named: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Tensor]]:
    """What the optimizer keeps, by parameter name: neither order nor grouping matters to a resume.

    step                        ()             steps taken
    exp_avg, exp_avg_sq         as the weight  moments; of 8 bits, uint8 codes
    exp_avg_scale, ..._scale    (rows, n)      scales of the blocks of 256 codes (8 bits only)

    These are the optimizer's own tensors, plain or, for a DTensor, DTensors of the same placements:
    what is written into them is what it goes on from.
    """
    state = optimizer.state
    return {n: _taken_apart(state[p]) for n, p in named.items() if p in state}


def _taken_apart(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchao's 8-bit tensors as their codes and scales; their table of values is a constant."""
    parts = {}
    for key, tensor in kept.items():
        local = local_part(tensor)
        if not hasattr(local, "codes"):
            parts[key] = tensor
            continue
        parts[key] = _placed_like(tensor, local.codes)
        blocks = tensor.shape[1] // BLOCK
        parts[f"{key}_scale"] = _placed_like(tensor, local.scale.view(-1, blocks))
    return parts
