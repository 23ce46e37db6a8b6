"""The action contract, and poses <-> relative actions (spec.md a). T frames; float64; numpy only.

Pose: x y z (m), roll pitch yaw (rad). Action of frame k: the pose seen from a reference frame's
end effector, and the gripper of frame k itself. Rotation: R(r, p, y) = Rz(y) Ry(p) Rx(r).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from cosmos_wds.data.episode import Episode
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import POSE_NAMES, POSE_UNITS, ActionSettings

NAMES, UNITS = POSE_NAMES, POSE_UNITS
SINGULAR = 1e-6  # below this cosine of the pitch, roll and yaw turn about one axis
ORTHOGONAL = 1e-6  # Frobenius norm of I - R'R that a rotation stays below


@dataclass(frozen=True, kw_only=True)
class ActionContract:
    """What an action's numbers mean; it travels with shards, checkpoints and rollouts.

    Shards hold actions in physical units. Networks see them multiplied by `scale`.
    """

    signal: Literal["state", "command"] = "state"
    """`state`: relative pose between measured states; `command`: the recorded `action` rows."""
    frame: Literal["previous", "first", "recorded"] = "previous"
    """Whose end-effector frame the pose is seen from: the previous frame's, the window's first
    one's, or whatever the recording says (`command`)."""
    names: tuple[str, ...] = NAMES
    units: tuple[str, ...] = UNITS
    euler: str = "R = Rz(yaw) Ry(pitch) Rx(roll), angles in (-pi, pi]"
    gripper: str = "0 closed .. 1 open, of the later frame, not a difference"
    scale: tuple[float, ...] = (20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 1.0)
    fps: float = 5.0

    @classmethod
    def from_settings(cls, settings: ActionSettings) -> "ActionContract":
        """The contract that a pipeline's [actions] describes."""
        frame: Literal["previous", "first", "recorded"] = "previous"
        if settings.signal == "command":
            frame = "recorded"
        elif settings.accumulate:
            frame = "first"
        is_pose = settings.names == NAMES
        return cls(
            signal=settings.signal,
            frame=frame,
            names=settings.names,
            units=settings.units,
            euler=cls.euler if is_pose else "",
            gripper=cls.gripper if "gripper" in settings.names else "",
            scale=settings.scale,
            fps=settings.fps,
        )

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "ActionContract":
        """Read what `to_dict` wrote; a stored digest that disagrees raises DataError."""
        known = {f.name for f in fields(cls)}
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        stored = given.pop("digest", None)
        unknown = sorted(set(given) - known)
        if unknown or set(given) != known:
            what = unknown or sorted(known - set(given))
            raise DataError(f"action contract: {', '.join(what)}: unknown or missing key")
        contract = cls(**given)
        if stored not in (None, contract.digest):
            raise DataError(
                f"action contract: digest {stored} is not its content's; was it edited?"
            )
        return contract

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, with the digest."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**plain, "digest": self.digest}

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change whenever a number or a meaning does."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def accumulate(self) -> bool:
        """Whether poses are seen from the window's first frame."""
        return self.frame == "first"

    def differences(self, other: "ActionContract") -> Iterator[str]:
        """One line for each field in which `other` says something else."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                yield f"{field.name}: {ours} here, {theirs} there"

    def scaled(self, action: np.ndarray) -> np.ndarray:
        """Physical units -> what the network sees: multiplied in float64, then float32."""
        return (np.asarray(action, np.float64) * np.asarray(self.scale)).astype(np.float32)

    def unscaled(self, action: np.ndarray) -> np.ndarray:
        """What the network sees -> physical units, float64."""
        return np.asarray(action, np.float64) / np.asarray(self.scale)

    def episode_actions(self, episode: Episode) -> np.ndarray:
        """The `action.npy` of an episode: (T-1, A) float32, one row per step, physical units.

        It does not know windows: rows of a contract with `accumulate` come from `window_actions`.
        Raises DataError when the episode has not what the contract speaks of.
        """
        self.check(episode)
        if self.signal == "state":
            return relative_actions(episode.state).astype(np.float32)
        assert episode.command is not None
        return episode.command.astype(np.float32)

    def check(self, episode: Episode) -> None:
        """Raise DataError when the episode has not what the contract speaks of."""
        if self.signal == "state":
            width = episode.state.shape[1]
            if width != len(NAMES):
                raise DataError(
                    f"state: {width} numbers a frame, and actions between poses need "
                    f'{len(NAMES)} ({" ".join(NAMES)}); use actions.signal = "command"'
                )
            return
        if episode.command is None:
            what = episode.command_problem or "action: missing"
            raise DataError(f'{what}, and actions.signal = "command" needs it')
        width = episode.command.shape[1]
        if width != len(self.names):
            raise DataError(
                f"action: {width} numbers a step, and the contract names {len(self.names)} "
                f"({' '.join(self.names)}); set actions.names, units and scale"
            )

    def window_actions(
        self, state: np.ndarray, action: np.ndarray, *, start: int, frames: int, interval: int = 1
    ) -> np.ndarray:
        """One window's actions in physical units, (frames-1, 7), from an episode's members.

        `state` (T, 7), `action` (T-1, 7) as the shards hold them. Neighbouring frames take rows of
        `action`, which are more precise than differences of float32 states. A window that skips
        frames needs states, because recorded commands of skipped steps cannot be added up.
        """
        if self.signal == "command" and interval != 1:
            raise DataError(
                f"interval = {interval}: recorded commands cannot be joined over skipped frames; "
                'use interval = 1, or shards with actions.signal = "state"'
            )
        if interval == 1 and not self.accumulate:
            return np.asarray(action[start : start + frames - 1], np.float64)
        picked = state[start : start + (frames - 1) * interval + 1 : interval]
        return relative_actions(picked, accumulate=self.accumulate)


def rotation(euler: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw (..., 3) -> matrices (..., 3, 3): Rz(y) Ry(p) Rx(r)."""
    euler = np.asarray(euler, np.float64)
    sines, cosines = np.sin(euler), np.cos(euler)
    sr, sp, sy = sines[..., 0], sines[..., 1], sines[..., 2]
    cr, cp, cy = cosines[..., 0], cosines[..., 1], cosines[..., 2]
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    matrix = np.empty((*euler.shape[:-1], 3, 3))
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            matrix[..., i, j] = value
    return matrix


