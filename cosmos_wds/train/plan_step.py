"""One micro-batch of training on tensors without data: what it holds at most, what it computes.

The network and its loss are those of a run, on torch's FakeTensors: every operation goes through
autocast, autograd and checkpointing with its shapes and types, and allocates nothing. So the peak
is found where it is, at the end of the forward pass or somewhere in backward.

Blocks are alike, so two networks of few blocks say what one of many needs: the most that is held
in each phase is linear in their number. What is held between the last block's backward and the
first one's lies between those two.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.diffusion.noise import Draws
from cosmos_wds.recipe import DiffusionSettings
from cosmos_wds.recipe_train import LoraSettings
from cosmos_wds.sizes import ModelSettings
from cosmos_wds.train.distribute import Kind, apply_checkpointing
from cosmos_wds.train.lora import add_lora
from cosmos_wds.train.plan_ledger import Ledger, Operations

FEW = 3
"""Blocks of the larger of the two networks."""


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """What decides the memory and operations of a micro-batch on one rank."""

    model: ModelSettings
    diffusion: DiffusionSettings
    lora: LoraSettings
    action_dims: int
    windows: int
    latent: tuple[int, int, int]
    """Frames, height, width of a window's latent."""
    precision: torch.dtype
    on_gpu: bool
    """Whether it runs the operations of a GPU, or those of a CPU."""
    checkpointing: Kind
    gradients: Literal["made", "held", "sharded"]
    """made: they appear in this micro-batch. held: they have their place all the time, in DDP's
    buckets or since a micro-batch before. sharded: FSDP brings the blocks' weights in `precision`
    and takes their gradients away."""


@dataclass(frozen=True)
class Step:
    """Bytes and operations of a micro-batch."""

    peaks: dict[str, Counter[str]]
    """Of each phase, bytes by part (plan_ledger.Part) when most are held."""
    forward: int
    """Floating-point operations of matrix products and attention; a multiply-add counts two."""
    backward: int
    """With what checkpointing computes again."""
    calls: int
    """Of torch's operations, each of which the CPU has to start."""

    @property
    def peak(self) -> Counter[str]:
        """Bytes by part at the moment when most are held."""
        return max(self.peaks.values(), key=Counter.total)


@cache
def measure_step(request: StepRequest) -> Step:
    """Memory and operations of a micro-batch, found without doing it."""
    blocks = request.model.blocks
    if blocks <= FEW:
        return run_step(request)
    fewer, few = (
        run_step(replace(request, model=request.model.model_copy(update={"blocks": n})))
        for n in (FEW - 1, FEW)
    )
    return _between(fewer, few, blocks - FEW + 1)


def estimate_step(request: StepRequest, most: int) -> Step:
    """The same, from micro-batches of one window and of `most`: quick for many different sizes.

    Memory may come out a little too high between the two.
    """
    if request.windows in (1, most):
        return measure_step(request)
    one, all_windows = (measure_step(replace(request, windows=n)) for n in (1, most))
    return _between(one, all_windows, (request.windows - 1) / (most - 1))


def _between(one: Step, two: Step, place: float) -> Step:
    """The step that lies `place` of the way from `one` to `two`, or beyond it."""

    def at(start: int, end: int) -> int:
        return round(start + place * (end - start))

    peaks = {}
    for phase in one.peaks.keys() - {"middle"}:
        a, b = one.peaks[phase], two.peaks[phase]
        peaks[phase] = Counter({part: at(a[part], b[part]) for part in a | b})
    return Step(
        peaks,
        forward=at(one.forward, two.forward),
        backward=at(one.backward, two.backward),
        calls=at(one.calls, two.calls),
    )


def run_step(request: StepRequest) -> Step:
    """Run a micro-batch without data, through every block."""
    ledger, denoiser = Ledger(), build(request)
    with FakeTensorMode():
        _prepare(denoiser, request)
        ledger.enter((*denoiser.parameters(), *denoiser.buffers()), "weights")
        _watch(denoiser, ledger, request)
        with ledger:
            ledger.begin("forward")
            with Operations() as forward:
                loss = _forward(denoiser, request, ledger)
            ledger.end_forward()
            ledger.begin("last block")
            with Operations() as backward:
                loss.backward()
    return Step(ledger.peaks, forward.count, backward.count, forward.calls + backward.calls)


