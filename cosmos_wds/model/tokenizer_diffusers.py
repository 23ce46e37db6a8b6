"""NVIDIA's tokenizer as diffusers' AutoencoderKLCosmos.

    FOLDER/config.json  diffusion_pytorch_model.safetensors

It is the folder `vae` of nvidia/Cosmos-1.0-Diffusion-7B-Video2World. What diffusers 0.42 does with
it, read in its source:

- `latents_mean` and `latents_std` of the config are 256 numbers, 16 channels by 16 latent times,
  channel-major: pipeline_cosmos_video2world.py views them as (1, 16, -1, 1, 1) and takes the times
  that a clip has. Every 16th number is thus time 0; the defaults there are those of spec.md e.
- That file scales (latent - mean) * sigma_data / std, with sigma_data 0.5 in Predict1, and decodes
  the inverse, as CosmosTokenizer does. (In Predict2, sigma_data is 1: another tokenizer.)
- `encode` is deterministic: its distribution is a point, and mode and sample are the same.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model.tokenizer_cosmos import CosmosTokenizer, checked_statistics, digest_of
from cosmos_wds.model.weight_files import read_state

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
KIND = "AutoencoderKLCosmos"


def load_autoencoder(folder: Path) -> CosmosTokenizer:
    """Load a folder of diffusers'. Nothing is fetched, and pickled weights are not read.

    Raises ConfigError without diffusers, CheckpointError naming the missing or damaged file.
    """
    kind = _imported()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: no such file; [tokenizer] path names the folder that holds "
                f"{CONFIG} and {WEIGHTS}"
            )
    config = _read_config(folder / CONFIG)
    coder = _filled(kind, config, folder)
    resolved = {k: coder.config[k] for k in ("latents_mean", "latents_std")}
    statistics = [_floats(numbers) for numbers in resolved.values()]
    return CosmosTokenizer(
        (coder,),
        encode=lambda x: coder.encode(_matched(coder, x)).latent_dist.mode(),
        decode=lambda z: coder.decode(_matched(coder, z)).sample,
        statistics=checked_statistics(statistics, folder / CONFIG),
        digest=digest_of(folder / WEIGHTS, json.dumps(config | resolved, sort_keys=True).encode()),
        origin=folder,
    )


def _imported() -> Any:
    """The class, from the optional package. Raises ConfigError when it is not installed."""
    try:
        from diffusers import AutoencoderKLCosmos
    except (ImportError, RuntimeError):  # its lazy modules raise the second
        raise ConfigError(
            "[tokenizer] kind = \"diffusers\" needs: pip install 'cosmos-wds[diffusers]'"
        ) from None
    return AutoencoderKLCosmos


def _read_config(path: Path) -> dict[str, Any]:
    """The architecture, without what says who wrote it when. Raises CheckpointError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no readable JSON: {error}; fetch it again") from None
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != KIND:
        raise CheckpointError(f"{path}: describes a {found}, not an {KIND}")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _filled(kind: Any, config: dict[str, Any], folder: Path) -> Any:
    """The network with all of its weights, in bfloat16. Raises CheckpointError when any differ.

    diffusers' own loading would start lacking weights at random.
    """
    state = read_state(folder / WEIGHTS)
    try:
        coder = kind.from_config(config)
        coder.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:240] or type(error).__name__
        raise CheckpointError(
            f"{folder}: {CONFIG} and {WEIGHTS} do not make an {KIND}: {reason}"
        ) from None
    return _cast(coder.eval().requires_grad_(False), torch.bfloat16)


def _matched(coder: nn.Module, x: Tensor) -> Tensor:
    """Network and input, cast to what the network computes in on the input's device.

    On a CPU that is float32 (of the bfloat16 weights): its average pooling there has no bfloat16.
    """
    dtype = torch.float32 if x.device.type == "cpu" else torch.bfloat16
    _cast(coder, dtype)
    return x.to(dtype)


def _cast(coder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """torch's own `to`: diffusers' logs at every call that some modules might stay in float32."""
    return nn.Module.to(coder, dtype)


def _floats(numbers: Any) -> Tensor | None:
    try:
        return torch.tensor(numbers, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        return None
