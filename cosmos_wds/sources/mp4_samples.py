"""The samples of an mp4, found by reading its head alone, and new mp4s made of some of them.

A sample is one coded frame. Samples lie in decoding order; the order in which they are shown can
differ. Boxes are those of ISO/IEC 14496-12. What is written depends on nothing but the samples, so
the same cut gives the same bytes on every machine.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cosmos_wds.data.mp4 import (
    Damaged,
    NotUnderstood,
    boxes,
    children,
    sample_offsets,
    sample_sizes,
    time_scale,
)
from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import DataError
from cosmos_wds.sources.kept import once_per_file

HEAD = 4096  # bytes asked for at once while the boxes of a file are looked through
COPIED = ("hdlr", "stsd", "vmhd", "dinf")  # boxes that a new file has word for word
FILE_TYPE = b"isom\0\0\2\0isomiso2mp41"
UNDETERMINED = 0x55C4  # "und", a language
MATRIX = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
SHAPE_BYTES = 60  # the end of a track's head: layer, matrix, width, height


@dataclass(frozen=True, eq=False)
class Samples:
    """The video samples of a file, N of them, in decoding order; times in units of 1/`scale` s."""

    scale: int
    offsets: np.ndarray
    sizes: np.ndarray
    durations: np.ndarray
    delays: np.ndarray
    """From decoding to showing, never below zero."""
    shown: np.ndarray
    """When each is shown, as players count: the edit list is applied."""
    is_key: np.ndarray
    file_bytes: int
    copied: Mapping[str, bytes]
    shape: bytes
    """The end of the track's head."""

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def order(self) -> np.ndarray:
        """Their numbers in the order in which they are shown."""
        return np.argsort(self.shown, kind="stable")

    @cached_property
    def seconds(self) -> np.ndarray:
        """When they are shown, in that order."""
        return self.shown[self.order] / self.scale


@once_per_file(16)
def read_samples(storage: Storage, file: str) -> Samples:
    """The video samples of an mp4. Raises DataError when it is not a plain one."""
    size = storage.size(file)
    try:
        moov = _find_moov(storage, file, size)
        for begin, end in children(moov, 0, len(moov), "trak"):
            mdia = boxes(moov, *boxes(moov, begin, end)["mdia"])
            handler = mdia["hdlr"][0]
            if moov[handler + 8 : handler + 12] == b"vide":
                return _read(moov, boxes(moov, begin, end), mdia, size)
        raise NotUnderstood("holds no video")
    except (NotUnderstood, Damaged) as error:
        raise DataError(f"{file}: {error}") from None
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise DataError(f"{file}: its boxes make no sense: {error!r}") from None


def _find_moov(storage: Storage, file: str, size: int) -> bytes:
    """The content of the box that describes the samples; it often lies behind them."""
    at, head, begin = 0, b"", 0
    while at < size:
        if not begin <= at <= begin + len(head) - 16:
            head, begin = storage.read_range(file, at, HEAD), at
        length, kind = struct.unpack_from(">I4s", head, at - begin)
        inner = 8
        if length == 1:
            (length,), inner = struct.unpack_from(">Q", head, at - begin + 8), 16
        length = length or size - at
        if at == 0 and kind != b"ftyp":
            raise NotUnderstood("not an mp4")
        if length < inner or at + length > size:
            raise Damaged(f"cut off or damaged: {size} bytes of at least {at + length}")
        if kind == b"moov":
            return storage.read_range(file, at + inner, length - inner)
        at += length
    raise NotUnderstood("no table of its frames; it is cut off, or not a plain mp4")


def _read(
    moov: bytes,
    trak: Mapping[str, tuple[int, int]],
    mdia: Mapping[str, tuple[int, int]],
    file_bytes: int,
) -> Samples:
    minf = boxes(moov, *mdia["minf"])
    table = boxes(moov, *minf["stbl"])
    if _count(moov, table["stsd"][0]) != 1:
        raise NotUnderstood("its frames have several descriptions")
    places = {**mdia, **minf, **table}
    size = sample_sizes(moov, table["stsz"][0])
    if not len(size):
        raise NotUnderstood("holds no frame, or no plain table of them")
    durations = _runs(moov, table["stts"][0], len(size))
    delays = np.zeros(len(size), np.int64)
    if "ctts" in table:
        delays = _runs(moov, table["ctts"][0], len(size))
    is_key = np.ones(len(size), bool)
    if "stss" in table:
        at = table["stss"][0]
        keys = np.frombuffer(moov, ">u4", _count(moov, at), at + 8).astype(np.int64)
        is_key = np.isin(np.arange(len(size)), keys - 1)
    begins = np.cumsum(durations) - durations
    return Samples(
        scale=time_scale(moov, mdia["mdhd"][0]),
        offsets=sample_offsets(moov, table, size),
        sizes=size,
        durations=durations,
        delays=delays - delays.min(),
        shown=begins + delays - _hidden(moov, trak),
        is_key=is_key,
        file_bytes=file_bytes,
        copied={kind: moov[slice(*places[kind])] for kind in COPIED},
        shape=moov[trak["tkhd"][1] - SHAPE_BYTES : trak["tkhd"][1]],
    )


