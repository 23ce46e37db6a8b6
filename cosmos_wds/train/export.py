"""A run's weights as a folder that stands alone: half precision, with what a user needs beside it.

FOLDER/model.safetensors  tokenizer.safetensors  recipe.toml  contract.json
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save

from cosmos_wds.config import write_bytes
from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.weights import read_state
from cosmos_wds.train.folder import CONTRACT, RECIPE, TOKENIZER
from cosmos_wds.train.run import MODEL, Kind, find_weights


def export(run: Path | str, folder: Path, *, weights: Kind = "ema") -> Path:
    """Write a run's weights, float16, under the released names; returns the file of weights.

    weights   the running average, or the weights as trained
    Raises CheckpointError when the run has no checkpoint, or its weights do not fit float16.
    """
    place = find_weights(run, weights)
    if place.folder is None:
        raise CheckpointError(f"{place.file}: no {RECIPE} beside it; name a run's folder")
    state = {n: t.to(torch.float16).contiguous() for n, t in read_state(place.file).items()}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{place.file}: {name} does not fit float16")
    write_bytes(folder / MODEL, save(state, metadata={"step": str(place.step)}))
    for name in (RECIPE, CONTRACT, TOKENIZER):
        if (place.folder / name).is_file():
            shutil.copyfile(place.folder / name, folder / name)
    return folder / MODEL
