"""The shapes that data take between modules: Episode (raw), Window, Batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Episode:
    """One recording as a source gives it, before sharding.

    state     (T, 7) float64  x y z (m), roll pitch yaw (rad), gripper 0..1
    command   (T-1, 7) float64 or None: the recorded `action` rows, physical units
    videos    camera number -> mp4 file
    """

    id: str
    split: str
    state: np.ndarray
    command: np.ndarray | None
    videos: Mapping[int, Path]
    text: str
    fps: float
    source_file: str
    """The annotation's path relative to the source's root."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Unknown keys of the annotation, kept as they are."""


@dataclass(frozen=True)
class Window:
    """`frames` frames of an episode, from `start`, every `interval`-th."""

    episode: int
    """Row of the split's index."""
    start: int


@dataclass(frozen=True)
class Batch:
    """What a rank trains on at one step: its share of the global batch, lane after lane.

    video   (B, 3, frames, H, W) uint8
    action  (B, frames-1, A) float32, scaled by the contract
    fps     (B,) float32, frames per second of the window (source fps / interval)
    key     B episode keys;  start  B first frames
    """

    video: "Tensor"
    action: "Tensor"
    fps: "Tensor"
    key: tuple[str, ...]
    start: tuple[int, ...]
