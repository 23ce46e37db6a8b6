"""The room of the embedded scene: a textured table, two walls and flat things lying about.

H rows, W columns. The room is drawn once per episode at twice the size and averaged down.
Colours are RGB in 0..1, lengths metres. numpy only.
"""

from __future__ import annotations

import numpy as np

from cosmos_wds.sources.scene_solids import Array, Camera, Look


def make_look(rng: np.random.Generator, camera: Camera) -> Look:
    """Draw the lots for an episode's light, table and walls."""
    azimuth, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.6)
    light = np.array([lean * np.cos(azimuth), lean * np.sin(azimuth), 1.0])
    return Look(
        light=light / np.linalg.norm(light),
        ambient=rng.uniform(0.38, 0.55),
        shadow=rng.uniform(0.4, 0.6),
        backdrop=_backdrop(rng, camera),
    )


def _backdrop(rng: np.random.Generator, camera: Camera) -> Array:
    """The empty room without shadows, float32 [H, W, 3]."""
    rays = camera.rays(0.5)
    eye = np.asarray(camera.position, np.float32)
    back, left = rng.uniform(-0.26, -0.13), rng.uniform(0.38, 0.52)
    to_table = -eye[2] / np.minimum(rays[..., 2], -1e-4)
    to_back = (back - eye[0]) / np.minimum(rays[..., 0], -1e-4)
    to_left = (left - eye[1]) / np.maximum(rays[..., 1], 1e-4)
    points = eye + rays * np.minimum(np.minimum(to_table, to_back), to_left)[..., None]
    is_table = (to_table < to_back) & (to_table < to_left)
    wall = _wall(rng, points, to_back < to_left)
    table = _table(rng, points[..., 0], points[..., 1])
    picture = np.where(is_table[..., None], table, wall)
    height, width = camera.height, camera.width
    picture = picture.reshape(height, 2, width, 2, 3).mean((1, 3))
    return picture.clip(0, 1).astype(np.float32)


def _tint(rng: np.random.Generator, low: float, high: float, color: float) -> Array:
    """A random colour: a grey level with a tint of at most `color`, [3]."""
    return rng.uniform(low, high) + rng.uniform(-color, color, 3)


def _wall(rng: np.random.Generator, points: Array, is_back: Array) -> Array:
    """Two walls that differ in brightness and grow darker towards the table."""
    shade = np.where(is_back, rng.uniform(0.75, 0.9), 1.0) * (0.75 + 0.9 * points[..., 2])
    return shade[..., None] * _tint(rng, 0.35, 0.85, 0.14)


def _table(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A table top [..., 3] with one of four textures, seen at the points x, y on it."""
    base, other = _tint(rng, 0.3, 0.75, 0.12), _tint(rng, -0.14, 0.1, 0.03)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    cloth, fine = _noise(rng, u, v, 6.0), _noise(rng, u, v, 30.0)
    kind = rng.choice(["wood", "checks", "noise", "planks"])
    if kind == "wood":
        base = np.array([0.62, 0.44, 0.28]) * rng.uniform(0.7, 1.25) + rng.uniform(-0.04, 0.04, 3)
        share = 0.5 + 0.5 * np.sin(rng.uniform(60, 110) * (u + 0.06 * _noise(rng, u * 4, v, 3.0)))
        share, other = share * (0.6 + 0.4 * fine), np.full(3, -0.13)
    elif kind == "checks":
        period = rng.uniform(14, 26)
        waves = np.sin(period * u) * np.sin(period * v)
        share = np.clip(0.5 + 2.5 * waves, 0, 1)
    elif kind == "planks":
        share = np.clip(np.abs((u * rng.uniform(6, 11)) % 1 - 0.5) * 14 - 6, 0, 1)
        other = np.full(3, -0.16)
    else:
        share = cloth
    picture = base + share[..., None] * other + 0.1 * (cloth - 0.5)[..., None]
    picture = picture + 0.05 * (fine - 0.5)[..., None]
    glow = 1.08 - 0.25 * np.hypot(x - rng.uniform(0.2, 0.6), y - rng.uniform(-0.4, 0.4))
    return _mats(rng, picture * glow[..., None], x, y)


def _mats(rng: np.random.Generator, picture: Array, x: Array, y: Array) -> Array:
    """Lay up to three flat round or square things on the table."""
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform((0.0, -0.5), (0.85, 0.42))
        turn, size = rng.uniform(0, np.pi), rng.uniform(0.04, 0.11, 2)
        dx, dy = x - centre[0], y - centre[1]
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        if rng.random() < 0.5:
            outside = np.hypot(u, v) - size[0]
        else:
            outside = np.maximum(np.abs(u) - size[0], np.abs(v) - size[1])
        color = (
            _tint(rng, 0.3, 0.8, 0.15) * (1 - 0.15 * (np.abs(outside + 0.014) < 0.005))[..., None]
        )
        picture = np.where((outside < 0)[..., None], color, picture)
    return picture


def _noise(rng: np.random.Generator, u: Array, v: Array, scale: float) -> Array:
    """Smooth value noise in 0..1 with `scale` cells per metre."""
    grid = rng.random((32, 32), dtype=np.float32)
    u, v = u * scale, v * scale
    row, column = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = u - row, v - column
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    row, column, below, right = row % 32, column % 32, (row + 1) % 32, (column + 1) % 32
    top = grid[row, column] * (1 - b) + grid[row, right] * b
    return top * (1 - a) + (grid[below, column] * (1 - b) + grid[below, right] * b) * a
