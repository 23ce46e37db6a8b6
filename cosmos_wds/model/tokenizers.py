"""Find and load a tokenizer: the one of a recipe's settings, or whichever lies in a place."""

from pathlib import Path
from typing import Literal

from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model import tokenizer_diffusers, tokenizer_torchscript
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.model.tokenizer_diffusers import load_autoencoder
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.model.tokenizer_torchscript import load_torchscript
from cosmos_wds.recipe import TokenizerSettings

EMBEDDED = "tokenizer.safetensors"
"""The embedded tokenizer's file, beside the weights that it belongs to."""
SHIPPED = Path(__file__).parent.parent / "weights"
"""Weights that ship with the package, a folder for each name."""

Kind = Literal["cosmos", "diffusers", "patch"]
"""Words of a recipe's [tokenizer] kind."""


def load_tokenizer(settings: TokenizerSettings, folder: Path) -> Tokenizer:
    """The tokenizer that belongs to weights: the embedded one lies beside them, in `folder`.

    Raises CheckpointError when its files are missing or damaged, ConfigError when none are named.
    """
    if settings.kind == "patch":
        return PatchTokenizer.load(folder / EMBEDDED)
    if not settings.path:
        raise ConfigError(
            f"[tokenizer] path is empty: kind = {settings.kind!r} reads the tokenizer's files "
            "there; name their folder"
        )
    load = load_autoencoder if settings.kind == "diffusers" else load_torchscript
    return load(Path(settings.path))


def open_tokenizer(place: str) -> tuple[Kind, Tokenizer]:
    """Load the tokenizer that a place holds; its kind is told by its files.

    place   a file or folder of an embedded tokenizer (a run, an export, or the name of weights that
            ship with the package), or a folder of NVIDIA's or diffusers' files
    Raises CheckpointError when there is none, or when it is damaged.
    """
    path = Path(place)
    if not path.exists() and len(path.parts) == 1 and (SHIPPED / place).is_dir():
        path = SHIPPED / place
    if path.is_file():
        return "patch", PatchTokenizer.load(path)
    if (path / EMBEDDED).is_file():
        return "patch", PatchTokenizer.load(path / EMBEDDED)
    if any((path / name).is_file() for name in tokenizer_torchscript.FILES):
        return "cosmos", load_torchscript(path)
    if (path / tokenizer_diffusers.WEIGHTS).is_file():
        return "diffusers", load_autoencoder(path)
    what = "holds no tokenizer" if path.is_dir() else "no such tokenizer"
    raise CheckpointError(
        f"{place}: {what}; name a folder with {EMBEDDED} (a run of the embedded tokenizer), with "
        f"{tokenizer_torchscript.FILES[0]} (NVIDIA's, see `cosmos-wds download`) or with "
        f"{tokenizer_diffusers.WEIGHTS} (diffusers')"
    )
