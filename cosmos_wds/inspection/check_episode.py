"""The check of an episode's members: each by itself, with the others, and with the index.

Nothing stops at the first problem. What another problem makes meaningless is passed over.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cosmos_wds.data.actions import relative_actions, rotation
from cosmos_wds.data.index import SplitIndex, load_array, video_member
from cosmos_wds.data.video import probe
from cosmos_wds.data.workers import Tick
from cosmos_wds.errors import DataError
from cosmos_wds.inspection.findings import Findings, Seen
from cosmos_wds.inspection.reach import read_about

PRECISION = 1e-6  # of recomputed actions, relative to the largest number of a state above 1


def check_episodes(index: SplitIndex, tick: Tick) -> Findings:
    """Read all episodes of `index`, a part of a split, one after the other."""
    found = Findings()
    for row in range(len(index.rows)):
        _Episode(index, row, found).check()
        tick()
    return found


class _Episode:
    """One episode under check; problems go to `found`."""

    def __init__(self, index: SplitIndex, row: int, found: Findings) -> None:
        self._index, self._row, self._found = index, row, found
        self._frames = index.rows[row].frames
        self._names = tuple(index.rows[row].members)

    def check(self) -> None:
        """All members."""
        videos = [name for name in self._names if name.endswith("mp4")]
        if not videos and "latent.npy" not in self._names:
            self._say("mp4", "neither a video nor latents")
        about = self._json()
        hashes = [self._video(name, about) for name in videos]
        cameras = about.get("cameras")
        said = [video_member(c) for c in cameras] if isinstance(cameras, list) else []
        if videos and about and said != videos:
            self._say("json", f"cameras {cameras}, there is {', '.join(videos)}")
        if videos and all(hashes) and about.get("video_sha256", hashes) != hashes:
            self._say("json", "video_sha256 is not that of the videos")
        self._arrays()
        row = self._index.rows[self._row]
        self._found.episodes.append(
            Seen(
                split=self._index.split,
                place=f"{self._index.storage.name(row.shard)}: {row.key}",
                key=row.key,
                id=str(about.get("id") or ""),
                source=str(about.get("source_sha256") or ""),
                videos=tuple(hashes),
            )
        )

    def _say(self, member: str, line: str) -> None:
        self._found.problems.append(f"{self._index.name(self._row, member)}: {line}")

    def _json(self) -> dict[str, Any]:
        """What is known of the episode; nothing when that cannot be read."""
        try:
            about = read_about(self._index, self._row)
        except DataError as error:
            self._found.problems.append(str(error))
            return {}
        for key, wanted in (("split", self._index.split), ("frames", self._frames)):
            if about.get(key) != wanted:
                self._say("json", f"{key} is {about.get(key)!r}, the index says {wanted!r}")
        if not about.get("id"):
            self._say("json", "no id")
        return about

    def _video(self, member: str, about: Mapping[str, Any]) -> str:
        """Decode one camera's video whole; returns its sha256, or nothing when it is not there."""
        digest = ""
        try:
            data = self._index.read(self._row, member)
            digest = hashlib.sha256(data).hexdigest()
            facts = probe(data, name=self._index.name(self._row, member))
        except DataError as error:
            self._found.problems.append(str(error))
            return digest
        if facts.frames < self._frames:
            self._say(member, f"{facts.frames} frames, the index says {self._frames}")
        height, width = about.get("height"), about.get("width")
        if about and member == self._names[0] and (height, width) != (facts.height, facts.width):
            self._say(
                member, f"pictures of {facts.height}x{facts.width}, its json says {height}x{width}"
            )
        return digest

    def _arrays(self) -> None:
        """Shapes, types and finite numbers; actions are what their states give."""
        contract, frames = self._index.contract, self._frames
        dimensions = len(contract.names)
        is_from_states = contract.signal == "state"
        action = self._array("action.npy", np.float32, (frames - 1, dimensions))
        state = None
        if is_from_states or "state.npy" in self._names:
            state = self._array("state.npy", np.float32, (frames, None))
        if "latent.npy" in self._names:
            self._array("latent.npy", np.float16, (frames, None, None, None))
        if is_from_states and action is not None and state is not None:
            if state.shape[1] != dimensions:
                self._say("state.npy", f"{state.shape[1]} numbers, an action has {dimensions}")
            elif off := _distance(state, action):
                self._say("action.npy", f"differs by {off:.3g} from what its states give")

    def _array(
        self, member: str, kind: type[np.generic], shape: tuple[int | None, ...]
    ) -> np.ndarray | None:
        """A .npy member of this type and shape (None: any size); nothing where it is not so."""
        try:
            data = self._index.read(self._row, member)
            array = load_array(data, self._index.name(self._row, member))
        except DataError as error:
            self._found.problems.append(str(error))
            return None
        fits = array.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype != kind or not fits:
            have, wanted = _words(array.dtype, array.shape), _words(np.dtype(kind), shape)
            self._say(member, f"{have}, not {wanted}")
            return None
        if bad := int((~np.isfinite(array)).sum()):
            self._say(member, f"{bad} of {array.size} numbers are not finite")
            return None
        return array


def _words(kind: np.dtype, shape: tuple[int | None, ...]) -> str:
    return f"{kind} ({', '.join('any' if size is None else str(size) for size in shape)})"


def _distance(state: np.ndarray, action: np.ndarray) -> float:
    """How far actions are from what states give; 0 within PRECISION.

    Angles count as rotations, which do not jump at half a turn.
    """
    wanted = relative_actions(state).astype(np.float32)
    apart = np.abs(np.delete(wanted - action, [3, 4, 5], axis=1)).max(initial=0)
    turned = np.abs(rotation(wanted[:, 3:6]) - rotation(action[:, 3:6])).max(initial=0)
    largest = float(max(apart, turned))
    return largest if largest > PRECISION * max(1.0, float(np.abs(state).max())) else 0.0
