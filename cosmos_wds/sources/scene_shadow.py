"""Soft shadows of the embedded scene on the table. T frames, H rows, W columns; metres."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cosmos_wds.sources.scene_solids import Array, Box, Camera, Capsule, Look, Solid, per_frame


def shadows(camera: Camera, look: Look, solids: Iterable[Solid], frames: int) -> Array:
    """Soft shadow on the table, [T, H, W] in 0..1, computed at half size and enlarged."""
    rays = camera.rays(2.0)
    ground = np.asarray(camera.position, np.float32)
    reach = -ground[2] / np.minimum(rays[..., 2], -1e-3)
    x, y = ground[0] + reach * rays[..., 0], ground[1] + reach * rays[..., 1]
    dark = np.zeros((frames, *x.shape), np.float32)
    for solid in solids:
        cast = _rod_shadow if isinstance(solid, Capsule) else _box_shadow
        np.maximum(dark, cast(solid, look.light, x, y), out=dark)
    return _enlarge(_enlarge(dark, 1, camera.height), 2, camera.width)


def _on_table(points: Array, light: Array) -> Array:
    """Where the shadow of points [..., 3] falls, [..., 2]."""
    return points[..., :2] - points[..., 2:] * (light[:2] / light[2])


def _rod_shadow(rod: Capsule, light: Array, x: Array, y: Array) -> Array:
    a, b = _on_table(rod.start, light), _on_table(rod.end, light)
    along = b - a
    squared = (along**2).sum(-1) + 1e-9
    dx, dy = x - per_frame(a[:, 0]), y - per_frame(a[:, 1])
    share = np.clip(
        dx * per_frame(along[:, 0] / squared) + dy * per_frame(along[:, 1] / squared), 0, 1
    )
    dx, dy = dx - share * per_frame(along[:, 0]), dy - share * per_frame(along[:, 1])
    high = per_frame(rod.start[:, 2]) + share * per_frame(rod.end[:, 2] - rod.start[:, 2])
    return _soften(np.sqrt(dx**2 + dy**2) - np.float32(rod.radius), np.maximum(high, 0))


def _box_shadow(box: Box, light: Array, x: Array, y: Array) -> Array:
    """A box's shadow is the hexagon that its three axes span on the table."""
    centre = _on_table(box.centre, light)
    spans = _on_table(np.swapaxes(box.rotation, 1, 2) * box.half[:, None], light)  # [T, 3, 2]
    dx, dy = x - per_frame(centre[:, 0]), y - per_frame(centre[:, 1])
    outside = np.full(np.broadcast_shapes(dx.shape), -np.inf, np.float32)
    for k in range(3):
        normal = np.stack([-spans[:, k, 1], spans[:, k, 0]], -1)
        normal = normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9)
        extent = np.abs((spans * normal[:, None]).sum(-1)).sum(-1)
        across = np.abs(dx * per_frame(normal[:, 0]) + dy * per_frame(normal[:, 1])) - per_frame(
            extent
        )
        np.maximum(outside, across, out=outside)
    return _soften(outside, per_frame(np.maximum(box.centre[:, 2] - 0.03, 0)))


def _soften(outside: Array, high: Array) -> Array:
    """Darkness from the distance to a shadow's edge; the edge of a higher thing is softer."""
    soft = 0.012 + 0.12 * high
    share = np.clip(0.5 - outside / (2 * soft), 0, 1)
    return share * share * (3 - 2 * share) * (1 - 0.5 * np.clip(high / 0.6, 0, 1))


def _enlarge(values: Array, axis: int, size: int) -> Array:
    """Linear interpolation to twice the size along one axis."""
    have = values.shape[axis]
    place = np.clip((np.arange(size) + 0.5) / 2 - 0.5, 0, have - 1)
    low = np.minimum(place.astype(int), max(have - 2, 0))
    shape = [1] * values.ndim
    shape[axis] = size
    share = (place - low).astype(np.float32).reshape(shape)
    first, second = np.take(values, low, axis), np.take(values, np.minimum(low + 1, have - 1), axis)
    return first + share * (second - first)