def build(request: StepRequest) -> Denoiser:
    """The network on the meta device, with its adapters."""
    with torch.device("meta"):
        denoiser = Denoiser(request.model, request.diffusion, action_dims=request.action_dims)
    if request.lora.rank:
        add_lora(denoiser, request.lora, seed=0, frozen=request.precision)
    return denoiser


def _prepare(denoiser: Denoiser, request: StepRequest) -> None:
    """Move it to the CPU, where autocast works, and put around the blocks what a run does."""
    blocks = {id(parameter) for parameter in denoiser.net.blocks.parameters()}
    is_sharded = request.gradients == "sharded"
    for module in list(denoiser.modules()):
        for name, one in list(module.named_parameters(recurse=False)):
            dtype = request.precision if is_sharded and id(one) in blocks else one.dtype
            fake = nn.Parameter(torch.empty(one.shape, dtype=dtype), one.requires_grad)
            setattr(module, name, fake)
        for name, one in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(one.shape, dtype=one.dtype))
    if request.on_gpu:
        for module in (*denoiser.net.blocks, denoiser):  # backward runs blocks alone
            module.forward = _on_gpu(module.forward)
    apply_checkpointing(denoiser, request.checkpointing)


def _watch(denoiser: Denoiser, ledger: Ledger, request: StepRequest) -> None:
    """Enter each gradient when it is whole, and the phases of backward."""
    blocks = {id(parameter) for parameter in denoiser.net.blocks.parameters()}

    def whole(parameter: Tensor) -> None:
        assert parameter.grad is not None
        is_taken = request.gradients == "sharded" and id(parameter) in blocks
        if is_taken or request.gradients == "held":
            parameter.grad = None
        else:
            ledger.move([parameter.grad], "gradients")

    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(whole)

    def ends(block: nn.Module, phase: str) -> None:
        """Begin `phase` when backward comes to the block's input."""

        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments[0].requires_grad:
                arguments[0].register_hook(lambda _: ledger.begin(phase))

        block.register_forward_pre_hook(hook)

    ends(denoiser.net.blocks[-1], "middle")
    if len(denoiser.net.blocks) > 1:
        ends(denoiser.net.blocks[1], "first block")
    ends(denoiser.net.blocks[0], "rest")


def _forward(denoiser: Denoiser, request: StepRequest, ledger: Ledger) -> Tensor:
    """The loss; what goes in is entered as inputs."""
    count, (frames, height, width) = request.windows, request.latent
    shape = (count, request.model.latent_channels, frames, height, width)
    yes = torch.empty(count, dtype=torch.bool)
    draws = Draws(
        sigma=torch.empty(count),
        epsilon=torch.empty(shape),
        augment_sigma=torch.empty(count),
        augment_noise=torch.empty(*shape[:2], height, width),
        is_given=yes,
        is_visible=yes,
        has_action=yes,
    )
    latent, fps = torch.empty(shape), torch.empty(count)
    action = torch.empty(count, frames - 1, request.action_dims)
    ledger.move([latent, fps, action, *vars(draws).values()], "inputs")
    is_cast = request.precision != torch.float32
    with torch.autocast("cpu", request.precision, enabled=is_cast, cache_enabled=False):
        losses = denoiser(latent, action=action, fps=fps, draws=draws)
    return losses.mean()


class GpuOperations(TorchFunctionMode):
    """Within it, FakeTensors of the CPU go through what a GPU does otherwise than a CPU.

    torch's autocast cannot be had for a GPU where torch is built without one. The lists of what it
    casts are the same for this network but for layer_norm; attention and rms_norm are other kernels
    there, which keep other things for backward.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function, or what stands for it on a GPU."""
        run = _ON_GPU.get(func, func)
        return run(*args, **(kwargs or {}))


def _on_gpu(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        with GpuOperations():
            return forward(*args, **kwargs)

    return call


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (t.to(torch.get_autocast_dtype("cpu")) for t in (q, k, v))
    if q.dtype == torch.float32:
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _layer_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.layer_norm(x.float(), *args, **kwargs)


class _RMSNorm(torch.autograd.Function):
    """The fused kernel: keeps its input and one number a row, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors[:2]
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(x: Tensor, *_: Any, weight: Tensor, **__: Any) -> Tensor:
    return _RMSNorm.apply(x, weight)


_ON_GPU: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.scaled_dot_product_attention: _attention,
}
