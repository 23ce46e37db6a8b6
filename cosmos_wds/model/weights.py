"""Weights on disk: NVIDIA's names <-> ours as one table, safe reading, and the key audit.

Files carry the released names (`net.` and `logvar.` prefixes, spec.md d.12), whoever wrote them.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError

TABLE: tuple[tuple[str, str], ...] = (
    ("net.x_embedder.proj.1.weight", "net.patch.weight"),
    ("net.t_embedder.1.linear_1.weight", "net.noise.linear_1.weight"),
    ("net.t_embedder.1.linear_2.weight", "net.noise.linear_2.weight"),
    ("net.affline_norm.weight", "net.cond_norm.weight"),
    ("net.extra_pos_embedder.pos_emb_t", "net.position.frame"),
    ("net.extra_pos_embedder.pos_emb_h", "net.position.row"),
    ("net.extra_pos_embedder.pos_emb_w", "net.position.column"),
    ("net.action_embedder_B_D.", "net.action_cond."),
    ("net.action_embedder_B_3D.", "net.action_shared."),
    ("net.final_layer.adaLN_modulation.1.weight", "net.final.mod.down.weight"),
    ("net.final_layer.adaLN_modulation.2.weight", "net.final.mod.up.weight"),
    ("net.final_layer.linear.weight", "net.final.linear.weight"),
    ("logvar.0.freqs", "logvar.freqs"),
    ("logvar.0.phases", "logvar.phases"),
    ("logvar.1.weight", "logvar.linear.weight"),
)
"""Released name or prefix <-> ours, outside the blocks."""

_ATTENTION = (
    ("to_q.0.weight", "q.weight"),
    ("to_q.1.weight", "q_norm.weight"),
    ("to_k.0.weight", "k.weight"),
    ("to_k.1.weight", "k_norm.weight"),
    ("to_v.0.weight", "v.weight"),
    ("to_out.0.weight", "out.weight"),
)
BLOCK_TABLE: tuple[tuple[str, str], ...] = (
    *((f"blocks.0.block.attn.{theirs}", f"attention.{ours}") for theirs, ours in _ATTENTION),
    ("blocks.0.adaLN_modulation.1.weight", "attention_mod.down.weight"),
    ("blocks.0.adaLN_modulation.2.weight", "attention_mod.up.weight"),
    *((f"blocks.1.block.attn.{theirs}", f"text.{ours}") for theirs, ours in _ATTENTION),
    ("blocks.1.adaLN_modulation.1.weight", "text_mod.down.weight"),
    ("blocks.1.adaLN_modulation.2.weight", "text_mod.up.weight"),
    ("blocks.2.block.layer1.weight", "mlp.up.weight"),
    ("blocks.2.block.layer2.weight", "mlp.down.weight"),
    ("blocks.2.adaLN_modulation.1.weight", "mlp_mod.down.weight"),
    ("blocks.2.adaLN_modulation.2.weight", "mlp_mod.up.weight"),
)
"""The same inside block i: `net.blocks.block{i}.THEIRS` <-> `net.blocks.{i}.OURS`."""

BAGGAGE = re.compile(
    r"(^|\.)(_extra_state|pos_embedder\.seq|dim_spatial_range|dim_temporal_range)$"
)
"""Entries of released files that hold no weights: TransformerEngine state, position ranges."""


def _from_released_name(name: str) -> str | None:
    block = re.fullmatch(r"net\.blocks\.block(\d+)\.(.+)", name)
    if block:
        ours = dict(BLOCK_TABLE).get(block[2])
        return f"net.blocks.{block[1]}.{ours}" if ours else None
    for theirs, ours in TABLE:
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours + name[len(theirs) :]
    return None


def _to_released_name(name: str) -> str:
    block = re.fullmatch(r"net\.blocks\.(\d+)\.(.+)", name)
    if block:
        theirs = {ours: theirs for theirs, ours in BLOCK_TABLE}[block[2]]
        return f"net.blocks.block{block[1]}.{theirs}"
    for theirs, ours in TABLE:
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name[len(ours) :]
    raise AssertionError(f"no released name for {name}: add it to TABLE")


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> released names."""
    return {_to_released_name(name): tensor for name, tensor in state.items()}


def from_released(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Released names -> our names, and the names that belong to no network of this family.

    Takes files with or without the `net.` prefix and drops baggage that holds no weights.
    """
    has_prefix = any(name.startswith("net.") for name in state)
    known: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        if BAGGAGE.search(name):
            continue
        full = name if has_prefix or name.startswith("logvar.") else f"net.{name}"
        ours = _from_released_name(full)
        if ours is None:
            unknown.append(name)
        else:
            known[ours] = tensor
    return known, unknown


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a flat dictionary of tensors from .pt (memory-mapped, never unpickled) or .safetensors.

    Raises CheckpointError when the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds something other than tensors and was not opened, since unpickling it "
            "could run code; convert it to safetensors on a machine that you trust"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({reason}); fetch or save it again"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a dictionary of tensors but a {type(state).__name__}")
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    origin: str,
    may_lack: tuple[str, ...] = (),
) -> str:
    """Copy released weights into `module` and audit the keys.

    `may_lack` names prefixes (ours) that the file need not hold: they keep their values. Text
    tensors that a text-free module does not have stay on disk. Returns the audit in one sentence.
    Raises CheckpointError for anything missing, unexpected or mis-shaped.
    """
    given, unknown = from_released(state)
    wanted = module.state_dict()
    text = [n for n in given if n not in wanted and re.search(r"\.text(_mod)?\.", n)]
    unknown += [n for n in given if n not in wanted and n not in text]
    missing = [n for n in wanted if n not in given]
    lacking = [n for n in missing if n.startswith(may_lack)] if may_lack else []
    missing = [n for n in missing if n not in lacking]
    wrong = [n for n in wanted if n in given and given[n].shape != wanted[n].shape]
    if wrong:
        n = wrong[0]
        raise CheckpointError(
            f"{origin}: {len(wrong)} tensors have another shape, first "
            f"{_to_released_name(n)}: {tuple(given[n].shape)} in the file, "
            f"{tuple(wanted[n].shape)} in the model; it is a checkpoint of another model size"
        )
    if unknown or missing:
        first = ", ".join([*unknown, *map(_to_released_name, missing)][:3])
        raise CheckpointError(
            f"{origin}: {len(missing)} tensors missing and {len(unknown)} unexpected "
            f"(first: {first}); it is a checkpoint of another model"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in given:
                tensor.copy_(given[name])
    audit = f"{origin}: loaded {len(wanted) - len(lacking)} of {len(wanted)} tensors"
    if lacking:
        audit += f"; {len(lacking)} new ({_prefixes(lacking)})"
    if text:
        audit += f"; {len(text)} text tensors left on disk"
    return audit


def _prefixes(names: list[str]) -> str:
    return ", ".join(sorted({".".join(n.split(".")[:2]) for n in names}))
