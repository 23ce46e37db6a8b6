"""The libraries that decode mp4: decord, PyAV, TorchCodec. Equal pixels on H.264 from each.

tests/test_video.py holds them to it, whatever the chroma sampling, colour matrix and range. Each
reads a file, or its bytes in memory, in one thread: more threads cost more than they bring at the
sizes of robot videos.
"""

import ctypes
import io
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cosmos_wds.errors import DataError

Decoder = Literal["decord", "pyav", "torchcodec"]
Source = Path | str | bytes


@cache
def has_decord() -> bool:
    """Whether decord is installed; it has no wheels for arm and macOS."""
    return find_spec("decord") is not None


@cache
def has_torchcodec() -> bool:
    """Whether TorchCodec is installed and loads; it wants FFmpeg's libraries on the system."""
    if find_spec("torchcodec") is None:
        return False
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def read(decoder: Decoder, source: Source, frames: Sequence[int] | None, name: str) -> np.ndarray:
    """Frames as uint8 (T, H, W, 3), all when `frames` is None.

    Raises DataError, which speaks of `name`, for what does not decode or is not there.
    """
    return _READERS[decoder](source, frames, name)


def _read_decord(source: Source, frames: Sequence[int] | None, name: str) -> np.ndarray:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(handle(source), num_threads=1)
        wanted = list(range(len(reader))) if frames is None else frames
        check_range(wanted, len(reader), name)
        result = _lent(reader.get_batch(wanted))
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DataError(f"{name}: decord cannot decode it: {words(error)}") from None
    return result


def _lent(array: Any) -> np.ndarray:
    """A decord array's own memory; its `asnumpy` would copy it, a tenth of small pictures' time."""
    size = int(np.prod(array.shape))
    memory = (ctypes.c_uint8 * size).from_address(array.handle.contents.data)
    memory.owner = array  # which frees it, lives as long as what is seen of it
    return np.frombuffer(memory, np.uint8).reshape(array.shape)


def _read_pyav(source: Source, frames: Sequence[int] | None, name: str) -> np.ndarray:
    import av

    last = None if frames is None else max(frames, default=-1)
    images: list[np.ndarray] = []
    try:
        with av.open(handle(source)) as container:
            stream = video_stream(container, name)
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                images.append(frame.to_ndarray(format="rgb24"))
                if last is not None and len(images) > last:
                    break
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{name}: does not decode: {words(error)}") from None
    if frames is not None:
        check_range(frames, len(images), name)
        images = [images[i] for i in frames]
    if not images:
        raise DataError(f"{name}: no frames")
    return np.stack(images)


def _read_torchcodec(source: Source, frames: Sequence[int] | None, name: str) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    try:
        # `exact` reads the packets' times first, decoding none: a container may promise others.
        reader = VideoDecoder(
            source if isinstance(source, bytes) else str(source),
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )
        wanted = range(len(reader)) if frames is None else frames
        check_range(wanted, len(reader), name)
        return reader.get_frames_at(list(wanted)).data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{name}: torchcodec cannot decode it: {words(error)}") from None


_READERS = {"decord": _read_decord, "pyav": _read_pyav, "torchcodec": _read_torchcodec}


def handle(source: Source) -> str | io.BytesIO:
    """As libraries open it."""
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def video_stream(container: Any, name: str) -> Any:
    """The video stream of an open container of PyAV's. Raises DataError when there is none."""
    streams = container.streams.video
    if not streams:
        raise DataError(f"{name}: holds no video stream")
    return streams[0]


def check_range(frames: Sequence[int], count: int, name: str) -> None:
    """Raise DataError for a frame that a video of `count` frames has not."""
    bad = [i for i in frames if not 0 <= i < count]
    if bad:
        raise DataError(f"{name}: frame {bad[0]} wanted, the video has {count}")


def words(error: Exception) -> str:
    """The first line of a library's error message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