def _count(moov: bytes, at: int) -> int:
    return int.from_bytes(moov[at + 4 : at + 8], "big")


def _runs(moov: bytes, at: int, wanted: int) -> np.ndarray:
    """(wanted,) numbers that a table holds as (how often, number)."""
    runs = np.frombuffer(moov, ">i4", 2 * _count(moov, at), at + 8).reshape(-1, 2).astype(np.int64)
    numbers = np.repeat(runs[:, 1], runs[:, 0])
    if len(numbers) != wanted:
        raise Damaged(f"times of {len(numbers)} frames, sizes of {wanted}")
    return numbers


def _hidden(moov: bytes, trak: Mapping[str, tuple[int, int]]) -> int:
    """How much of the beginning players do not show: the delay of reordered frames, as a rule."""
    edits = boxes(moov, *trak["edts"]) if "edts" in trak else {}
    if "elst" not in edits:
        return 0
    at = edits["elst"][0]
    if _count(moov, at) != 1:
        raise NotUnderstood("its edit list has several parts")
    _, start = struct.unpack_from(">Qq" if moov[at] else ">Ii", moov, at + 8)
    return int(start)


def read_bytes(storage: Storage, file: str, samples: Samples, first: int, last: int) -> list[bytes]:
    """Samples `first` to `last` of a file, by one ranged read. Raises DataError when cut off."""
    begins, ends = samples.offsets[first : last + 1], samples.sizes[first : last + 1].copy()
    ends += begins
    low, high = int(begins.min()), int(ends.max())
    content = storage.read_range(file, low, high - low)
    if len(content) < high - low:
        raise DataError(f"{file}: cut off: a frame lies at byte {high}, beyond its end")
    pairs = zip((begins - low).tolist(), (ends - low).tolist(), strict=True)
    return [content[begin:end] for begin, end in pairs]


def write_mp4(samples: Samples, first: int, content: list[bytes]) -> bytes:
    """An mp4 of consecutive samples from `first`, which is a key frame and shown from time 0 on."""
    part = slice(first, first + len(content))
    durations, delays = samples.durations[part], samples.delays[part]
    head = _box("ftyp", FILE_TYPE)
    offset = 0
    for _ in range(2):  # the place of the samples depends on the length of what tells it
        table = _table(samples, part, content, offset)
        moov = _movie(samples, table, int(durations.sum()), int(delays[0]))
        offset = len(head) + len(moov) + 8
    return b"".join([head, moov, _box("mdat", *content)])


def _movie(samples: Samples, table: bytes, duration: int, delay: int) -> bytes:
    scale, copied = samples.scale, samples.copied
    movie = struct.pack(">5IIH10x", 0, 0, 0, scale, duration, 1 << 16, 1 << 8)
    track = struct.pack(">6I", 3, 0, 0, 1, 0, duration)
    edit = struct.pack(">5I", 0, 1, duration, delay, 1 << 16)
    media = struct.pack(">5I2H", 0, 0, 0, scale, duration, UNDETERMINED, 0)
    return _box(
        "moov",
        _box("mvhd", movie, MATRIX, bytes(24), struct.pack(">I", 2)),
        _box(
            "trak",
            _box("tkhd", track, samples.shape),
            _box("edts", _box("elst", edit)),
            _box(
                "mdia",
                _box("mdhd", media),
                _box("hdlr", copied["hdlr"]),
                _box("minf", _box("vmhd", copied["vmhd"]), _box("dinf", copied["dinf"]), table),
            ),
        ),
    )


def _table(samples: Samples, part: slice, content: list[bytes], offset: int) -> bytes:
    count = len(content)
    keys = np.flatnonzero(samples.is_key[part]) + 1
    return _box(
        "stbl",
        _box("stsd", samples.copied["stsd"]),
        _box("stts", *_as_runs(samples.durations[part])),
        _box("ctts", *_as_runs(samples.delays[part])),
        _box("stss", struct.pack(">2I", 0, len(keys)), keys.astype(">u4").tobytes()),
        _box("stsc", struct.pack(">5I", 0, 1, 1, count, 1)),
        _box("stsz", struct.pack(">3I", 0, 0, count), samples.sizes[part].astype(">u4").tobytes()),
        _box("stco", struct.pack(">3I", 0, 1, offset)),
    )


def _as_runs(numbers: np.ndarray) -> Iterator[bytes]:
    begins = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    lengths = np.diff(np.append(begins, len(numbers)))
    yield struct.pack(">2I", 0, len(begins))
    yield np.column_stack([lengths, numbers[begins]]).astype(">u4").tobytes()


def _box(kind: str, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind.encode()) + content
