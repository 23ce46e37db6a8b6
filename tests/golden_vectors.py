"""Reading the golden vectors: tensors that the reference produced on small random networks."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from cosmos_wds.model.dit import CosmosDiT
from cosmos_wds.model.names import from_released
from cosmos_wds.sizes import ModelSettings

FOLDER = Path(__file__).parent / "golden"


def read_golden(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of tests/golden/NAME.safetensors."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def golden_settings(metadata: dict[str, str]) -> ModelSettings:
    """Our settings for a network of the reference."""
    c = json.loads(metadata["config"])
    return ModelSettings(
        actions="reference",
        position_tables=bool(c.get("extra_per_block_abs_pos_emb", False)),
        width=c["model_channels"],
        heads=c["num_heads"],
        blocks=c["num_blocks"],
        adaln_rank=c["adaln_lora_dim"],
        text_width=c["crossattn_emb_channels"],
        max_frames=c["max_frames"],
        max_height=c["max_img_h"] // 2,
        max_width=c["max_img_w"] // 2,
        rope_ratio_t=c["rope_t_extrapolation_ratio"],
        rope_ratio_h=c.get("rope_h_extrapolation_ratio", 1),
        rope_ratio_w=c.get("rope_w_extrapolation_ratio", 1),
    )


def golden_network(
    tensors: dict[str, Tensor], metadata: dict[str, str], *, with_text: bool
) -> CosmosDiT:
    """A network of ours with the reference's weights."""
    net = CosmosDiT(golden_settings(metadata), action_dims=7, with_text=with_text)
    ours, unknown = from_released(part(tensors, "w."))
    assert not unknown, unknown
    state = {k.removeprefix("net."): v for k, v in ours.items() if k.startswith("net.")}
    lacking = set(net.state_dict()) - set(state)
    assert not lacking, lacking
    extra = set(state) - set(net.state_dict())
    assert with_text or all(".text" in name for name in extra), extra
    net.load_state_dict({k: v for k, v in state.items() if k not in extra})
    return net
