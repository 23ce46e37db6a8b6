"""What the embedded scene is made of and where it is seen from: camera, light, capsules, boxes.

T frames, H rows, W columns. Lengths are metres, colours RGB in 0..1, pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Camera:
    """Fixed pinhole camera, the same for the whole data set; x right, y down in the picture."""

    height: int = 96
    width: int = 128
    position: tuple[float, float, float] = (1.37, -0.60, 0.86)
    target: tuple[float, float, float] = (0.40, 0.0, 0.145)
    focal: float = 1.95
    """Focal length in units of the picture's width."""

    @cached_property
    def axes(self) -> Array:
        """Rows right, down, forward of the camera in the base frame, [3, 3]."""
        forward = np.subtract(self.target, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    @property
    def pixels_per_unit(self) -> float:
        """Focal length in pixels."""
        return self.focal * self.width

    def project(self, points: Array) -> tuple[Array, Array]:
        """Points [..., 3] in metres -> pixels [..., 2] as (column, row), depth [...] in metres."""
        seen = (np.asarray(points) - np.asarray(self.position)) @ self.axes.T
        depth = seen[..., 2]
        centre = np.array([(self.width - 1) / 2, (self.height - 1) / 2])
        return centre + self.pixels_per_unit * seen[..., :2] / depth[..., None], depth

    def rays(self, step: float = 1.0) -> Array:
        """Ray directions of unit depth, [H / step, W / step, 3], one per cell of `step` pixels."""
        columns = (np.arange(round(self.width / step)) + 0.5) * step - self.width / 2
        rows = (np.arange(round(self.height / step)) + 0.5) * step - self.height / 2
        right, down, forward = self.axes
        across = columns[None, :, None] * right + rows[:, None, None] * down
        return (forward + across / self.pixels_per_unit).astype(np.float32)


@dataclass(frozen=True)
class Capsule:
    """A rounded rod: ends [T, 3] (or [1, 3] when it stands still), radius in metres."""

    start: Array
    end: Array
    radius: float
    color: Array
    is_arm: bool = False


@dataclass(frozen=True)
class Box:
    """A box: centre [T, 3], rotation [T, 3, 3], half sizes [3] in metres."""

    centre: Array
    rotation: Array
    half: Array
    color: Array
    is_arm: bool = False


Solid = Capsule | Box


@dataclass(frozen=True)
class Look:
    """What varies between episodes besides the solids."""

    light: Array
    """Unit vector from the table to the light."""
    ambient: float
    shadow: float
    """Share of the light that a shadow takes away."""
    backdrop: Array
    """Empty room, [H, W, 3]."""


def length(solid: Solid) -> int:
    """Frames that a solid has places for; 1 when it stands still."""
    return len(solid.start if isinstance(solid, Capsule) else solid.centre)


def per_frame(values: Array) -> Array:
    """Per-frame numbers [T] as float32 [T, 1, 1]."""
    return np.asarray(values, np.float32)[:, None, None]
