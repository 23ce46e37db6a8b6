"""The names of weights: ours, NVIDIA's as released, and diffusers', in one table.

Released files carry `net.` and `logvar.` prefixes (spec.md d.12). diffusers calls the network
`CosmosTransformer3DModel`; there it has no action embedders and no uncertainty head.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Literal, NamedTuple

from torch import Tensor

Naming = Literal["ours", "released", "diffusers"]


class Row(NamedTuple):
    """One tensor under its three names; diffusers has no place for some."""

    ours: str
    released: str
    diffusers: str | None


def _mlp(ours: str, released: str) -> tuple[Row, ...]:
    parts = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    return tuple(Row(f"{ours}.{part}", f"{released}.{part}", None) for part in parts)


TABLE: tuple[Row, ...] = (
    Row("net.patch.weight", "net.x_embedder.proj.1.weight", "patch_embed.proj.weight"),
    Row(
        "net.noise.linear_1.weight",
        "net.t_embedder.1.linear_1.weight",
        "time_embed.t_embedder.linear_1.weight",
    ),
    Row(
        "net.noise.linear_2.weight",
        "net.t_embedder.1.linear_2.weight",
        "time_embed.t_embedder.linear_2.weight",
    ),
    Row("net.cond_norm.weight", "net.affline_norm.weight", "time_embed.norm.weight"),
    Row(
        "net.position.frame",
        "net.extra_pos_embedder.pos_emb_t",
        "learnable_pos_embed.pos_emb_t",
    ),
    Row(
        "net.position.row",
        "net.extra_pos_embedder.pos_emb_h",
        "learnable_pos_embed.pos_emb_h",
    ),
    Row(
        "net.position.column",
        "net.extra_pos_embedder.pos_emb_w",
        "learnable_pos_embed.pos_emb_w",
    ),
    *_mlp("net.action_cond", "net.action_embedder_B_D"),
    *_mlp("net.action_shared", "net.action_embedder_B_3D"),
    Row(
        "net.final.mod.down.weight",
        "net.final_layer.adaLN_modulation.1.weight",
        "norm_out.linear_1.weight",
    ),
    Row(
        "net.final.mod.up.weight",
        "net.final_layer.adaLN_modulation.2.weight",
        "norm_out.linear_2.weight",
    ),
    Row("net.final.linear.weight", "net.final_layer.linear.weight", "proj_out.weight"),
    Row("logvar.freqs", "logvar.0.freqs", None),
    Row("logvar.phases", "logvar.0.phases", None),
    Row("logvar.linear.weight", "logvar.1.weight", None),
)
"""Outside the blocks."""


def _attention(ours: str, released: str, diffusers: str) -> tuple[Row, ...]:
    parts = (
        ("q.weight", "to_q.0.weight", "to_q.weight"),
        ("q_norm.weight", "to_q.1.weight", "norm_q.weight"),
        ("k.weight", "to_k.0.weight", "to_k.weight"),
        ("k_norm.weight", "to_k.1.weight", "norm_k.weight"),
        ("v.weight", "to_v.0.weight", "to_v.weight"),
        ("out.weight", "to_out.0.weight", "to_out.0.weight"),
    )
    return tuple(
        Row(f"{ours}.{a}", f"blocks.{released}.block.attn.{b}", f"{diffusers}.{c}")
        for a, b, c in parts
    )


def _modulation(ours: str, released: str, diffusers: str) -> tuple[Row, ...]:
    return (
        Row(
            f"{ours}.down.weight",
            f"blocks.{released}.adaLN_modulation.1.weight",
            f"{diffusers}.linear_1.weight",
        ),
        Row(
            f"{ours}.up.weight",
            f"blocks.{released}.adaLN_modulation.2.weight",
            f"{diffusers}.linear_2.weight",
        ),
    )


BLOCK_TABLE: tuple[Row, ...] = (
    *_attention("attention", "0", "attn1"),
    *_modulation("attention_mod", "0", "norm1"),
    *_attention("text", "1", "attn2"),
    *_modulation("text_mod", "1", "norm2"),
    Row("mlp.up.weight", "blocks.2.block.layer1.weight", "ff.net.0.proj.weight"),
    Row("mlp.down.weight", "blocks.2.block.layer2.weight", "ff.net.2.weight"),
    *_modulation("mlp_mod", "2", "norm3"),
)
"""Inside a block, without its prefix."""

PREFIX: dict[Naming, str] = {
    "ours": "net.blocks.",
    "released": "net.blocks.block",
    "diffusers": "transformer_blocks.",
}
"""What stands before the number of a block."""

POSITIONS = "net.pos_embedder.seq"
"""0, 1, 2, ...: a range that released files hold and the network computes (manifest_7b.json)."""

BAGGAGE = re.compile(
    r"(^|\.)(_extra_state|pos_embedder\.seq|dim_spatial_range|dim_temporal_range)$"
)
"""Entries of released files that hold no weights: TransformerEngine state, position ranges."""

TEXT = re.compile(r"^net\.blocks\.\d+\.text(_mod)?\.")
"""Our names of the cross-attention to text, which zero text turns into exactly zero (spec.md c)."""


@cache
def _lookup(table: tuple[Row, ...], source: Naming, target: Naming) -> dict[str, str]:
    pairs = ((getattr(row, source), getattr(row, target)) for row in table)
    return {theirs: ours for theirs, ours in pairs if theirs and ours}


def rename(name: str, *, source: Naming, target: Naming) -> str | None:
    """A tensor's name in another naming; None where it has none there, or is unknown."""
    inside = re.fullmatch(re.escape(PREFIX[source]) + r"(\d+)\.(.+)", name)
    if inside is None:
        return _lookup(TABLE, source, target).get(name)
    found = _lookup(BLOCK_TABLE, source, target).get(inside[2])
    return f"{PREFIX[target]}{inside[1]}.{found}" if found else None


def released_name(name: str) -> str:
    """Our name -> the released one."""
    found = rename(name, source="ours", target="released")
    assert found, f"no released name for {name}: add it to TABLE"
    return found


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> released names."""
    return {released_name(name): tensor for name, tensor in state.items()}


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
        ours = rename(full, source="released", target="ours")
        if ours is None:
            unknown.append(name)
        else:
            known[ours] = tensor
    return known, unknown
