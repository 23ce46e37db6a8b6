"""What an mp4 says of itself, and whether all it speaks of is there, without decoding a frame.

Decoding costs a hundred times more than copying. A copy that was cut, overwritten or never filled
shows in the boxes (ISO/IEC 14496-12): a sample that lies beyond the end, or whose NAL units, each
with its length before it (14496-15), do not add up to the sample. What only a decoder notices, such
as a flipped bit inside a picture, is left to `inspect --verify`.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

NAL_CODECS = {"avc1", "avc3", "hvc1", "hev1"}
HEAD = struct.Struct(">I4s")  # of a box: its bytes and its kind
FORBIDDEN_BIT = 0x80  # the first bit of every NAL unit, zero in H.264 and H.265
SECTOR, ZEROS = 256, 8
"""NAL units hold no three zeros in a row (H.264, 7.4.1), so a hole of one disk sector (512 bytes)
shows when every 256th place is looked at for a run of zeros."""


Boxes = dict[str, tuple[int, int]]
"""Kind -> (begin, end) of the content of the first box of each kind."""


class NotUnderstood(Exception):
    """Not a plain mp4 (fragments, edits, another container): only decoding tells what it holds."""


class Damaged(Exception):
    """What the boxes promise is not in the file."""


@dataclass(frozen=True)
class Track:
    """The first video track of a file."""

    codec: str
    frames: int
    height: int
    width: int
    fps: float
    key_frames: int


def read_track(data: bytes) -> Track:
    """The video track of an mp4 in memory, each of its samples looked at.

    Raises NotUnderstood, or Damaged with what is wrong.
    """
    track, table = _understood(_read, data)
    _understood(_check_samples, data, track.codec, table)
    return track


def read_heading(data: bytes) -> Track:
    """The video track of an mp4 as its boxes describe it, no sample looked at.

    Raises NotUnderstood, or Damaged where not even the boxes are whole.
    """
    return _understood(_read, data)[0]


def _understood(read: Callable[..., T], *arguments: Any) -> T:
    try:
        return read(*arguments)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise NotUnderstood(f"its boxes make no sense: {error!r}") from None


def _read(data: bytes) -> tuple[Track, Boxes]:
    """The first video track, and the boxes that tell where its samples lie."""
    if data[4:8] != b"ftyp":
        raise NotUnderstood("does not begin as an mp4")
    top = boxes(data, 0, len(data))
    if "moov" not in top or "moof" in top:
        raise NotUnderstood("no plain table of its samples")
    for begin, end in children(data, *top["moov"], "trak"):
        trak = boxes(data, begin, end)
        mdia = boxes(data, *trak["mdia"])
        handler = mdia["hdlr"][0]
        if data[handler + 8 : handler + 12] != b"vide":
            continue
        table = boxes(data, *boxes(data, *mdia["minf"])["stbl"])
        track = _track(data, mdia, table)
        if "edts" in trak and _is_cut(data, top["moov"], trak["edts"], table, track):
            raise NotUnderstood("parts of it are cut out by an edit list")
        return track, table
    raise NotUnderstood("holds no video track")


def _track(data: bytes, mdia: Boxes, table: Boxes) -> Track:
    entry = _sample_entry(table)
    codec = data[entry + 4 : entry + 8].decode("ascii")
    width, height = struct.unpack_from(">HH", data, entry + 32)
    frames = len(sample_sizes(data, table["stsz"][0]))
    keys = frames  # a file without a list of key frames has no other ones
    if "stss" in table:
        keys = int.from_bytes(data[table["stss"][0] + 4 : table["stss"][0] + 8], "big")
    return Track(codec, frames, height, width, _rate(data, mdia, table, frames), keys)


def _sample_entry(table: Boxes) -> int:
    return table["stsd"][0] + 8  # behind version, flags and the number of entries


def _check_samples(data: bytes, codec: str, table: Boxes) -> None:
    """Raise Damaged for a sample that is not all there."""
    sizes = sample_sizes(data, table["stsz"][0])
    offsets = sample_offsets(data, table, sizes)
    if len(sizes) and int((offsets + sizes).max()) > len(data):
        first = int(np.argmax(offsets + sizes > len(data)))
        raise Damaged(f"cut off: frame {first} of {len(sizes)} lies beyond its end")
    if codec in NAL_CODECS:
        length = _nal_length_size(data, _sample_entry(table), codec)
        for number, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
            if not _is_whole_sample(data, offset, size, length):
                raise Damaged(f"frame {number} of {len(sizes)} is damaged")
        hole = _find_hole(data, offsets, sizes)
        if hole >= 0:
            raise Damaged(f"frame {hole} of {len(sizes)} is damaged: a hole of zeros")


def boxes(data: bytes, begin: int, end: int) -> Boxes:
    """The boxes that lie in a part of the file."""
    found: Boxes = {}
    for kind, inner, outer in _walk(data, begin, end):
        found.setdefault(kind, (inner, outer))
    return found


def children(data: bytes, begin: int, end: int, kind: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of the content of each box of a kind."""
    return ((a, b) for found, a, b in _walk(data, begin, end) if found == kind)


