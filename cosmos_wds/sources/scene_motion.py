"""Motion script of the embedded scene: what the tool does, and what that does to the blocks.

T frames, N blocks. A track grows segment by segment until it is long enough: free motion, pick and
place, or a push along the table. There is no physics: a grasped block follows the tool, a pushed
one is moved by it. Lengths in metres, angles in rad, one row per frame at 5 frames per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cosmos_wds.sources.scene_solids import Array

OPENING = 0.1  # gap between the fully opened fingers
NEVER = 0.004  # gap that stays between closed fingers
WORKSPACE = np.array([[0.28, 0.54], [-0.31, 0.31], [0.13, 0.24]])  # of free motion
TABLETOP = np.array([[0.29, 0.51], [-0.28, 0.28]])  # where blocks are put
SAFE_HEIGHT = 0.13
SIDEWAYS = np.array([0.7, 1.5, 0.7])  # weights of a distance when a far place is wanted
YAW = 0.6
PUSH_RUN_UP = 0.025
PUSH_HEIGHT = 0.028
FINGER_REACH = 0.024  # half width of the closed gripper


@dataclass(frozen=True)
class Blocks:
    """N blocks: half sizes [N, 3], colour names [N]."""

    half: Array
    names: tuple[str, ...]


@dataclass
class Track:
    """Rows so far: tool (x, y, z, yaw, gripper) and blocks [N, 4] (x, y, z, yaw)."""

    blocks: Blocks
    tool: list[Array]
    command: list[float]
    """What the gripper was told to do on the way to each row: 1 open, 0 close."""
    placed: list[Array]
    speed: float
    """Metres per frame."""
    deeds: list[tuple[int, str]] = field(default_factory=list)
    """First frame and sentence of everything that was done."""

    def here(self) -> Array:
        """The tool's last row, [5]."""
        return self.tool[-1].copy()

    def block(self, number: int) -> Array:
        """A block's last place, [4]."""
        return self.placed[-1][number]


def start_track(rng: np.random.Generator, blocks: Blocks, places: Array) -> Track:
    """A track of one row, with the tool anywhere in the workspace."""
    spot = rng.uniform(WORKSPACE[:, 0], WORKSPACE[:, 1])
    tool = np.array([*spot, rng.uniform(-YAW, YAW), rng.choice([0.0, 1.0])])
    return Track(blocks, [tool], [tool[4]], [places], speed=rng.uniform(0.042, 0.052))


def extend(track: Track, rng: np.random.Generator) -> None:
    """Append one randomly chosen deed."""
    deed = rng.choice(["free", "pick", "push"], p=[0.36, 0.34, 0.3])
    number = int(rng.integers(len(track.blocks.names)))
    if deed == "pick":
        _pick(track, rng, number)
    elif deed == "push":
        _push(track, rng, number)
    else:
        _wander(track, rng)


def tilt(rng: np.random.Generator, heights: Array) -> Array:
    """Smooth small roll and pitch [T, 2], vanishing (almost) near the table."""
    time = np.arange(len(heights))[:, None, None]
    period = rng.uniform(9, 26, (2, 2))
    phase = rng.uniform(0, 2 * np.pi, (2, 2))
    waves = np.sin(2 * np.pi * time / period + phase) * rng.uniform(0.015, 0.05, (2, 2))
    share = np.clip((heights - 0.04) / 0.1, 0.1, 1)[:, None]
    return waves.sum(-1) * share


def _glide(
    track: Track,
    goal: Array,
    *,
    held: int | None = None,
    pushed: tuple[int, float] | None = None,
    at_least: int = 1,
    arc: float = 0.0,
) -> None:
    """Move the tool to `goal` [5] with smooth start and stop.

    held    number of the block that follows the tool
    pushed  number of the block that the tool pushes, and the way before they touch
    arc     height of the detour above the straight line
    """
    start, blocks = track.here(), track.placed[-1].copy()
    way = np.linalg.norm(goal[:3] - start[:3])
    frames = max(at_least, round(float(max(way, 0.06 * abs(goal[3] - start[3])) / track.speed)), 1)
    for step in np.arange(1, frames + 1) / frames:
        share = 0.5 * step + 0.5 * step**3 * (10 - 15 * step + 6 * step**2)
        row = start + share * (goal - start)
        row[2] += arc * 4 * share * (1 - share)
        now = blocks.copy()
        if held is not None:
            now[held] = blocks[held] + (row - start)[:4]
        if pushed is not None:
            number, gap = pushed
            ahead = max(share * way - gap, 0.0)
            now[number, :2] += ahead * (goal[:2] - start[:2]) / max(way, 1e-9)
        track.tool.append(row)
        track.command.append(float(goal[4] == 1.0))
        track.placed.append(now)


def _wander(track: Track, rng: np.random.Generator) -> None:
    """Go to another place in the air, preferably far away."""
    track.deeds.append((len(track.tool), "move the arm through the air"))
    here = track.here()
    spots = rng.uniform(WORKSPACE[:, 0], WORKSPACE[:, 1], (4, 3))
    far = spots[np.argmax(np.linalg.norm((spots - here[:3]) * SIDEWAYS, axis=1))]
    goal = np.array([*far, rng.uniform(-YAW, YAW), rng.choice([0.0, 1.0])])
    _glide(track, goal, arc=rng.uniform(-0.02, 0.05), at_least=3)


