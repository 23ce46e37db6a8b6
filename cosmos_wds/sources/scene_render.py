"""Renderer of the embedded scene: capsules, boxes and soft shadows over a textured table.

T frames, H rows, W columns. All frames of an episode are drawn at once, one solid after the other;
each solid touches only a window around itself. Edges are antialiased by the distance to them, and
what hides what is decided per pixel by a softened depth test, so that nothing pops between frames.
Colours are RGB in 0..1, lengths metres, pixel centres at integer coordinates. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cosmos_wds.sources.scene_shadow import shadows
from cosmos_wds.sources.scene_solids import (
    Array,
    Box,
    Camera,
    Capsule,
    Look,
    Solid,
    length,
    per_frame,
)

FAR = np.float32(1e3)
BLEND_DEPTH = 0.006  # metres over which one surface takes over from another


@dataclass
class Canvas:
    """Pictures being painted: color [T, H, W, 3], depth [T, H, W], arm [T, H, W]."""

    camera: Camera
    look: Look
    color: Array
    depth: Array
    arm: Array
    rays: Array = field(repr=False)


@dataclass(frozen=True)
class Window:
    """A window of one size at one place per frame; `index` picks it from [T * H * W]."""

    index: Array
    pixel: Array
    columns: Array
    rows: Array


def render(camera: Camera, look: Look, solids: Sequence[Solid], frames: int) -> tuple[Array, Array]:
    """Draw an episode: uint8 [T, H, W, 3], and the share of each pixel that is arm, [T, H, W]."""
    still = [solid for solid in solids if length(solid) == 1]
    moving = [solid for solid in solids if length(solid) > 1]
    room = _canvas(camera, look, look.backdrop[None])
    shade = shadows(camera, look, solids, frames)
    for solid in still:
        _draw(room, solid)
    bare = (room.depth == FAR)[..., None]
    color = np.where(bare, room.color * (1 - look.shadow * shade[..., None]), room.color)
    canvas = Canvas(
        camera,
        look,
        np.ascontiguousarray(color, np.float32),
        np.repeat(room.depth, frames, 0),
        np.repeat(room.arm, frames, 0),
        room.rays,
    )
    for solid in moving:
        _draw(canvas, solid)
    return (canvas.color.clip(0, 1) * 255 + 0.5).astype(np.uint8), canvas.arm


def _canvas(camera: Camera, look: Look, color: Array) -> Canvas:
    shape = color.shape[:3]
    depth = np.full(shape, FAR, np.float32)
    return Canvas(camera, look, color.copy(), depth, np.zeros(shape, np.float32), camera.rays())


def _window(camera: Camera, low: Array, high: Array) -> Window:
    """The smallest common window that holds low..high [T, 2] (column, row) in every frame."""
    limit = np.array([camera.width, camera.height])
    low, high = np.floor(low).astype(int) - 1, np.ceil(high).astype(int) + 2
    low, high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    size = np.maximum((high - low).max(0), 1)
    origin = np.minimum(low, limit - size)
    columns = origin[:, 0, None, None] + np.arange(size[0])[None, None, :]
    rows = origin[:, 1, None, None] + np.arange(size[1])[None, :, None]
    pixel = rows * camera.width + columns
    index = pixel + np.arange(len(low))[:, None, None] * (camera.width * camera.height)
    return Window(index, pixel, columns.astype(np.float32), rows.astype(np.float32))


def _paint(canvas: Canvas, at: Window, cover: Array, color: Array, depth: Array, arm: bool) -> None:
    """Lay a surface over the window; cover and depth [T, h, w], color [T, h, w, 3]."""
    buffer = canvas.depth.reshape(-1)
    before = buffer[at.index]
    cover = cover * np.clip((before - depth) / BLEND_DEPTH + 0.5, 0, 1)
    buffer[at.index] = np.where(cover > 0.5, np.minimum(before, depth), before)
    pictures = canvas.color.reshape(-1, 3)
    under = pictures[at.index]
    pictures[at.index] = under + cover[..., None] * (color - under)
    share = canvas.arm.reshape(-1)
    old = share[at.index]
    share[at.index] = old + cover * (float(arm) - old)


def _draw(canvas: Canvas, solid: Solid) -> None:
    if isinstance(solid, Capsule):
        _draw_capsule(canvas, solid)
    else:
        for axis in range(3):
            _draw_face(canvas, solid, axis)


def _draw_capsule(canvas: Canvas, rod: Capsule) -> None:
    """Paint a rod as its silhouette, shaded like a cylinder with a highlight."""
    camera = canvas.camera
    (a, depth_a), (b, depth_b) = camera.project(rod.start), camera.project(rod.end)
    scale = camera.pixels_per_unit * rod.radius
    radius_a, radius_b = scale / depth_a, scale / depth_b
    reach = np.maximum(radius_a, radius_b)[:, None]
    at = _window(camera, np.minimum(a, b) - reach, np.maximum(a, b) + reach)
    along = b - a
    squared = (along**2).sum(-1) + 1e-6
    x, y = at.columns - per_frame(a[:, 0]), at.rows - per_frame(a[:, 1])
    share = np.clip(
        x * per_frame(along[:, 0] / squared) + y * per_frame(along[:, 1] / squared), 0, 1
    )
    x, y = x - share * per_frame(along[:, 0]), y - share * per_frame(along[:, 1])
    radius = per_frame(radius_a) + share * per_frame(radius_b - radius_a)
    side_x, side_y = x / radius, y / radius
    away = np.sqrt(side_x**2 + side_y**2)
    cover = np.clip((1 - away) * radius + 0.5, 0, 1)
    front = np.sqrt(np.maximum(1 - away**2, 0))
    depth = (
        per_frame(depth_a) + share * per_frame(depth_b - depth_a) - np.float32(rod.radius) * front
    )
    light = (camera.axes @ canvas.look.light).astype(np.float32)  # right, down, forward
    facing = side_x * light[0] + side_y * light[1] - front * light[2]
    middle = light - np.array([0, 0, 1], np.float32)
    middle = middle / np.linalg.norm(middle)
    shine = np.maximum(side_x * middle[0] + side_y * middle[1] - front * middle[2], 0) ** 24
    color = _lit(canvas.look, facing)[..., None] * rod.color.astype(np.float32)
    _paint(canvas, at, cover, color + 0.25 * shine[..., None], depth, rod.is_arm)


def _lit(look: Look, facing: Array) -> Array:
    """Brightness of a surface whose normal has cosine `facing` to the light (wrapped Lambert)."""
    return look.ambient + (1.15 - look.ambient) * np.maximum(0.85 * facing + 0.15, 0)


def _draw_face(canvas: Canvas, box: Box, axis: int) -> None:
    """Paint the one of the two faces across `axis` that looks at the camera, if any does."""
    camera = canvas.camera
    normal = box.rotation[:, :, axis]
    eye = np.asarray(camera.position) - box.centre
    sign = np.where((normal * eye).sum(-1) >= 0, 1.0, -1.0)
    normal = normal * sign[:, None]
    middle = box.centre + normal * box.half[axis]
    eye = np.asarray(camera.position) - middle
    u, v = (box.rotation[:, :, k] * box.half[k] for k in range(3) if k != axis)
    corners, _ = camera.project(
        np.stack([middle + u + v, middle + u - v, middle - u - v, middle - u + v], 1)
    )
    at = _window(camera, corners.min(1), corners.max(1))
    inside = _inside(at, corners)
    cover = np.clip(inside + 0.7, 0, 1) * per_frame(np.clip(_thickness(corners) / 1.5, 0, 1))
    rays = canvas.rays.reshape(-1, 3)[at.pixel]
    slope = (rays * normal[:, None, None].astype(np.float32)).sum(-1)
    depth = per_frame(-(normal * eye).sum(-1)) / np.minimum(slope, -1e-4)
    # Where two faces of a box overlap at their common edge, the nearer to its own inside wins.
    depth = depth + 2 * BLEND_DEPTH * np.clip(0.5 - inside, 0, 1.5)
    facing = (normal * canvas.look.light).sum(-1)
    light = per_frame(_lit(canvas.look, facing)) * (0.82 + 0.18 * np.clip(inside * 0.6, 0, 1))
    color = light[..., None] * box.color.astype(np.float32)
    _paint(canvas, at, cover, color, depth, box.is_arm)


def _inside(at: Window, corners: Array) -> Array:
    """Distance in pixels to the nearest edge of convex quads [T, 4, 2], positive inside."""
    edges = np.roll(corners, -1, 1) - corners
    area = (edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])[:, None]
    length = np.linalg.norm(edges, axis=-1) + 1e-6
    nx, ny = -edges[..., 1] / length * np.sign(area), edges[..., 0] / length * np.sign(area)
    offset = nx * corners[..., 0] + ny * corners[..., 1]
    distance = [
        at.columns * per_frame(nx[:, k]) + at.rows * per_frame(ny[:, k]) - per_frame(offset[:, k])
        for k in range(4)
    ]
    return np.minimum(np.minimum(distance[0], distance[1]), np.minimum(distance[2], distance[3]))


def _thickness(corners: Array) -> Array:
    """Width in pixels of quads [T, 4, 2] across their longest edge; 0 when seen edge-on."""
    edges = corners[:, 1:3] - corners[:, :2]
    area = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])
    return area / np.linalg.norm(edges, axis=-1).max(1)
