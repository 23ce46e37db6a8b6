"""How inspection gets at a set: episodes spread evenly and read whole, words made harmless."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.data.video import DECODERS
from cosmos_wds.errors import DataError


@dataclass(frozen=True, eq=False)
class Sample:
    """One episode of a set, to be shown.

    action   (T-1, A) float32, physical units
    video    the first camera's file; empty where the set holds latents only
    """

    split: str
    key: str
    frames: int
    about: dict[str, Any]
    action: np.ndarray
    video: bytes
    codec: str
    """Codec and pixel format, as in `h264 yuv420p`; empty without a video."""

    @property
    def text(self) -> str:
        return str(self.about.get("text") or "")


def samples(index: ShardIndex, most: int) -> Iterator[Sample]:
    """At most `most` episodes of each split, read whole one after the other. Raises DataError."""
    for name in index.splits:
        split = index.split(name)
        for row in spread(len(split.rows), most):
            member, video, codec = first_video(split, row), b"", ""
            if member:
                video = split.read(row, member)
                codec = video_codec(video, split.name(row, member))
            yield Sample(
                split=name,
                key=split.rows[row].key,
                frames=split.rows[row].frames,
                about=read_about(split, row),
                action=_action(split, row),
                video=video,
                codec=codec,
            )


def read_about(index: SplitIndex, row: int) -> dict[str, Any]:
    """What is known of an episode. Raises DataError for JSON that is something else."""
    about = index.read_json(row)
    if not isinstance(about, dict):
        raise DataError(f"{index.name(row, 'json')}: not a table")
    return about


def _action(index: SplitIndex, row: int) -> np.ndarray:
    action = index.read_array(row, "action.npy")
    wanted = (index.rows[row].frames - 1, len(index.contract.names))
    if action.shape != wanted:
        raise DataError(f"{index.name(row, 'action.npy')}: shape {action.shape}, must be {wanted}")
    return action


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly apart, the first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def first_video(index: SplitIndex, row: int) -> str:
    """The first camera's member, or nothing where there is no video."""
    return next((name for name in index.rows[row].members if name.endswith("mp4")), "")


def video_codec(video: bytes, name: str) -> str:
    """Codec and pixel format of a video file, as in `h264 yuv420p`. Raises DataError."""
    import av

    try:
        with av.open(io.BytesIO(video)) as container:
            found = container.streams.video[0].codec_context
            return f"{DECODERS.get(found.name, found.name)} {found.pix_fmt}"
    except (av.FFmpegError, IndexError, OSError):
        raise DataError(f"{name}: is no video that can be opened") from None


def plain(text: str) -> str:
    """Text of others without what would move a terminal's cursor or change its colours."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
