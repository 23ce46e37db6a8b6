"""Running averages of the weights: of a width that grows with the run, or of a constant decay.

The power-function EMA is that of Karras et al. 2024, arXiv 2312.02696 (spec.md d.9).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.model.weights import local_part
from cosmos_wds.recipe_train import TrainSettings


def exponent(rate: float) -> float:
    """Exponent gamma of the profile whose width is `rate` of the run's length."""
    roots = np.roots([1, 7, 16 - rate**-2, 12 - rate**-2])
    return float(roots[np.isreal(roots)].real.max())


def beta(step: int, gamma: float) -> float:
    """Share of the old average that stays at a 0-based step; 0 at the first."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)


def build_ema(named: Mapping[str, Tensor], settings: TrainSettings) -> "Ema":
    """The average that [train] `ema` asks for; of nothing for "none"."""
    return Ema(
        {} if settings.ema == "none" else named,
        settings.ema_rate,
        decay=settings.ema_decay if settings.ema == "plain" else None,
        device=None if settings.ema_device == "same" else torch.device(settings.ema_device),
    )


class Ema:
    """A float32 running average of named parameters; buffers take no part.

    Of an FSDP shard (DTensor) the average is one too: each rank averages its part.
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        rate: float = 0.1,
        *,
        decay: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Begin with the parameters as they are.

        rate    width of the power-function profile, relative to the run's length
        decay   instead of it: the share of the old average that stays, the same in every step
        device  where the average lies, brought up to date in the background, while the next batch
                is computed; None: beside the parameters, at once
        """
        self._share = partial(beta, gamma=exponent(rate)) if decay is None else lambda _: decay
        self._average = {
            name: p.detach().to(device, torch.float32, copy=True) for name, p in named.items()
        }
        self._ferry = _Ferry(named.values()) if device and named else None

    @property
    def average(self) -> dict[str, Tensor]:
        """The averages by name, up to date."""
        self.wait()
        return self._average

    @torch.no_grad()
    def update(self, named: Mapping[str, Tensor], step: int) -> None:
        """Take in the parameters as they are after the 0-based `step`.

        They must not change before `wait`.
        """
        old = [local_part(average) for average in self.average.values()]
        new = [local_part(named[name].detach()) for name in self._average]
        weight = 1 - self._share(step)
        if self._ferry:
            self._ferry.start(old, new, weight)
        elif old:
            torch._foreach_lerp_(old, [tensor.float() for tensor in new], weight)

    def wait(self) -> None:
        """Until an update is done; before the parameters change again."""
        if self._ferry:
            self._ferry.wait()


class _Ferry:
    """Brings parameters to averages in the CPU's memory, one at a time, in a thread of its own.

    From a GPU they come through two pinned buffers, over a stream of their own: while one is
    averaged the next is under way.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        parts = [local_part(tensor) for tensor in tensors]
        self._device, most = parts[0].device, max(part.numel() for part in parts)
        on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None
        self._buffers = [torch.empty(most, pin_memory=on_gpu) for _ in range(2)]
        self._thread = ThreadPoolExecutor(1, "ema")
        self._running: Future[None] | None = None

    def start(self, old: Sequence[Tensor], new: Sequence[Tensor], weight: float) -> None:
        """Begin old += weight (new - old)."""
        if self._stream:  # after what has been asked of the GPU until now
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._running = self._thread.submit(self._take, old, new, weight)

    def wait(self) -> None:
        """Until it is done; raises what went wrong."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    @torch.no_grad()
    def _take(self, old: Sequence[Tensor], new: Sequence[Tensor], weight: float) -> None:
        def finish(average: Tensor, buffer: Tensor, arrived: torch.cuda.Event | None) -> None:
            if arrived is not None:
                arrived.synchronize()
            average.lerp_(buffer, weight)

        under_way = None
        with torch.cuda.stream(self._stream):  # of None: nothing
            for number, (average, tensor) in enumerate(zip(old, new, strict=True)):
                buffer = self._buffers[number % 2][: tensor.numel()].view(tensor.shape)
                buffer.copy_(tensor, non_blocking=True)
                arrived = self._stream.record_event() if self._stream else None
                if under_way:
                    finish(*under_way)
                under_way = (average, buffer, arrived)
            if under_way:
                finish(*under_way)
