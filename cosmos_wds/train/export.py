"""A run's weights as a folder that stands alone, in NVIDIA's form or in diffusers'.

    pt           model.pt                              as NVIDIA's release and its inference name it
    safetensors  model.safetensors                     the same names
    diffusers    config.json, diffusion_pytorch_model.safetensors, action_embedder.safetensors

Beside them: recipe.toml, contract.json, tokenizer.safetensors, README.md (the model card). Large
sets of safetensors are split, with an index. The folder appears whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from rich.markup import escape
from safetensors.torch import save_file
from torch import Tensor

from cosmos_wds.console import say
from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model import complete as whole
from cosmos_wds.model.names import TEXT, from_released
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.card import model_card
from cosmos_wds.train.folder import CONTRACT, RECIPE, TOKENIZER, read_recipe
from cosmos_wds.train.run import Kind, Place, find_weights

Form = Literal["pt", "safetensors", "diffusers"]
CARD, ACTIONS = "README.md", "action_embedder.safetensors"
LARGEST = "10GB"
"""Of one file of safetensors; more is split."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the user asks of `export`."""

    run: str
    """A run's folder, or a file of its weights."""
    form: Form = "safetensors"
    output: Path | None = None
    """The folder to write; None: exports/NAME-FORM."""
    weights: Kind = "ema"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    base: str | None = None
    """Where the base lies from which the run started; None: where its recipe says."""
    overwrite: bool = False


def export(request: ExportRequest) -> Path:
    """Write a run's weights in the form that a request asks for; returns the folder.

    Raises CheckpointError when the run has no checkpoint, its numbers do not fit the type, or the
    base that holds its text path is not there; ConfigError when the folder cannot be written.
    """
    place = find_weights(request.run, request.weights)
    if place.folder is None:
        raise CheckpointError(f"{place.file}: no {RECIPE} beside it; name a run's folder")
    recipe = read_recipe(place.folder)
    folder = request.output or Path("exports") / f"{recipe.name}-{request.form}"
    if folder.exists() and not request.overwrite:
        raise ConfigError(f"{folder}: exists; name another folder, or give --overwrite")
    state = complete_state(recipe, place, base=request.base, form=request.form)
    dtype: torch.dtype = getattr(torch, request.dtype)
    with _appearing(folder) as temporary:
        _WRITERS[request.form](temporary, state, recipe, dtype, place)
        for name in (RECIPE, CONTRACT, TOKENIZER):
            if (place.folder / name).is_file():
                shutil.copyfile(place.folder / name, temporary / name)
        card = model_card(recipe, place, form=request.form, dtype=request.dtype)
        (temporary / CARD).write_text(card, encoding="utf-8")
    say(f"{escape(str(folder))}: {len(state)} tensors of {escape(str(place.file))}")
    return folder


def complete_state(
    recipe: Recipe, place: Place, *, base: str | None, form: Form
) -> dict[str, Tensor]:
    """All tensors of a run under our names, its text path written back from the base.

    A network without text stays as it is, except for diffusers, whose class needs a text path.
    """
    state, unknown = from_released(place.read())
    assert not unknown, unknown
    settings = recipe.model
    if form == "diffusers":
        settings = whole.text_or_plain(settings)
    if not settings.text_width or any(TEXT.match(name) for name in state):
        return state
    text = find_text(recipe, base) if recipe.model.text_width else {}
    try:
        return whole.with_text(state, text, settings)
    except KeyError as error:
        raise CheckpointError(f"{base or recipe.model.base}: holds no {error.args[0]}") from None


def find_text(recipe: Recipe, base: str | None = None) -> dict[str, Tensor]:
    """The text path (our names) of the base that a run started from, or of that one's base.

    Nothing when there was no base at all. Raises CheckpointError when a base is not there.
    """
    name = base or recipe.model.base
    if not name:
        return {}
    try:
        place = find_weights(name)
        state, _ = from_released(place.read())
    except CheckpointError as error:
        raise CheckpointError(
            f"the text path of this network lies in its base, {name}, which cannot be read; name "
            f"it with --base: {error}"
        ) from None
    text = {n: tensor for n, tensor in state.items() if TEXT.match(n)}
    if text or place.folder is None:
        return text
    return find_text(read_recipe(place.folder))


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name `folder` when all is well, and is synced."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors makes files that only their owner may read
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written: {error.strerror or error}; make room, or name another "
            "folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_pt(
    folder: Path, state: dict[str, Tensor], recipe: Recipe, dtype: torch.dtype, place: Place
) -> None:
    named = whole.released(state, recipe.model)
    content = {name: _cast(tensor, dtype, place) for name, tensor in named.items()}
    try:
        torch.save(content, folder / "model.pt")
    except RuntimeError as error:  # torch turns a full disk into one about its archive
        raise OSError(f"{str(error).splitlines()[0]} (is the disk full?)") from None


def _write_safetensors(
    folder: Path, state: dict[str, Tensor], recipe: Recipe, dtype: torch.dtype, place: Place
) -> None:
    named = whole.released(state, recipe.model)
    _save(folder, "model{suffix}.safetensors", named, dtype, place)


def _write_diffusers(
    folder: Path, state: dict[str, Tensor], recipe: Recipe, dtype: torch.dtype, place: Place
) -> None:
    named, actions = whole.diffusers(state)
    _save(folder, "diffusion_pytorch_model{suffix}.safetensors", named, dtype, place)
    if actions:
        content = {name: _cast(tensor, dtype, place) for name, tensor in actions.items()}
        save_file(content, folder / ACTIONS, metadata={"format": "pt"})
    config = whole.diffusers_config(whole.text_or_plain(recipe.model))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_WRITERS = {"pt": _write_pt, "safetensors": _write_safetensors, "diffusers": _write_diffusers}


def _save(
    folder: Path, pattern: str, named: Mapping[str, Tensor], dtype: torch.dtype, place: Place
) -> None:
    """Write safetensors, one file after the other, so that only one is in memory at a time."""
    sizes = {n: torch.empty(t.shape, dtype=dtype, device="meta") for n, t in named.items()}
    plan = split_torch_state_dict_into_shards(
        sizes, filename_pattern=pattern, max_shard_size=LARGEST
    )
    metadata = {"format": "pt", "step": str(place.step)}
    for file, names in plan.filename_to_tensors.items():
        content = {name: _cast(named[name], dtype, place) for name in names}
        save_file(content, folder / file, metadata=metadata)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        path = folder / f"{pattern.format(suffix='')}.index.json"
        path.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _cast(tensor: Tensor, dtype: torch.dtype, place: Place) -> Tensor:
    cast = tensor.to(dtype).contiguous()
    if not cast.isfinite().all():
        raise CheckpointError(f"{place.file}: a number does not fit {dtype}; try --dtype float32")
    return cast
