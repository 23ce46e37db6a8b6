"""The libraries that decode mp4: decord and PyAV. Equal pixels on H.264 from both.

tests/test_video.py holds them to it, whatever the chroma sampling, colour matrix and range. Each
reads a file, or its bytes in memory, in one thread: more threads cost more than they bring at the
sizes of robot videos.
"""

import ctypes
import io
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cosmos_wds.errors import DataError

Decoder = Literal["decord", "pyav"]
Source = Path | str | bytes


@cache
def has_decord() -> bool:
    """Whether decord is installed; it has no wheels for arm and macOS."""
    return find_spec("decord") is not None


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
    if frames is None:
        images = [image for _, image in _images(source, None, name)]
        if not images:
            raise DataError(f"{name}: holds no frame")
        return np.stack(images)
    places: dict[int, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame, []).append(place)
    result = np.empty((0, 0, 0, 3), np.uint8)
    for number, image in _images(source, places, name):
        if not len(result):
            result = np.empty((len(frames), *image.shape), np.uint8)
        for place in places[number]:
            result[place] = image
    return result


def _images(
    source: Source, wanted: Collection[int] | None, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Number and pixels of each wanted frame, all when None, in order, as PyAV decodes them.

    Raises DataError when it cannot, or when there is no such frame.
    """
    import av
    from av.video.reformatter import VideoReformatter

    convert = VideoReformatter().reformat
    end = None if wanted is None else max(wanted, default=-1) + 1
    count, size = 0, None
    try:
        with av.open(handle(source)) as container:
            stream = video_stream(container, name)
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if wanted is None or count in wanted:
                    size = checked_size(frame, size, f"{name}: frame {count}")
                    # Threads of its own, its default, take it three times as long.
                    yield count, convert(frame, format="rgb24", threads=1).to_ndarray()
                count += 1
                if count == end:
                    return
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{name}: does not decode: {words(error)}") from None
    check_range(wanted or (), count, name)


_READERS = {"decord": _read_decord, "pyav": _read_pyav}


def handle(source: Source) -> str | io.BytesIO:
    """As libraries open it."""
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def video_stream(container: Any, name: str) -> Any:
    """The video stream of an open container of PyAV's. Raises DataError when there is none."""
    streams = container.streams.video
    if not streams:
        raise DataError(f"{name}: holds no video stream")
    return streams[0]


def checked_size(frame: Any, first: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """Height and width of PyAV's frame. `first`: those of the first frame; None for that one.

    Raises DataError for another size, or for damage, which a decoder conceals and goes on.
    """
    if frame.is_corrupt:
        raise DataError(f"{name} is damaged")
    size = (frame.height, frame.width)
    if size != (first or size):
        raise DataError(f"{name} has another size than the first")
    return size


def check_range(frames: Collection[int], count: int, name: str) -> None:
    """Raise DataError for a frame that a video of `count` frames has not."""
    bad = [i for i in frames if not 0 <= i < count]
    if bad:
        raise DataError(f"{name}: frame {bad[0]} wanted, the video has {count}")


def words(error: Exception) -> str:
    """The first line of a library's error message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
