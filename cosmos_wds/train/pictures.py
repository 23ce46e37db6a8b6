"""Film strips: rollouts below the recording, frames from left to right, as one picture."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cosmos_wds.config import write_bytes
from cosmos_wds.errors import DataError

COLUMNS = 9
"""Frames of a strip at most, spread evenly over the video."""
WIDTH = 160
"""About how wide one frame of a strip gets."""
GAP, GREY = 4, 128


def film_strip(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Videos (T, H, W, 3) uint8 of one size, one below the other -> a picture (H', W', 3)."""
    count, height, width = videos[0].shape[:3]
    chosen = np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int)
    # Whole multiples of small pictures: their pixels stay square and sharp.
    factor = max(1, round(WIDTH / width)) if width <= WIDTH else WIDTH / width
    size = (round(width * factor), round(height * factor))
    method = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
    rows = []
    for video in videos:
        frames = [np.array(Image.fromarray(video[t]).resize(size, method)) for t in chosen]
        rows.append(_joined(frames, axis=1))
    return _joined(rows, axis=0)


def _joined(parts: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    """Pictures side by side along an axis, with a grey line between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    line = np.full(shape, GREY, np.uint8)
    return np.concatenate([piece for part in parts for piece in (line, part)][1:], axis=axis)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8. Raises DataError when the disk refuses."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", optimize=True)
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
