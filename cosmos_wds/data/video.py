"""Frames out of mp4 files and into them, and their resize. T frames, H rows, W columns; RGB uint8.

Whichever library decodes (decoders.py), from a file or from memory: a shard's member is never
written to disk.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_wds.config import write_bytes
from cosmos_wds.data.decoders import (
    Decoder,
    Source,
    checked_size,
    handle,
    has_decord,
    read,
    video_stream,
    words,
)
from cosmos_wds.data.mp4 import Damaged, NotUnderstood, Track, read_heading, read_track
from cosmos_wds.errors import DataError

CODECS = {"avc1": "h264", "avc3": "h264", "hvc1": "hevc", "hev1": "hevc", "av01": "av1"}
"""Sample entries of mp4 (14496-15) -> ffmpeg's names of what is in them."""
DECODERS = {"libdav1d": "av1", "libaom-av1": "av1"}
"""Decoders that are not called as what they decode."""


@dataclass(frozen=True)
class VideoFacts:
    """What a video holds: as its container says, or found by decoding it from end to end."""

    frames: int
    height: int
    width: int
    fps: float
    """The container's rate; recordings often say another one than the robot's. 0: it says none."""
    codec: str
    """As ffmpeg calls it: h264, hevc, av1, ..."""


def decode(
    source: Source,
    frames: Sequence[int] | None = None,
    *,
    decoder: Decoder | None = None,
    name: str = "",
) -> np.ndarray:
    """Frames of an mp4 (file or its bytes) as uint8 (T, H, W, 3); all when `frames` is None.

    Without a `decoder`, the fastest that is installed reads, and PyAV what that one cannot: codecs
    such as AV1, or for decord pictures 16, 24 or 48 pixels wide. `name` stands for the video in
    errors. Raises DataError when it cannot be decoded or is shorter than a wanted frame.
    """
    name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    _check_present(source, name)
    wanted = None if frames is None else [int(i) for i in frames]
    chosen = decoder or fastest(source, wanted)
    try:
        return read(chosen, source, wanted, name)
    except DataError:
        if decoder or chosen == "pyav":
            raise
    return read("pyav", source, wanted, name)


def fastest(source: Source, frames: Sequence[int] | None) -> Decoder:
    """Which decoder reads these frames of a video, or all of them, in the least time.

    decord seeks best, PyAV reads whole episodes best: 256x320 at 4,700 frames a second against
    2,600, 480x640 at 830 against 650 (x86, one thread).
    """
    if frames is None or not has_decord():
        return "pyav"
    if not isinstance(source, bytes):
        return "decord"
    try:
        count = read_heading(source).frames
    except (NotUnderstood, Damaged):
        return "decord"
    return "decord" if 2 * len(frames) <= count else "pyav"


def examine(data: bytes, *, name: str) -> VideoFacts:
    """What an mp4 holds, all its pieces looked at and none decoded; other files are decoded.

    Raises DataError for what is cut off or damaged (mp4.py says what that finds, and what not).
    """
    _check_present(data, name)
    track = _track(data, name)
    if track is None:
        return probe(data, name=name)
    codec = CODECS.get(track.codec, track.codec)
    return VideoFacts(track.frames, track.height, track.width, track.fps, codec)


def _track(data: bytes, name: str) -> Track | None:
    """What the container says; None where that cannot be read."""
    try:
        track = read_track(data)
    except NotUnderstood:
        return None
    except Damaged as error:
        raise DataError(f"{name}: {error}") from None
    if not track.frames:
        raise DataError(f"{name}: holds no frame")
    return track


def probe(source: Source, *, name: str = "") -> VideoFacts:
    """Decode every frame once, keeping none. Raises DataError for a damaged or truncated file.

    A decoder conceals damage and goes on, so its flags and the container's promises are checked.
    """
    import av

    name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    _check_present(source, name)
    source = source if isinstance(source, bytes) else Path(source).read_bytes()
    _track(source, name)
    count, size = 0, None
    try:
        with av.open(handle(source)) as container:
            stream = video_stream(container, name)
            promised, rate, codec = stream.frames, stream.average_rate, stream.codec_context.name
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                size = checked_size(frame, size, f"{name}: frame {count}")
                count += 1
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{name}: does not decode after frame {count}: {words(error)}") from None
    if size is None:
        raise DataError(f"{name}: holds no frame")
    if promised and count < promised:
        raise DataError(f"{name}: {count} of {promised} frames decode; the file is damaged")
    return VideoFacts(count, *size, float(rate or 0), DECODERS.get(codec, codec))


def resize(frames: np.ndarray, height: int, width: int, *, exact: bool = False) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 -> (T, height, width, 3) uint8, bilinear with antialiasing.

    Aspect is not preserved, nothing is cropped (spec.md a). uint8 arithmetic rounds where the
    reference truncates: at most one level apart, and twenty times faster than its float path.

    exact   in floats, and truncate, as the reference does
    """
    if frames.shape[1:3] == (height, width):
        return frames
    import torch
    from torch.nn.functional import interpolate

    # (T, 3, H, W) as a view of channels-last memory: the layout of torch's fast uint8 kernel.
    x = torch.from_numpy(np.require(frames, requirements="CW")).permute(0, 3, 1, 2)
    x = x.float() / 255 if exact else x
    y = interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
    y = (y * 255).clamp(0, 255).to(torch.uint8) if exact else y
    return y.permute(0, 2, 3, 1).contiguous().numpy()


def write_video(path: Path | str, frames: np.ndarray, fps: float = 5.0, **options: Any) -> None:
    """Write frames (T, H, W, 3) uint8 as an mp4, whole or not at all; options of `encode`."""
    write_bytes(Path(path), encode(frames, fps, name=str(path), **options))


def encode(  # noqa: PLR0913 (an encoder's settings)
    frames: np.ndarray,
    fps: float = 5.0,
    *,
    crf: int = 18,
    gop: int = 0,
    preset: str = "medium",
    tune: str = "",
    plays_at_once: bool = False,
    name: str = "video",
) -> bytes:
    """Frames (T, H, W, 3) uint8 as H.264 (yuv420p) in an mp4.

    One encoder thread, so that equal frames give equal bytes. `gop` is the longest distance between
    key frames; 0 lets the encoder choose. Odd sizes, which yuv420p cannot hold, are an error.

    plays_at_once   what describes the frames comes before them, so that a browser need not have
                    loaded them all
    """
    import av

    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3, frames.shape
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise DataError(f"{name}: {height}x{width}: H.264 takes even heights and widths only")
    if not len(frames):
        raise DataError(f"{name}: a video needs at least one frame")
    # x264's macroblock tree gives other bytes from run to run at widths that 128 does not divide.
    options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
    if gop:
        options["g"] = str(gop)
    if tune:
        options["tune"] = tune
    form = {"fflags": "bitexact"}
    if plays_at_once:  # room is kept in front: some 700 bytes and at most 28 a frame are taken
        form["moov_size"] = str(2048 + 32 * len(frames))
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", options=form) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return content.getvalue()


def _check_present(source: Source, name: str) -> None:
    if isinstance(source, bytes):
        if not source:
            raise DataError(f"{name}: empty video")
        return
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{name}: no such video file")
    if not path.stat().st_size:
        raise DataError(f"{name}: empty video file")