def euler(matrix: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) -> roll, pitch, yaw (..., 3) in (-pi, pi]; yaw is 0 when singular."""
    r = np.asarray(matrix, np.float64)
    defect = np.linalg.norm(np.eye(3) - np.swapaxes(r, -1, -2) @ r, axis=(-2, -1))
    assert np.all(defect < ORTHOGONAL), f"not a rotation: |I - R'R| = {np.max(defect):.3g}"
    level = np.hypot(r[..., 0, 0], r[..., 1, 0])
    is_singular = level < SINGULAR
    roll = np.where(
        is_singular,
        np.arctan2(-r[..., 1, 2], r[..., 1, 1]),
        np.arctan2(r[..., 2, 1], r[..., 2, 2]),
    )
    yaw = np.where(is_singular, 0.0, np.arctan2(r[..., 1, 0], r[..., 0, 0]))
    angles = np.stack([roll, np.arctan2(-r[..., 2, 0], level), yaw], -1)
    return np.where(angles <= -np.pi, np.pi, angles)


def relative_actions(state: np.ndarray, *, accumulate: bool = False) -> np.ndarray:
    """States (T, 7) -> actions (T-1, 7), float64.

    Frame k is seen from frame k-1, or from frame 0 with `accumulate`; the gripper is frame k's.
    """
    state = np.asarray(state, np.float64)
    assert state.ndim == 2 and state.shape[1] == 7, state.shape
    matrix = rotation(state[:, 3:6])
    reference = slice(0, 1) if accumulate else slice(0, -1)
    to_reference = np.swapaxes(matrix[reference], -1, -2)  # R'
    distance = state[1:, :3] - state[reference, :3]
    moved = (to_reference @ distance[..., None])[..., 0]  # R' (p - p_ref)
    turned = euler(to_reference @ matrix[1:])
    return np.concatenate([moved, turned, state[1:, 6:]], axis=1)


def integrate(first: np.ndarray, action: np.ndarray, *, accumulate: bool = False) -> np.ndarray:
    """The way back: first state (7,) and actions (T-1, 7) -> states (T, 7), float64."""
    states = [np.asarray(first, np.float64)]
    for row in np.asarray(action, np.float64):
        reference = states[0] if accumulate else states[-1]
        matrix = rotation(reference[3:6])
        turned = euler(matrix @ rotation(row[3:6]))
        states.append(np.concatenate([reference[:3] + matrix @ row[:3], turned, row[6:]]))
    return np.stack(states)
