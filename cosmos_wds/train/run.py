"""Trained weights: find them, load them whole, and what belongs to them.

Weights are named by a run's folder (its latest checkpoint), a file in it, a folder of weights with
their recipe.toml, a bare file of NVIDIA's, or the name of weights that ship with the package.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cosmos_wds.data.actions import NAMES, ActionContract
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError, DataError
from cosmos_wds.model.dit import initialise_actions
from cosmos_wds.model.names import BAGGAGE, TEXT, from_released
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.model.tokenizers import SHIPPED, load_tokenizer
from cosmos_wds.model.weight_files import INDEX, read_state
from cosmos_wds.model.weights import Audit, load_state
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.checkpoint import NAME, checkpoint_folder, latest_step, weights_file
from cosmos_wds.train.folder import CHECKPOINTS, CONTRACT, RECIPE, read_recipe
from cosmos_wds.train.lora import merged_state
from cosmos_wds.train.parallel import choose_precision
from cosmos_wds.train.state import Complete, read_weights

MODEL = "model.safetensors"
ACTION_PARTS = ("net.action_cond.", "net.action_shared.")
"""What a base without actions lacks: the action embedders, then as the preset starts them."""

Kind = Literal["ema", "reg"]


@dataclass(frozen=True)
class Place:
    """Where weights lie."""

    file: Path
    """A file of weights, or the folder of a run's checkpoint."""
    folder: Path | None
    """The folder with their recipe.toml; None for a bare file."""
    step: int | None = None
    """Steps trained, when the file is a run's checkpoint."""
    kind: Kind = "ema"
    """Which of a checkpoint's weights are meant."""

    def read(self) -> dict[str, Tensor]:
        """The weights, under the names that releases have; they refer to the file.

        Raises CheckpointError when it is missing or damaged.
        """
        if self.file.is_dir():
            assert self.folder, "a checkpoint lies in a run's folder"
            return read_weights(self.file, self.kind, completion(read_recipe(self.folder)))
        return read_state(self.file)

    @property
    def contract(self) -> ActionContract | None:
        """The action contract beside the weights, if any. Raises CheckpointError if damaged."""
        return read_contract(self.folder) if self.folder else None


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, ready for rollouts."""

    denoiser: Denoiser
    """In evaluation mode, on the device, without gradients; float32, or bfloat16 where the file is
    in bfloat16 and so are its computations."""
    tokenizer: Tokenizer
    recipe: Recipe
    contract: ActionContract | None
    """What the actions' numbers mean; None for a model without actions."""
    place: Place
    audit: Audit
    """Which tensors were loaded."""


def load_run(
    where: str | Path, *, weights: Kind = "ema", device: torch.device | str = "cpu"
) -> LoadedRun:
    """Load trained weights with the recipe, tokenizer and action contract that lie beside them.

    weights   the running average, or the weights as trained, where both are there
    Raises CheckpointError when something is missing, damaged or of another model size.
    """
    place = find_weights(where, weights)
    if place.folder is None:
        raise CheckpointError(
            f"{place.file}: no {RECIPE} beside it, so the model's size is unknown; name a run's "
            "folder, or put the recipe.toml that training wrote next to the file"
        )
    recipe, contract = read_recipe(place.folder), place.contract
    if contract is None and recipe.model.actions != "none":
        raise CheckpointError(
            f"{place.folder / CONTRACT}: missing, so it is unknown what the actions' numbers mean"
        )
    state = place.read()
    denoiser = build_denoiser(recipe, contract)
    computed = choose_precision(recipe.train.precision, torch.device(device))
    if computed == only_dtype(state) == torch.bfloat16:
        denoiser.to(torch.bfloat16)
    audit = load_state(denoiser, state, origin=str(place.file), device=device)
    tokenizer = load_tokenizer(recipe.tokenizer, place.folder)
    return LoadedRun(
        denoiser=denoiser.eval().requires_grad_(False),
        tokenizer=tokenizer.to(device),
        recipe=recipe,
        contract=None if recipe.model.actions == "none" else contract,
        place=place,
        audit=audit,
    )


def find_weights(where: str | Path, weights: Kind = "ema") -> Place:
    """Resolve a name of weights to their file. Raises CheckpointError when nothing is there."""
    path = Path(where)
    shipped = SHIPPED / str(where)
    if not path.exists() and len(path.parts) == 1 and (shipped / MODEL).is_file():
        path = shipped
    if path.is_file():
        return _place_of_file(path)
    if path.is_dir():
        return _place_of_folder(path, weights)
    names = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{MODEL}"))) or "none"
    raise CheckpointError(
        f"{where}: no such run, checkpoint or weights; shipped with the package: {names}"
    )


