"""Weights into a module: tensor by tensor, straight to their place, with an audit of every key."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.names import BAGGAGE, TEXT, from_released, released_name
from cosmos_wds.model.weight_files import let_go


@dataclass(frozen=True)
class Audit:
    """What became of every tensor of a file, and of every tensor of the module.

    new       the module's tensors that the file need not hold and does not: NaN until initialised
    text      the file's cross-attention to text, which a text-free module leaves on disk
    baggage   entries that hold no weights (`_extra_state`, position ranges)
    dtypes    number type -> how many of the loaded tensors have it in the file
    """

    origin: str
    loaded: int
    wanted: int
    new: tuple[str, ...]
    text: tuple[str, ...]
    baggage: int
    dtypes: dict[str, int]

    def __str__(self) -> str:
        parts = [f"loaded {self.loaded} of {self.wanted} tensors"]
        if self.new:
            parents = sorted({".".join(name.split(".")[:2]) for name in self.new})
            parts.append(f"{len(self.new)} new ({', '.join(parents)})")
        if self.text:
            parts.append(f"{len(self.text)} text tensors left on disk")
        if self.baggage:
            parts.append(f"passed over, as they hold no weights: {self.baggage}")
        if len(self.dtypes) > 1:
            mixture = ", ".join(f"{count} {kind}" for kind, count in self.dtypes.items())
            parts.append(f"the file mixes number types: {mixture}")
        return f"{self.origin}: {'; '.join(parts)}"


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    origin: str,
    may_lack: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
) -> Audit:
    """Copy released weights into `module`, one tensor after the other, and audit the keys.

    A tensor on the meta device gets memory on `device`, once; a tensor in memory is overwritten; of
    an FSDP shard (DTensor) only this rank's part is read. Values are converted to the module's
    number types. `may_lack` names prefixes (ours) that the file need not hold: such tensors keep
    their values, or are NaN when they had none, and are listed in the audit as new.

    Raises CheckpointError, before anything is changed, for what is missing, unexpected or
    mis-shaped.
    """
    given, unknown = from_released(state)
    wanted = module.state_dict()
    text = tuple(n for n in given if n not in wanted and TEXT.match(n))
    unknown += [n for n in given if n not in wanted and n not in text]
    missing = [n for n in wanted if n not in given]
    new = tuple(n for n in missing if n.startswith(may_lack)) if may_lack else ()
    _check(given, wanted, unknown, sorted(set(missing) - set(new)), origin)
    # A file that shares one storage between names would be paged in again; none of ours does.
    fresh: dict[str, Tensor] = {}
    for name, target in wanted.items():
        if name in given:
            fresh |= _fill(name, target, given[name], torch.device(device))
        elif target.is_meta:
            fresh[name] = torch.full_like(target, torch.nan, device=device)
    # Assigning replaces meta tensors; those in memory were filled in place.
    module.load_state_dict(fresh, strict=False, assign=True)
    kinds = Counter(str(given[n].dtype).removeprefix("torch.") for n in wanted if n in given)
    return Audit(
        origin=origin,
        loaded=len(wanted) - len(new),
        wanted=len(wanted),
        new=new,
        text=text,
        baggage=sum(1 for name in state if BAGGAGE.search(name)),
        dtypes=dict(kinds.most_common()),
    )


@torch.no_grad()
def _fill(name: str, target: Tensor, value: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Put `value` into `target`, or return what is to be assigned in its place."""
    if target.is_meta:
        assert not isinstance(target, DTensor), f"{name}: give FSDP shards memory (to_empty) first"
        fresh = {name: torch.empty_like(target, device=device).copy_(value)}
    else:
        put(target, value)
        fresh = {}
    let_go(value)
    return fresh


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into `target`; of an FSDP shard (DTensor), this rank's part.

    Nothing is sent: each rank cuts its part out of its own `value`.
    """
    if isinstance(target, DTensor):
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(value)


def local_part(tensor: Tensor) -> Tensor:
    """The tensor, or of an FSDP shard (DTensor) this rank's part; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _check(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    unknown: list[str],
    missing: list[str],
    origin: str,
) -> None:
    """Raise CheckpointError for keys or shapes that do not fit, with the likely reason."""
    wrong = [n for n in wanted if n in given and given[n].shape != wanted[n].shape]
    if wrong:
        told = "; ".join(
            f"{released_name(n)}: {tuple(given[n].shape)} in the file, "
            f"{tuple(wanted[n].shape)} in the model"
            for n in wrong[:3]
        )
        raise CheckpointError(
            f"{origin}: {len(wrong)} tensors have another shape ({told}); it is a checkpoint of "
            f"another model size{_size(given)}"
        )
    if unknown or missing:
        first = ", ".join([*unknown[:3], *map(released_name, missing[:3])])
        raise CheckpointError(
            f"{origin}: {len(missing)} tensors missing and {len(unknown)} unexpected "
            f"(first: {first}); {_reason(given, unknown, missing)}"
        )


def _size(given: Mapping[str, Tensor]) -> str:
    """What a file says of its model: ` (width 4096, 28 blocks)`."""
    patch = given.get("net.patch.weight")
    blocks = {m[1] for n in given if (m := re.match(r"net\.blocks\.(\d+)\.", n))}
    return f" (width {patch.shape[0]}, {len(blocks)} blocks)" if patch is not None else ""


def _reason(given: Mapping[str, Tensor], unknown: list[str], missing: list[str]) -> str:
    """The likely reason why keys do not fit."""
    if not given:
        return "it holds no tensor of this family of networks (Cosmos-Predict1)"
    if unknown and "transformer_blocks" in unknown[0]:
        return "it is in diffusers' form, and NVIDIA's is read here"
    parts = {name.split(".")[1] for name in (*unknown, *missing) if "." in name}
    if parts == {"position"} or any("extra_pos_embedder" in name for name in unknown):
        return (
            "the position tables differ: set [model] position_tables as the file's network has it"
        )
    if parts <= {"action_cond", "action_shared"}:
        return "the action embedders differ: one of the two is a model without actions"
    blocks = any(".blocks." in name for name in (*unknown, *missing))
    return f"it is a checkpoint of another model{_size(given) if blocks else ''}"
