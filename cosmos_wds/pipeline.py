"""Pipeline: how raw recordings become shards (download, shard). No torch here."""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from cosmos_wds.config import Settings, apply_overrides, find_toml, parse, read_table


class DownloadSettings(Settings):
    """Where the recordings come from. `demo` sources are generated, not fetched."""

    url: str = ""
    """A .tar or .tar.gz archive."""
    strip: str = ""
    """Folder inside the archive whose content becomes the source folder."""
    bytes: int = 0
    """Expected size of the archive; 0 when the publisher names none."""
    sha256: str = ""
    weights: tuple[str, ...] = ()
    """Hugging Face repositories of model weights that belong to this job: OWNER/NAME, or
    OWNER/NAME@REVISION to pin a commit, tag or branch."""
    weights_to: str = "checkpoints"


class GenerateSettings(Settings):
    """The synthetic data set (`demo` only)."""

    seed: int = 0
    train: int = 240
    val: int = 24
    height: int = 96
    width: int = 128

    def problems(self) -> Iterator[str]:
        if self.train < 0 or self.val < 0 or self.train + self.val == 0:
            yield f"train = {self.train}, val = {self.val}: at least one episode is needed"
        for name in ("height", "width"):
            if getattr(self, name) < 32 or getattr(self, name) % 2:
                yield f"{name} = {getattr(self, name)}: an even number of pixels from 32"


class SourceSettings(Settings):
    """The recordings on disk."""

    kind: Literal["bridge", "demo"] = "bridge"
    path: str = "data/bridge/raw"
    splits: tuple[str, ...] = ("train", "val", "test")
    """Splits to read; one that the source does not have is passed over with a word."""


class ActionSettings(Settings):
    """The action contract (design: one signal for training and rollouts)."""

    signal: Literal["state", "command"] = "state"
    """`state`: relative pose between measured states; `command`: the recorded `action` rows."""
    accumulate: bool = False
    """Poses relative to the window's first frame instead of the previous one."""
    scale: tuple[float, ...] = (20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 1.0)
    fps: float = 5.0

    def problems(self) -> Iterator[str]:
        if len(self.scale) != 7 or any(s <= 0 for s in self.scale):
            yield f"scale = {list(self.scale)}: seven numbers above zero (x y z r p y gripper)"
        if self.fps <= 0:
            yield f"fps = {self.fps}: must be above zero"
        if self.accumulate and self.signal == "command":
            yield 'accumulate = true: needs signal = "state"'


class ShardSettings(Settings):
    """The shard set to write."""

    path: str = "data/bridge/shards"
    megabytes: int = 256
    """A shard closes before it would grow beyond this (at least one episode per shard)."""
    workers: int = 0
    """Processes; 0 uses every core."""

    def problems(self) -> Iterator[str]:
        if self.megabytes < 1 or self.workers < 0:
            yield f"megabytes = {self.megabytes} (1 or more), workers = {self.workers} (0 or more)"


class Pipeline(Settings):
    """One data set: where it comes from, what its actions mean, which shards it becomes."""

    name: str = "unnamed"
    download: DownloadSettings = Field(default_factory=DownloadSettings)
    generate: GenerateSettings = Field(default_factory=GenerateSettings)
    source: SourceSettings = Field(default_factory=SourceSettings)
    actions: ActionSettings = Field(default_factory=ActionSettings)
    shards: ShardSettings = Field(default_factory=ShardSettings)


def load_pipeline(name: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline by path or shipped name, with `section.key=value` overrides applied.

    Raises ConfigError listing every problem at once.
    """
    path = find_toml(name, "pipelines")
    return parse(Pipeline, apply_overrides(read_table(path), overrides), origin=str(path))