def _place_of_file(path: Path) -> Place:
    if path.suffix not in (".pt", ".safetensors") and not path.name.endswith(INDEX):
        raise CheckpointError(f"{path}: not a checkpoint; weights are .pt or .safetensors files")
    name = re.fullmatch(r"iter_(\d{9,})_(?:reg|ema)_model\.(?:pt|safetensors)", path.name)
    folders = (
        (path.parent, path.parent.parent) if path.parent.name == CHECKPOINTS else (path.parent,)
    )
    folder = next((f for f in folders if (f / RECIPE).is_file()), None)
    return Place(path, folder, int(name[1]) if name else None)


def _place_of_folder(path: Path, weights: Kind) -> Place:
    name = NAME.fullmatch(path.name)
    if name and path.parent.name == CHECKPOINTS:
        return Place(path, path.parent.parent, int(name[1]), weights)
    if path.name == CHECKPOINTS and (path.parent / RECIPE).is_file():
        path = path.parent
    step = latest_step(path / CHECKPOINTS)
    if step is not None:
        file = weights_file(path / CHECKPOINTS, step, weights)
        if not file.is_file():  # written at the end of a run
            file = checkpoint_folder(path / CHECKPOINTS, step)
        return Place(file, path, step, weights)
    for name in (MODEL, f"model{INDEX}", "model.pt"):
        if (path / name).is_file():
            return Place(path / name, path if (path / RECIPE).is_file() else None)
    raise CheckpointError(
        f"{path}: holds no checkpoint (no {CHECKPOINTS}/latest_checkpoint.txt and no {MODEL}); "
        "a run's first one is written after [train] save_every steps"
    )


def build_denoiser(recipe: Recipe, contract: ActionContract | None) -> Denoiser:
    """The network that a recipe describes, for the contract's number of action dimensions.

    It is on the meta device and has no memory: `load_state` gives it that, tensor by tensor.
    """
    dims = len(contract.names if contract else NAMES)
    with torch.device("meta"):
        return Denoiser(recipe.model, recipe.diffusion, action_dims=dims)


def load_base(
    denoiser: Denoiser, recipe: Recipe, place: Place, *, device: torch.device | str
) -> Audit:
    """Load the weights to start from onto a device.

    The action embedders, which a base without actions lacks, are initialised as the preset says.
    Raises CheckpointError for anything else that is missing or unexpected.
    """
    state = base_state(recipe, place)
    has_actions = any("action_embedder" in name for name in state)
    audit = load_state(
        denoiser,
        state,
        origin=str(place.file),
        may_lack=() if has_actions else ACTION_PARTS,
        device=device,
    )
    if audit.new:
        initialise_actions(denoiser.net, torch.Generator().manual_seed(recipe.seed))
    return audit


def base_state(recipe: Recipe, place: Place) -> dict[str, Tensor]:
    """A base's weights, under released names. Raises CheckpointError when it cannot be read."""
    state = place.read()
    if recipe.model.position_tables:
        return state
    return {k: v for k, v in state.items() if "extra_pos_embedder" not in k}  # spec.md b.6


def completion(recipe: Recipe) -> Complete:
    """What makes all weights of those in a run's checkpoint, under our names.

    A LoRA run keeps what it trains only: its base is read, and the adapters are added to it. The
    function raises CheckpointError when the base cannot be read.
    """
    if not recipe.lora.rank:
        return dict

    def complete(trained: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            base, _ = from_released(base_state(recipe, find_weights(recipe.model.base)))
        except CheckpointError as error:
            raise CheckpointError(f"the run's adapters need their base: {error}") from None
        network = {name: tensor for name, tensor in base.items() if not TEXT.match(name)}
        return merged_state(trained, network, recipe.lora)

    return complete


def only_dtype(state: Mapping[str, Tensor]) -> torch.dtype | None:
    """The number type of all of a file's weights; None when they differ."""
    kinds = {tensor.dtype for name, tensor in state.items() if not BAGGAGE.search(name)}
    return kinds.pop() if len(kinds) == 1 else None


def check_contract(place: Place, contract: ActionContract) -> None:
    """Refuse a base whose actions mean something else than the shards' do.

    Raises CheckpointError naming the differing fields.
    """
    theirs = place.contract
    if theirs is None or place.folder is None or theirs.digest == contract.digest:
        return
    if read_recipe(place.folder).model.actions == "none":
        return
    lines = "\n  ".join(theirs.differences(contract))
    raise CheckpointError(
        f"{place.folder}: its actions mean something else than the shards' (contract "
        f"{theirs.digest} here, {contract.digest} there); shard the recordings with the same "
        f"[actions], or start from another base\n  {lines}"
    )


def read_contract(folder: Path) -> ActionContract | None:
    """The contract saved in a folder; None when there is none. CheckpointError if damaged."""
    path = folder / CONTRACT
    try:
        return ActionContract.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, DataError) as error:
        raise CheckpointError(f"{path}: no readable action contract: {error}") from None
