"""NVIDIA's tokenizer as it is released: FOLDER/encoder.jit, decoder.jit, mean_std.pt."""

import warnings
from pathlib import Path
from typing import Any

import torch

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.tokenizer_cosmos import CosmosTokenizer, checked_statistics, digest_of
from cosmos_wds.model.weight_files import load_pt

FILES = ("encoder.jit", "decoder.jit", "mean_std.pt")


def load_torchscript(folder: Path) -> CosmosTokenizer:
    """Load NVIDIA's release. Raises CheckpointError naming the missing or damaged file.

    TorchScript is a program: unlike other weights, its files are run, in TorchScript's own
    interpreter. Take them from NVIDIA.
    """
    paths = [folder / name for name in FILES]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; fetch the tokenizer with "
                "`cosmos-wds download cosmos-tokenize1-cv8x8x8-720p`"
            )
    encoder, decoder = _load_jit(paths[0]), _load_jit(paths[1])
    return CosmosTokenizer(
        (encoder, decoder),
        encode=lambda x: _first(encoder(x)),
        decode=decoder,
        statistics=checked_statistics(load_pt(paths[2]), paths[2]),
        digest=digest_of(*paths),
        origin=folder,
    )


def _first(found: Any) -> Any:
    """The latent, element 0 of the encoder's tuple (spec.md e)."""
    return found[0] if isinstance(found, list | tuple) and found else found


def _load_jit(path: Path) -> torch.jit.ScriptModule:
    """A network in evaluation mode, cast to bfloat16 as the reference does."""
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but it is what NVIDIA released
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu").eval().to(torch.bfloat16)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["damaged"])[0][:160]
        raise CheckpointError(f"{path}: not a TorchScript file: {reason}; fetch it again") from None