def _walk(data: bytes, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    at = begin
    while at < end:
        if end - at < 8:
            raise Damaged("cut off in the head of a box")
        size, name = HEAD.unpack_from(data, at)
        kind, head = name.decode("latin-1"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at
        if size < head:
            raise Damaged(f"a box of {size} bytes at byte {at}")
        if at + size > end:
            raise Damaged(f"cut off: {end} bytes of at least {at + size}")
        yield kind, at + head, at + size
        at += size


def sample_sizes(data: bytes, at: int) -> np.ndarray:
    """(T,) bytes of each sample."""
    common, count = struct.unpack_from(">II", data, at + 4)
    if common:
        return np.full(count, common, np.int64)
    return np.frombuffer(data, ">u4", count, at + 12).astype(np.int64)


def sample_offsets(data: bytes, table: Boxes, sizes: np.ndarray) -> np.ndarray:
    """(T,) place of each sample: samples follow each other within a chunk, chunks lie anywhere."""
    if "stco" in table:
        at, kind = table["stco"][0], ">u4"
    else:
        at, kind = table["co64"][0], ">u8"
    count = int.from_bytes(data[at + 4 : at + 8], "big")
    chunks = np.frombuffer(data, kind, count, at + 8).astype(np.int64)
    at = table["stsc"][0]
    count = int.from_bytes(data[at + 4 : at + 8], "big")
    runs = np.frombuffer(data, ">u4", 3 * count, at + 8).reshape(count, 3).astype(np.int64)
    lengths = np.diff(np.append(runs[:, 0], len(chunks) + 1))  # chunks of each run
    per_chunk = np.repeat(runs[:, 1], lengths)
    if per_chunk.sum() != len(sizes):
        raise Damaged(f"{per_chunk.sum()} frames in its chunks, {len(sizes)} in its table")
    ends = np.cumsum(sizes)
    first = np.cumsum(per_chunk) - per_chunk  # the number of each chunk's first sample
    before = np.concatenate([[0], ends])[first]
    return np.repeat(chunks - before, per_chunk) + ends - sizes


def _nal_length_size(data: bytes, entry: int, codec: str) -> int:
    """Bytes of a NAL unit's length, from the decoder configuration inside the sample entry."""
    size = int.from_bytes(data[entry : entry + 4], "big")
    kind, place = ("avcC", 4) if codec.startswith("avc") else ("hvcC", 21)
    at = boxes(data, entry + 86, entry + size)[kind][0]
    return (data[at + place] & 3) + 1


def _is_whole_sample(data: bytes, offset: int, size: int, length: int) -> bool:
    at, end = offset, offset + size
    while at + length < end:
        unit = int.from_bytes(data[at : at + length], "big")
        if not unit or data[at + length] & FORBIDDEN_BIT:
            return False
        at += length + unit
    return at == end and size > 0


def _find_hole(data: bytes, offsets: np.ndarray, sizes: np.ndarray) -> int:
    """The number of a sample with a run of zeros in it; -1 when there is none."""
    begin, end = int(offsets.min()), int((offsets + sizes).max())
    whole = np.frombuffer(data, np.uint8)[begin:end]
    rows = whole[: len(whole) // SECTOR * SECTOR].reshape(-1, SECTOR)[:, :ZEROS]
    for place in begin + SECTOR * np.flatnonzero(~rows.any(axis=1)):
        number = int(np.argmax(place < offsets + sizes)) if (place < end) else -1
        if offsets[number] <= place and place + ZEROS <= offsets[number] + sizes[number]:
            return number  # samples of other tracks lie between: zeros there are none of ours
    return -1


def _is_cut(
    data: bytes,
    moov: tuple[int, int],
    edts: tuple[int, int],
    table: Boxes,
    track: Track,
) -> bool:
    """Whether an edit list hides frames; one that makes up for the delay of B frames does not."""
    at = boxes(data, *edts)["elst"][0]
    version, count = data[at], int.from_bytes(data[at + 4 : at + 8], "big")
    if count != 1:
        return count != 0
    duration, start = struct.unpack_from(">Qq" if version else ">Ii", data, at + 8)
    delay = 0
    if "ctts" in table:
        delay = int.from_bytes(data[table["ctts"][0] + 12 : table["ctts"][0] + 16], "big")
    head = boxes(data, *moov)["mvhd"][0]
    shown = duration / time_scale(data, head) * track.fps
    return not 0 <= start <= delay or shown < track.frames - 0.5


def time_scale(data: bytes, at: int) -> int:
    """Units a second, from the content of an `mvhd` or `mdhd`."""
    return int.from_bytes(data[at + 20 : at + 24] if data[at] else data[at + 12 : at + 16], "big")


def _rate(data: bytes, mdia: Boxes, table: Boxes, frames: int) -> float:
    """Frames per second from the samples' durations; 0 when the file does not say."""
    scale = time_scale(data, mdia["mdhd"][0])
    at = table["stts"][0]
    count = int.from_bytes(data[at + 4 : at + 8], "big")
    runs = np.frombuffer(data, ">u4", 2 * count, at + 8).reshape(count, 2).astype(np.int64)
    total = int((runs[:, 0] * runs[:, 1]).sum())
    return frames * scale / total if total else 0.0
