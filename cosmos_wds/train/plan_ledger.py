"""What a computation holds in memory, and how many operations it takes.

Both are seen at torch's dispatcher, of real tensors as of FakeTensors.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Part = Literal["weights", "gradients", "inputs", "activations", "weight copies", "temporaries"]
"""What a storage is held for.

weights         parameters and buffers
inputs          latents, noise and actions of a micro-batch
activations     what the forward pass keeps for backward
weight copies   autocast's, in the precision of activations; kept like activations
temporaries     the rest: results on their way to the next operation
"""


class Ledger(TorchDispatchMode):
    """Within it, the bytes of every new storage are counted, from birth to death.

    What a kernel takes for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, Counter[str]] = {}
        """Of each phase, the bytes by part at the moment when most were held."""
        self._phase, self._born, self._born_at_peak = "", 0, 0
        self._held: Counter[str] = Counter()
        self._alive: dict[int, tuple[Part, int, int, weakref.ref[Any]]] = {}
        """Of each storage, its part, bytes, how many were born before it, and what ends it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and enter what it made."""
        result = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default and self._part_of(args[0]) == "weights"
        made = (tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor))
        self.enter(made, "weight copies" if is_copy else "temporaries")
        return result

    def enter(self, tensors: Iterable[Tensor], part: Part) -> None:
        """Count the storages of `tensors` that are not known yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._add(storage, part)
        if self._held.total() > self.peaks.get(self._phase, Counter()).total():
            self.peaks[self._phase], self._born_at_peak = Counter(self._held), self._born

    def move(self, tensors: Iterable[Tensor], part: Part) -> None:
        """Count known storages as another part from now on."""
        for tensor in tensors:
            self._move(tensor.untyped_storage()._cdata, part)

    def begin(self, phase: str) -> None:
        """Begin a phase; what was found in one of the same name is forgotten."""
        self._phase, self.peaks[phase] = phase, Counter(self._held)

    def end_forward(self) -> None:
        """Call activations what a forward pass has left alive, also in the phase's peak."""
        for key, (part, size, born, _) in list(self._alive.items()):
            if part == "temporaries":
                self._move(key, "activations")
                if born < self._born_at_peak:
                    self.peaks[self._phase] += Counter(activations=size)
                    self.peaks[self._phase]["temporaries"] -= size

    def _part_of(self, tensor: Tensor) -> Part | None:
        entry = self._alive.get(tensor.untyped_storage()._cdata)
        return entry[0] if entry else None

    def _add(self, storage: torch.UntypedStorage, part: Part) -> None:
        key, size = storage._cdata, storage.nbytes()

        def end(_: object) -> None:
            part, size, *_ = self._alive.pop(key)
            self._held[part] -= size

        self._alive[key] = part, size, self._born, weakref.ref(storage, end)
        self._born += 1
        self._held[part] += size

    def _move(self, key: int, part: Part) -> None:
        before, size, *rest = self._alive[key]
        self._alive[key] = part, size, *rest
        self._held[before] -= size
        self._held[part] += size


class Operations(TorchDispatchMode):
    """Within it, `count` sums up floating-point operations of matrix products and attention.

    `calls` is how many of torch's operations there were, views aside. A multiply-add counts two.
    torch's FlopCounterMode has the same formulas, but keeps what checkpointing computes again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        self.calls += func.namespace == "aten" and not func.is_view
        if func in _CPU_ATTENTION:
            formula, tensors = _CPU_ATTENTION[func]
            self.count += formula(*(tensor.shape for tensor in args[:tensors]))
        elif func.overloadpacket in flop_registry:
            formula = flop_registry[func.overloadpacket]
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result


_CPU_ATTENTION: dict[Any, tuple[Callable[..., int], int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: (sdpa_flop_count, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (
        sdpa_backward_flop_count,
        4,
    ),
}
"""Formulas that torch lacks, and of how many of their tensors they take the shapes."""
