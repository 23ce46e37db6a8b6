"""Frames made visible: videos side by side, enlarged, as mp4 files; single frames as PNG strips."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cosmos_wds.data.video import write_video
from cosmos_wds.errors import DataError
from cosmos_wds.rollout.episodes import Evaluation

GAP = 4  # pixels between pictures that stand side by side
GREY = 128
VIDEO_WIDTH, STRIP_WIDTH = 256, 160  # about how wide one picture of a film or strip gets
COLUMNS = ("recording", "true actions", "another episode's actions", "first frame")
"""What a film shows, from left to right."""


def beside(*videos: np.ndarray, gap: int = GAP) -> np.ndarray:
    """Videos (T, H, W, 3) of one height, from left to right, with a grey line between them."""
    line = np.full((*videos[0].shape[:2], gap, 3), GREY, np.uint8)
    columns = [part for video in videos for part in (line, video)][1:]
    return np.concatenate(columns, axis=2)


def enlarged(frames: np.ndarray, factor: int) -> np.ndarray:
    """Frames (T, H, W, 3) at `factor` times their size, bicubic."""
    if factor == 1:
        return frames
    height, width = frames.shape[1:3]
    size = (width * factor, height * factor)
    return np.stack([np.array(Image.fromarray(f).resize(size, Image.BICUBIC)) for f in frames])


def films(evaluation: Evaluation, episode: int) -> tuple[np.ndarray, ...]:
    """The four videos of an episode, in the order of COLUMNS."""
    parts = (evaluation.episodes.frames, evaluation.true, evaluation.other, evaluation.copy)
    return tuple(part[episode] for part in parts)


def write_films(folder: Path, evaluation: Evaluation, *, fps: float, count: int) -> list[Path]:
    """Write the first `count` episodes as `episode_KEY.mp4`, COLUMNS side by side.

    Raises DataError when the disk refuses.
    """
    paths = []
    for episode, key in enumerate(evaluation.episodes.keys[:count]):
        videos = films(evaluation, episode)
        factor = max(1, round(VIDEO_WIDTH / videos[0].shape[2]))
        large = beside(*(enlarged(video, factor) for video in videos), gap=GAP * factor // 2)
        paths.append(folder / f"episode_{key}.mp4")
        write_mp4(paths[-1], large, fps)
    return paths


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """`write_video`, with what the disk refuses told as a DataError."""
    import av

    try:
        write_video(path, frames, fps)
    except (OSError, av.error.FFmpegError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from None


def strip(frames: np.ndarray, steps: Sequence[int]) -> bytes:
    """The frames of some steps from left to right, as a PNG."""
    chosen = frames[list(steps)]
    height, width = chosen.shape[1:3]
    if width > STRIP_WIDTH:
        size = (STRIP_WIDTH, round(height * STRIP_WIDTH / width))
        chosen = np.stack([np.array(Image.fromarray(f).resize(size)) for f in chosen])
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(chosen, axis=1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
