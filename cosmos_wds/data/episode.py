"""The shapes that data take between modules: Recording and Episode (raw), and Batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cosmos_wds.data.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor


class Video(Protocol):
    """One camera's recording, read when it is needed."""

    @property
    def name(self) -> str:
        """How it is called in reports: its file below the source's root, and where in it."""
        ...

    def size(self) -> int:
        """About how many bytes `read` gives, without reading them; always the same number."""
        ...

    def read(self) -> bytes:
        """A video file of this episode alone. Raises DataError."""
        ...


@dataclass(frozen=True)
class StoredVideo:
    """A video that has a file of its own."""

    storage: Storage
    name: str

    def size(self) -> int:
        return max(0, self.storage.size(self.name))

    def read(self) -> bytes:
        return self.storage.read(self.name)


@dataclass(frozen=True)
class Recording:
    """One episode as a source lists it: enough to find it again, in whatever process."""

    split: str
    name: str
    """Different from all others of the split; the sample's key is made of it."""
    file: str
    """How reports call it: the file that describes it, below the source's root."""
    where: Any = None
    """What else the source needs to find it."""


@dataclass(frozen=True)
class Episode:
    """One recording as a source reads it, before sharding.

    state     (T, S) float64; poses are x y z (m), roll pitch yaw (rad), gripper 0..1
    command   (T-1, A) float64 or None: the recorded actions, physical units
    videos    camera number -> video
    """

    id: str
    state: np.ndarray
    command: np.ndarray | None
    videos: Mapping[int, Video]
    source_sha256: str
    """Of the bytes that describe it (the annotation; videos have their own checksums)."""
    text: str = ""
    fps: float = 0.0
    """Frames per second that the source claims; 0 when it says nothing."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """What else the source knows of it, kept as it is."""
    command_problem: str = ""
    """Why there is no `command`, where the source has one that cannot be used."""


class Source(Protocol):
    """Recordings of one layout. Sources travel to worker processes, so they pickle."""

    @property
    def root(self) -> str:
        """Folder or URL, as errors name it."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """The splits to make shards of."""
        ...

    def list(self, split: str) -> Sequence[Recording]:
        """All episodes of a split, always in the same order; none when there is no such split."""
        ...

    def read(self, recording: Recording) -> Episode:
        """One episode of `list`. Raises DataError for one that is not usable."""
        ...


@dataclass(frozen=True)
class Batch:
    """What a rank trains on at one step: its share of the global batch, lane after lane.

    action  (B, frames-1, A) float32, scaled by the contract
    fps     (B,) float32, frames per second of the window (source fps / interval)
    key     B episode keys;  start  B first frames

    and one of these, by what the shards hold:

    video   (B, 3, frames, H, W) uint8; in memory channels come last, as decoders give them
    latent  (B, C, frames, h, w) float16
    """

    action: "Tensor"
    fps: "Tensor"
    key: tuple[str, ...]
    start: tuple[int, ...]
    video: "Tensor | None" = None
    latent: "Tensor | None" = None
