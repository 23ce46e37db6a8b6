"""Gunzip that can begin again in the middle, so that a broken download need not start over.

Deflate looks back 32 KiB and its blocks begin at any bit, so there is no way into a gzip file but
with a note of what came before: a `Point`. Libraries that make such notes (zlib's own example zran,
indexed_gzip, rapidgzip) were tried: read as a stream, indexed_gzip inflates again from its last
note at every read and let a wrong checksum pass, and rapidgzip can only save its notes at the end.
Python's zlib tells no block boundaries, but lets us find one, prove it, and enter there:

find    where the bits look like the head of a block (RFC 1951, 3.2.3 to 3.2.7), a copy of the
        inflater is given an empty last block instead; only at a boundary does it end there.
prove   what an inflater that enters at this place makes of the bytes behind it must equal what the
        running one makes of them. A point that fails is dropped, and the next one serves.
enter   zlib starts at whole bytes, so blocks that hold nothing fill up the bits in front.

The checksum is carried in the point, so gzip's own CRC-32 and length are compared at the end
however often reading was broken off.
"""

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WINDOW = 1 << 15
SPACING = 128 << 20  # bytes of the archive from one point to the next
SEARCH = 256 << 10  # bytes that are searched for a boundary; stored blocks have up to 64 KiB
SLICE = 1 << 20  # bytes inflated at once
EMPTY_LAST = 0b011  # a last block that holds nothing, 10 bits: last, fixed codes, end of block
EMPTY = (0b010, 10)  # the same, but not the last; its 10 bits reach every second bit of a byte
EMPTY_ODD = (0x5AFFF90000000000901C004, 93)  # with codes of its own: an odd number of bits


class Damaged(Exception):
    """The compressed bytes are not what their writer wrote."""


@dataclass(frozen=True)
class Point:
    """A place where reading can begin again. The defaults are the start of any file."""

    compressed: int = 0
    """Byte of the archive."""
    bit: int = 0
    """Of that byte."""
    content: int = 0
    """Bytes of content before it, in all."""
    crc: int = 0
    """Checksum of the content before it, in this gzip member."""
    length: int = 0
    """Bytes of content before it, in this member."""
    window: bytes = b""


class Content:
    """What an archive holds, uncompressed: gzip, or anything else as it is. Read by iterating."""

    def __init__(self, chunks: Iterator[bytes], start: Point) -> None:
        self.chunks, self.start = chunks, start
        self.points: deque[Point] = deque(maxlen=4)
        self.crc, self.length, self.members = start.crc, start.length, 0
        self.content, self.window = start.content, start.window
        self.position = start.compressed
        """Of the next byte that `_take` gives."""
        self.pending = b""
        self.is_done = False
        """Whether all content has come by, so that only what stands behind it can be wrong."""

    def __iter__(self) -> Iterator[bytes]:
        is_start = self.start == Point()
        if self.start.window or (is_start and self._peek(2) == b"\x1f\x8b"):
            yield from self._inflate()
            return
        while data := self._take(SLICE):
            self._note(data)
            yield data
            if self.position - self.points_at >= SPACING:
                point = Point(self.position, 0, self.content, self.crc, self.length)
                self.points.append(point)

    @property
    def points_at(self) -> int:
        """Where in the archive the last point is."""
        return self.points[-1].compressed if self.points else self.start.compressed

    def _inflate(self) -> Iterator[bytes]:
        """All members of a gzip file, one behind the other."""
        inflater, head = self._enter_first()
        while True:
            yield from self._member(inflater, head)
            self.is_done = True
            check = self._exactly(8)
            if check != self.crc.to_bytes(4, "little") + (self.length % 2**32).to_bytes(
                4, "little"
            ):
                raise Damaged("its checksum is wrong")
            self.members += 1
            if self._peek(2) != b"\x1f\x8b":  # the end, or padding, which gzip passes over
                while self._take(SLICE):
                    pass
                return
            self.crc, self.length, self.window, self.is_done = 0, 0, b"", False
            self._skip_header()
            inflater, head = zlib.decompressobj(-15), b""

    def _enter_first(self) -> "tuple[zlib._Decompress, bytes]":
        if not self.start.window:
            self._skip_header()
            return zlib.decompressobj(-15), b""
        inflater, head = enter(self.start.window, self.start.bit, self._exactly(1)[0])
        return inflater, head

    def _member(self, inflater: "zlib._Decompress", head: bytes) -> Iterator[bytes]:
        """The content of one member; what lies behind it is pending afterwards."""
        while not inflater.eof:
            if self.position - self.points_at >= SPACING and not head:
                self._find_point(inflater)
            data = self._take(SLICE)
            if not data:
                raise Damaged("it is cut off")
            try:
                content = inflater.decompress(head + data)
            except zlib.error as error:
                raise Damaged(str(error)) from None
            head = b""
            self._note(content)
            self.window = (self.window + content)[-WINDOW:]
            yield content
        self._put_back(inflater.unused_data)

    def _find_point(self, inflater: "zlib._Decompress") -> None:
        """Add a point a little ahead, if there is a place for one."""
        found = find_boundary(inflater, self._peek(SEARCH), self.window)
        if found is not None:
            place, before = found
            self.points.append(
                Point(
                    self.position + place // 8,
                    place % 8,
                    self.content + len(before),
                    zlib.crc32(before, self.crc),
                    self.length + len(before),
                    (self.window + before)[-WINDOW:],
                )
            )

    def _note(self, content: bytes) -> None:
        self.crc = zlib.crc32(content, self.crc)
        self.content += len(content)
        self.length += len(content)

    def _skip_header(self) -> None:
        """Pass over a member's header (RFC 1952, 2.3)."""
        head = self._exactly(10)
        if head[:3] != b"\x1f\x8b\x08":
            raise Damaged("not gzip")
        flags = head[3]
        if flags & 4:
            self._exactly(int.from_bytes(self._exactly(2), "little"))
        for flag in (8, 16):  # name, comment
            while flags & flag and self._exactly(1) != b"\0":
                pass
        if flags & 2:
            self._exactly(2)

    def _take(self, limit: int) -> bytes:
        """Some of the next bytes; none at the end."""
        data = self.pending or next(self.chunks, b"")
        self.pending = data[limit:]
        data = data[:limit]
        self.position += len(data)
        return data

    def _put_back(self, data: bytes) -> None:
        self.pending = data + self.pending
        self.position -= len(data)

    def _exactly(self, size: int) -> bytes:
        data = self._peek(size)
        if len(data) < size:
            raise Damaged("it is cut off")
        return self._take(size)

    def _peek(self, size: int) -> bytes:
        while len(self.pending) < size:
            more = next(self.chunks, b"")
            if not more:
                break
            self.pending += more
        return self.pending[:size]


