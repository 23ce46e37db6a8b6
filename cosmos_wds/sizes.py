"""The settings of a network, and the named sizes of recipes/models. No torch here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cosmos_wds.config import Settings, at_least, parse, read_table, shipped_folder
from cosmos_wds.errors import ConfigError


class ModelSettings(Settings):
    """The network (spec.md section b). `size` names a file in recipes/models with these numbers."""

    size: str = ""
    base: str = ""
    """Weights to start from: a file, a run's checkpoint, or the name of shipped weights."""
    actions: Literal["none", "per_frame", "reference"] = "per_frame"
    """How actions enter: not at all; ours (B_D and B_3D, one embedding per generated frame);
    or as the reference does (B_3D of the first action only)."""
    position_tables: bool = True
    """The base's learnable position tables (spec.md b.6); the reference drops them."""
    width: int = 4096
    heads: int = 32
    blocks: int = 28
    adaln_rank: int = 256
    text_width: int = 1024
    """Width of the text tokens; 0 builds a network without cross-attention."""
    latent_channels: int = 16
    max_frames: int = 128
    max_height: int = 120
    """Rows of the position tables, in patches."""
    max_width: int = 120
    rope_ratio_t: float = 2.0
    rope_ratio_h: float = 1.0
    rope_ratio_w: float = 1.0

    @property
    def is_nvidia(self) -> bool:
        """Whether it is a network whose weights NVIDIA releases, under its licence."""
        return self.size.startswith("cosmos-predict1-")

    def problems(self) -> Iterator[str]:
        yield from at_least(self, width=8, heads=1, blocks=1, adaln_rank=1, text_width=0)
        if self.heads > 0 and self.width % self.heads:
            yield f"width = {self.width}: not a multiple of heads = {self.heads}"


def model_settings(size: str, preset: Literal["ours", "reference"] = "ours") -> ModelSettings:
    """The network of a named size, as `bridge` (ours) or `bridge_reference` builds it.

    Raises ConfigError for a size that is not in recipes/models.
    """
    is_ours = preset == "ours"
    actions = "per_frame" if is_ours else "reference"
    table = {"size": size, "actions": actions, "position_tables": is_ours}
    return parse(ModelSettings, {**size_table(size, size), **table}, origin=size)


def size_table(size: str, origin: str) -> dict[str, Any]:
    """The numbers of a named size. Raises ConfigError for one that is not there."""
    path = _folder() / f"{size}.toml"
    if "/" in size or not path.is_file():
        known = ", ".join(size_names())
        raise ConfigError(f"{origin}: [model] size = {size!r}: no such size; known: {known}")
    return read_table(path)


def size_names() -> list[str]:
    """The sizes that there are."""
    return sorted(p.stem for p in _folder().glob("*.toml"))


def _folder() -> Path:
    return shipped_folder("recipes") / "models"
