"""Episodes as samples of a tar: their keys, their members, and headers that never vary.

KEY.mp4           camera 0, byte for byte (others KEY.CAMERA.mp4)
KEY.action.npy    float32 (T-1, A)  physical units, unscaled, as the contract says
KEY.state.npy     float32 (T, S)    poses: x y z (m), roll pitch yaw (rad), gripper 0..1
KEY.json          id, split, fps, sizes, text, source and its hash, unknown keys of the source
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from cosmos_wds.data.episode import Episode, Recording
from cosmos_wds.data.index import BLOCK, video_member
from cosmos_wds.data.video import VideoFacts
from cosmos_wds.errors import DataError

LONGEST_KEY = 80  # leaves room for the member's name in a header
END = bytes(2 * BLOCK)
NAME_BYTES = 100  # of a member, in a plain tar header
LARGE = 1 << 16  # bytes that are not worth a copy to save two calls


def episode_key(split: str, name: str) -> str:
    """The sample's name: split and episode, escaped where tars or webdataset see a meaning.

    Different episodes give different keys, whatever else is in the set: the first underscore ends
    the split, and every other byte than letters, digits, - and _ is written as =hex.
    """
    key = f"{_escaped(split, '-')}_{_escaped(name, '_-')}"
    if len(key) > LONGEST_KEY:
        key = f"{key[: LONGEST_KEY - 33]}={hashlib.sha256(key.encode()).hexdigest()[:32]}"
    return key


def _escaped(text: str, plain: str) -> str:
    raw = text.encode("utf-8", "surrogateescape").decode("latin-1")
    return re.sub(rf"[^A-Za-z0-9{plain}]", lambda m: f"={ord(m[0]):02x}", raw)


def episode_members(  # noqa: PLR0913 (all that a sample is made of)
    episode: Episode,
    recording: Recording,
    actions: np.ndarray,
    videos: Mapping[int, bytes],
    facts: VideoFacts | None,
    fps: float,
) -> dict[str, bytes]:
    """Name without key -> content, in the order of the tar. `facts` are the first camera's."""
    video_members = {video_member(camera): videos[camera] for camera in videos}
    about: dict[str, Any] = {
        "id": episode.id,
        "split": recording.split,
        "fps": fps,
        "container_fps": facts.fps if facts else None,
        "frames": len(episode.state),
        "height": facts.height if facts else None,
        "width": facts.width if facts else None,
        "cameras": list(videos),
        "text": episode.text,
        "source_file": recording.file,
        "source_sha256": episode.source_sha256,
        "extra": dict(episode.extra),
    }
    if episode.command_problem:
        about["extra"] = {**about["extra"], "action_left_out": episode.command_problem}
    return {
        **video_members,
        "action.npy": array_bytes(actions),
        "state.npy": array_bytes(episode.state.astype(np.float32)),
        "json": json.dumps(about).encode(),
    }


def estimated_bytes(episode: Episode, video_bytes: Sequence[int]) -> int:
    """An upper bound of the episode's bytes in a tar, if its videos have the sizes given."""
    words = [episode.id, episode.text, dict(episode.extra)]
    about = len(json.dumps(words)) + 900 + 100 * len(video_bytes)
    widths = episode.state.shape[1] + (0 if episode.command is None else episode.command.shape[1])
    arrays = 512 + 4 * len(episode.state) * max(widths, 14)
    return sum(map(stored_bytes, (*video_bytes, arrays, BLOCK, about)))


def stored_bytes(size: int) -> int:
    """What a member of `size` bytes takes of a tar."""
    return BLOCK + _padded(size)


class ShardWriter:
    """Writes samples to an open file as a tar; the same samples always give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
        """Append one sample; returns each member's (offset, size)."""
        places = {}
        for name, data in members.items():
            header, padding = _header(f"{key}.{name}", len(data)), bytes(-len(data) % BLOCK)
            places[name] = (self.bytes + len(header), len(data))
            pieces = (header, data, padding)
            for piece in pieces if len(data) > LARGE else (b"".join(pieces),):
                self._write(piece)
        return places

    def close(self) -> str:
        """End the tar; returns its sha256. The file stays open."""
        self._write(END)
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)


def _header(name: str, size: int) -> bytes:
    """A member's block as tarfile writes it (POSIX ustar); time, owner and group are 0 and empty.

    Written out because a set has four members an episode, and tarfile takes 60 us for each.
    """
    encoded = name.encode("ascii", "replace")
    if len(encoded) > NAME_BYTES or size >= 8**11:
        raise DataError(f"{name}: does not fit a tar: name of {len(encoded)} bytes, {size} in all")
    before = encoded.ljust(NAME_BYTES, b"\0") + b"0000644\0" + 2 * b"0000000\0"
    before += b"%011o\0" % size + b"00000000000\0"
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return before + b"%06o\0 " % checksum + after


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def array_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
