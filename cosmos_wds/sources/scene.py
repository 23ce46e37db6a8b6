"""The embedded world: a small robot arm over a table with blocks, as seeded episodes.

T frames, H rows, W columns, N blocks. The base frame has x forward, y left, z up, in metres; the
tool's pose is the point between the fingertips, with fixed-axis xyz angles in rad and (0, 0, 0)
pointing straight down. States and pictures come from the same rows, so they agree exactly.
`scene_motion` decides what happens, `scene_room` how the room looks, `scene_render` draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos_wds.sources import scene_motion as motion
from cosmos_wds.sources.scene_render import render
from cosmos_wds.sources.scene_room import make_look
from cosmos_wds.sources.scene_solids import Array, Box, Camera, Capsule, Solid

FPS = 5.0
MIN_FRAMES, MAX_FRAMES = 20, 30
SHOULDER = np.array([0.0, 0.0, 0.22])
UPPER_ARM, FOREARM = 0.36, 0.35
WRIST = 0.18  # height of the wrist above the fingertips
BLOCK_COLORS = {
    "red": (0.85, 0.15, 0.13),
    "green": (0.15, 0.62, 0.22),
    "blue": (0.15, 0.32, 0.85),
    "yellow": (0.93, 0.78, 0.12),
    "purple": (0.55, 0.22, 0.68),
    "orange": (0.95, 0.48, 0.08),
    "cyan": (0.12, 0.70, 0.75),
    "pink": (0.92, 0.45, 0.62),
}
ARM_COLORS = ((0.88, 0.88, 0.86), (0.75, 0.78, 0.82), (0.92, 0.83, 0.68), (0.93, 0.62, 0.30))


@dataclass(frozen=True)
class SceneEpisode:
    """One recording of the embedded world."""

    frames: Array
    """uint8 [T, H, W, 3]"""
    state: Array
    """float64 [T, 7]: x, y, z, roll, pitch, yaw, gripper (1 open, 0 closed)"""
    command: Array
    """float64 [T]: what the gripper was told on the way to each frame, 1 open, 0 close"""
    text: str
    arm_alpha: Array
    """float32 [T, H, W]: share of each pixel that is arm or gripper"""


def make_episode(seed: tuple[int, ...], *, height: int = 96, width: int = 128) -> SceneEpisode:
    """Make the episode of a seed: a pure function of its arguments."""
    rng = np.random.default_rng(seed)
    camera = Camera(height, width)
    frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    blocks, places = _blocks(rng)
    track = motion.start_track(rng, blocks, places)
    while len(track.tool) < frames:
        motion.extend(track, rng)
    tool = np.stack(track.tool[:frames])
    state = np.concatenate([tool[:, :3], motion.tilt(rng, tool[:, 2]), tool[:, 3:]], 1)
    solids = [
        *_clutter(rng),
        *_block_solids(blocks, np.stack(track.placed[:frames])),
        *arm_solids(state, rng),
    ]
    pictures, arm_alpha = render(camera, make_look(rng, camera), solids, frames)
    command = np.array(track.command[:frames])
    return SceneEpisode(pictures, state, command, _sentence(track, frames), arm_alpha)


def rotation(angles: Array) -> Array:
    """Fixed-axis roll, pitch, yaw [..., 3] in rad -> Rz Ry Rx [..., 3, 3]."""
    (cr, cp, cy), (sr, sp, sy) = (np.moveaxis(f(angles), -1, 0) for f in (np.cos, np.sin))
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def elbow(wrist: Array) -> Array:
    """Elbows [T, 3] for wrists [T, 3]: two links in the vertical plane of the base yaw."""
    reach = wrist - SHOULDER
    distance = np.minimum(np.linalg.norm(reach, axis=-1, keepdims=True), UPPER_ARM + FOREARM - 1e-4)
    ahead = reach / np.linalg.norm(reach, axis=-1, keepdims=True)
    flat = np.hypot(ahead[:, :1], ahead[:, 1:2])
    up = np.concatenate([-ahead[:, :2] * ahead[:, 2:] / flat, flat], -1)
    along = (UPPER_ARM**2 - FOREARM**2 + distance**2) / (2 * distance)
    return SHOULDER + along * ahead + np.sqrt(UPPER_ARM**2 - along**2) * up


def arm_solids(state: Array, rng: np.random.Generator) -> list[Solid]:
    """The robot as solids: base, two links with joints, hand, palm and two fingers."""
    skin = np.array(ARM_COLORS[rng.integers(len(ARM_COLORS))]) * rng.uniform(0.9, 1.05)
    dark = np.full(3, rng.uniform(0.2, 0.32)) + rng.uniform(-0.03, 0.03, 3)
    tips = np.clip(skin * np.array([0.95, 0.45, 0.30]) + rng.uniform(0, 0.1), 0, 1)
    turn = rotation(state[:, 3:6])

    def at(x: float, y: float | Array, z: float) -> Array:
        offset = np.stack(np.broadcast_arrays(x, y, z, state[:, 0])[:3], -1)
        return state[:, :3] + np.einsum("tij,tj->ti", turn, offset)

    wrist = at(0, 0, WRIST)
    middle = elbow(wrist)
    shoulder = np.broadcast_to(SHOULDER, wrist.shape)
    gap = motion.NEVER + motion.OPENING * state[:, 6]
    fingers = [
        Box(
            at(0, side * (gap / 2 + 0.011), 0.03), turn, np.array([0.018, 0.011, 0.048]), tips, True
        )
        for side in (-1, 1)
    ]
    foot = SHOULDER[None] * np.array([1, 1, 0])
    return [
        Capsule(foot, SHOULDER[None] * np.array([1, 1, 0.8]), 0.055, dark, True),
        Capsule(shoulder, middle, 0.043, skin, True),
        Capsule(middle, wrist, 0.037, skin, True),
        Capsule(shoulder, shoulder, 0.056, dark, True),
        Capsule(middle, middle, 0.05, dark, True),
        Capsule(at(0, 0, 0.13), wrist, 0.036, dark, True),
        Capsule(wrist, wrist, 0.041, dark * 1.3, True),
        Box(at(0, 0, 0.1), turn, np.array([0.032, 0.075, 0.024]), skin * 0.95, True),
        *fingers,
    ]


def _blocks(rng: np.random.Generator) -> tuple[motion.Blocks, Array]:
    """One to four blocks and their first places [N, 4], apart from each other."""
    wanted = int(rng.integers(1, 5))
    places: list[Array] = []
    for spot in rng.uniform(motion.TABLETOP[:, 0], motion.TABLETOP[:, 1], (40, 2)):
        is_apart = all(np.linalg.norm(spot - other) > 0.13 for other in places)
        if is_apart and len(places) < wanted:
            places.append(spot)
    number = len(places)
    half = rng.uniform((0.027, 0.027, 0.026), (0.039, 0.039, 0.038), (number, 3))
    names = rng.permutation(list(BLOCK_COLORS))[:number]
    yaw = rng.uniform(-motion.YAW, motion.YAW, number)
    return motion.Blocks(half, tuple(names)), np.column_stack([np.stack(places), half[:, 2], yaw])


def _block_solids(blocks: motion.Blocks, placed: Array) -> list[Solid]:
    """Blocks at their places [T, N, 4]."""
    angles = np.zeros((*placed.shape[:2], 3))
    angles[..., 2] = placed[..., 3]
    turn = rotation(angles)
    return [
        Box(placed[:, n, :3], turn[:, n], blocks.half[n], np.array(BLOCK_COLORS[name]))
        for n, name in enumerate(blocks.names)
    ]


def _clutter(rng: np.random.Generator) -> list[Solid]:
    """Up to three things at the border of the table that never move."""
    solids: list[Solid] = []
    borders = [(-0.02, 0.3), (0.2, 0.37), (0.12, -0.33), (0.62, 0.33), (0.78, -0.05)]
    for number in rng.permutation(len(borders))[: rng.integers(0, 4)]:
        x, y = np.add(borders[number], rng.uniform(-0.04, 0.04, 2))
        color, size = rng.uniform(0.15, 0.85, 3), rng.uniform(0.02, 0.035)
        if rng.random() < 0.5:
            top = rng.uniform(0.06, 0.12)
            solids.append(Capsule(np.array([[x, y, size]]), np.array([[x, y, top]]), size, color))
        else:
            half = size * rng.uniform(0.7, 1.5, 3)
            turn = rotation(np.array([[0, 0, rng.uniform(0, np.pi)]]))
            solids.append(Box(np.array([[x, y, half[2]]]), turn, half, color))
    return solids


def _sentence(track: motion.Track, frames: int) -> str:
    """What is done in the first frames, as one sentence; deeds begun too late are left out."""
    deeds = [text for start, text in track.deeds if start < frames - 6]
    return ", then ".join(dict.fromkeys(deeds))