def enter(window: bytes, bit: int, first: int) -> "tuple[zlib._Decompress, bytes]":
    """An inflater for a block that begins at `bit` of the byte `first`, and what to give it for
    that byte.
    """
    filler, bits = EMPTY_ODD if bit % 2 else (0, 0)
    while bits % 8 != bit:
        filler |= EMPTY[0] << bits
        bits += EMPTY[1]
    head = filler | (first >> bit) << bits
    return zlib.decompressobj(-15, zdict=window), head.to_bytes((bits + 8 - bit) // 8, "little")


def find_boundary(
    inflater: "zlib._Decompress", data: bytes, window: bytes
) -> tuple[int, bytes] | None:
    """The first proven block boundary in `data`, which comes next: its bit, and the content before.

    None when there is none, which only means that no point is made here.
    """
    try:
        content = inflater.copy().decompress(data)
    except zlib.error:
        return None  # told when it is read in earnest
    for place in _candidates(data):
        byte, bit = divmod(int(place), 8)
        ending = (data[byte] & (1 << bit) - 1) | EMPTY_LAST << bit
        probe = inflater.copy()
        try:
            before = probe.decompress(data[:byte] + ending.to_bytes(3, "little"))
            if not probe.eof:
                continue
            entered, head = enter((window + before)[-WINDOW:], bit, data[byte])
            if entered.decompress(head + data[byte + 1 :]) == content[len(before) :]:
                return int(place), before
        except zlib.error:
            continue
    return None


def _candidates(data: bytes) -> np.ndarray:
    """Bits at which a block may begin: with codes of its own, or behind one without compression."""
    numbers = np.frombuffer(data, np.uint8)
    bits = np.unpackbits(numbers, bitorder="little")
    longest = 17 + 19 * 3  # of the part of a head that is looked at
    first = bits[: max(0, len(bits) - longest)]  # not the last block, and then 2 for its kind
    starts = np.flatnonzero((first | bits[1:][: len(first)] | ~bits[2:][: len(first)] & 1) == 0)

    def number(at: int, width: int) -> np.ndarray:
        return sum(bits[starts + at + i].astype(np.int32) << i for i in range(width))

    starts = starts[(number(3, 5) <= 29) & (number(8, 5) <= 29)]
    used, space = number(13, 4) + 4, 0
    for i in range(19):
        length = np.where(i < used, number(17 + 3 * i, 3), 0)
        space = space + np.where(length > 0, 128 >> length, 0)
    dynamic = starts[space == 128]
    low, high = numbers[:-1].astype(np.int32), numbers[1:].astype(np.int32)
    words = low | high << 8
    stored = np.flatnonzero(words[:-2] ^ words[2:] == 0xFFFF)
    behind = 8 * (stored + 4 + words[stored])
    return np.unique(np.concatenate([dynamic, behind[behind < len(bits)]]))