def _pick(track: Track, rng: np.random.Generator, number: int) -> None:
    """Reach, descend, close, lift, carry, put down, open, rise."""
    place = track.block(number)
    spot = _free_spot(track, rng, number)
    if spot is None:
        return _wander(track, rng)
    name = track.blocks.names[number]
    side = "left" if spot[1] > place[1] else "right"
    track.deeds.append((len(track.tool), f"pick up the {name} block and put it to the {side}"))
    width = 2 * track.blocks.half[number, 1]
    closed = float(np.clip((width - NEVER) / OPENING, 0, 1))
    over = rng.uniform(SAFE_HEIGHT, 0.17)
    above = np.array([*place[:2], place[2] + over - 0.03, place[3], 1.0])
    _glide(track, above, arc=0.02, at_least=2)
    down = above.copy()
    down[2] = place[2]
    _glide(track, down, at_least=2)
    grasp = down.copy()
    grasp[4] = closed
    _glide(track, grasp, at_least=2)
    lifted = grasp.copy()
    lifted[2] = over
    _glide(track, lifted, held=number, at_least=2)
    carried = np.array([*spot, over, np.clip(place[3] + rng.uniform(-0.6, 0.6), -YAW, YAW), closed])
    _glide(track, carried, held=number, arc=rng.uniform(0, 0.05))
    lowered = carried.copy()
    lowered[2] = place[2]
    _glide(track, lowered, held=number, at_least=2)
    opened = lowered.copy()
    opened[4] = 1.0
    _glide(track, opened, at_least=2)
    opened[2] = SAFE_HEIGHT
    _glide(track, opened, at_least=2)
    return None


def _push(track: Track, rng: np.random.Generator, number: int) -> None:
    """Come down behind a block with closed fingers and shove it along the table."""
    place = track.block(number)
    for angle in rng.uniform(0, 2 * np.pi, 12):
        toward = np.array([np.cos(angle), np.sin(angle)])
        way = rng.uniform(0.11, 0.22)
        begin = place[:2] - toward * (_support(track, number, toward) + FINGER_REACH + PUSH_RUN_UP)
        if _is_clear(track, number, begin, place[:2] + toward * way):
            break
    else:
        return _wander(track, rng)
    names = ("forward", "to the left", "backward", "to the right")
    direction = names[round(angle / (np.pi / 2)) % 4]
    track.deeds.append(
        (len(track.tool), f"push the {track.blocks.names[number]} block {direction}")
    )
    yaw = (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a flat side of the gripper goes first
    above = np.array([*begin, SAFE_HEIGHT, np.clip(yaw, -YAW, YAW), 0.0])
    _glide(track, above, arc=0.02, at_least=2)
    low = above.copy()
    low[2] = PUSH_HEIGHT
    _glide(track, low, at_least=2)
    end = low.copy()
    end[:2] += toward * (way + PUSH_RUN_UP)
    _glide(track, end, pushed=(number, PUSH_RUN_UP), at_least=3)
    end = end.copy()
    end[:3] += [*(-0.03 * toward), SAFE_HEIGHT - PUSH_HEIGHT]
    _glide(track, end, at_least=2)
    return None


def _support(track: Track, number: int, toward: Array) -> float:
    """Half the width of a block along a direction."""
    yaw = track.block(number)[3]
    turned = (
        np.array([np.cos(yaw), np.sin(yaw)]) @ toward,
        np.array([-np.sin(yaw), np.cos(yaw)]) @ toward,
    )
    return float(np.abs(turned) @ track.blocks.half[number, :2])


def _is_clear(track: Track, number: int, begin: Array, end: Array) -> bool:
    """Whether a block can slide from begin to end on the table and meet no other block."""
    low, high = TABLETOP[:, 0] - 0.05, TABLETOP[:, 1] + 0.05
    if ((np.minimum(begin, end) < low) | (np.maximum(begin, end) > high)).any():
        return False
    others = np.delete(track.placed[-1], number, 0)[:, :2]
    along = end - begin
    share = np.clip((others - begin) @ along / (along @ along), 0, 1)
    return bool((np.linalg.norm(begin + share[:, None] * along - others, axis=1) > 0.1).all())


def _free_spot(track: Track, rng: np.random.Generator, number: int) -> Array | None:
    """A place [2] for a block, away from the others and far from where it is."""
    others = np.delete(track.placed[-1], number, 0)[:, :2]
    here = track.block(number)[:2]
    for spot in rng.uniform(TABLETOP[:, 0], TABLETOP[:, 1], (32, 2)):
        is_far = np.linalg.norm((spot - here) * SIDEWAYS[:2]) > 0.3
        if is_far and (np.linalg.norm(others - spot, axis=1) > 0.12).all():
            return spot
    return None
