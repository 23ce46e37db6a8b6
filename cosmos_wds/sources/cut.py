"""An episode out of an mp4 that may hold many: exactly the frames at given times.

Where the episode's samples begin with a key frame and none of another episode lie between them,
they are copied: equal pixels, no loss, one ranged read. LeRobot's files are joined of separately
encoded episodes, so that is the rule. Elsewhere the frames are decoded and encoded again.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cosmos_wds.data.storage import Storage
from cosmos_wds.data.video import decode, encode
from cosmos_wds.errors import DataError
from cosmos_wds.sources.mp4_samples import Samples, read_bytes, read_samples, write_mp4

CRF = 10  # of frames that are encoded again: more than 45 dB on what was encoded before


@dataclass(frozen=True, eq=False)
class CutVideo:
    """Consecutive frames of an mp4, in the order in which they are shown."""

    storage: Storage
    file: str
    samples: Samples
    wanted: np.ndarray
    """(T,) numbers of the samples, as they are shown."""
    fps: float
    """Of the file that is made when frames are encoded again."""

    @property
    def name(self) -> str:
        if len(self.wanted) == len(self.samples):
            return self.file
        begin = self.samples.shown[self.wanted[0]] / self.samples.scale
        return f"{self.file} from {begin:.4f} s"

    @cached_property
    def how(self) -> str:
        """`whole` file, `copied` samples, or `encoded again`."""
        if len(self.wanted) == len(self.samples):
            return "whole"
        first, last = self._span
        is_closed = last - first + 1 == len(self.wanted)
        if is_closed and self.wanted[0] == first and self.samples.is_key[first]:
            return "copied"
        return "encoded again"

    @property
    def _span(self) -> tuple[int, int]:
        """First and last sample in decoding order."""
        return int(self.wanted.min()), int(self.wanted.max())

    def size(self) -> int:
        if self.how == "whole":
            return self.samples.file_bytes
        return int(self.samples.sizes[self.wanted].sum()) + 24 * len(self.wanted) + 1024

    def read(self) -> bytes:
        """The mp4. Raises DataError for what is cut off or does not decode."""
        if self.how == "whole":
            return self.storage.read(self.file)
        if self.how == "copied":
            return self._piece(self._span[0])
        return self._encoded_again()

    def _piece(self, first: int) -> bytes:
        content = read_bytes(self.storage, self.file, self.samples, first, self._span[1])
        return write_mp4(self.samples, first, content)

    def _encoded_again(self) -> bytes:
        """Decoded from the last key frame that comes before, in both orders."""
        shown = self.samples.shown
        before = self.samples.is_key[: self._span[0] + 1].copy()
        before &= shown[: self._span[0] + 1] <= shown[self.wanted[0]]
        if not before.any():
            raise DataError(f"{self.name}: no key frame to decode it from")
        first = int(np.flatnonzero(before)[-1])
        piece = shown[first : self._span[1] + 1]
        visible = np.sort(piece[piece >= shown[first]])  # others need frames from before `first`
        places = np.searchsorted(visible, shown[self.wanted])
        frames = decode(self._piece(first), places.tolist(), decoder="pyav", name=self.name)
        return encode(frames, self.fps, crf=CRF, name=self.name)


def cut(
    storage: Storage, file: str, seconds: np.ndarray, *, tolerance: float, fps: float
) -> CutVideo:
    """The frames of `file` that are shown at `seconds` (T,), each within `tolerance` seconds.

    Raises DataError where there is none, or where they do not follow each other.
    """
    samples = read_samples(storage, file)
    times = samples.seconds
    right = np.searchsorted(times, seconds).clip(0, len(times) - 1)
    left = (right - 1).clip(0)
    nearest = np.where(np.abs(times[left] - seconds) <= np.abs(times[right] - seconds), left, right)
    off = np.abs(times[nearest] - seconds)
    row = int(np.argmax(off > tolerance))
    if off[row] > tolerance:
        raise DataError(
            f"{file}: row {row} of {len(seconds)} is of {seconds[row]:.4f} s, and the nearest "
            f"frame of {times[nearest[row]]:.4f} s; the last one of {times[-1]:.4f} s (tolerance "
            f"{tolerance:g} s)"
        )
    jumps = np.flatnonzero(np.diff(nearest) != 1)
    if len(jumps):
        row = int(jumps[0])
        raise DataError(f"{file}: rows {row} and {row + 1} are not of neighbouring frames")
    return CutVideo(storage, file, samples, samples.order[nearest], fps)
