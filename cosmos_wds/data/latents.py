"""Latent sets: an episode's numbers are mapped into memory where they lie in the tar.

Reading an episode copies nothing: its window is a slice of the file, copied once, into the batch.
So any window is as near as any other, and [data] pool = 0 shuffles the whole epoch.

What is mapped is checked against what must be there: the tar's name of the member, and the bytes
with which a .npy of that shape begins. Where these differ, or the set lies elsewhere than on this
machine, members are read by their offset instead, which also says what is wrong with them.
"""

import io
import math
import mmap
import os
from collections import OrderedDict
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.data.index import BLOCK, SplitIndex
from cosmos_wds.data.reader import ActionWindows, Held, checked
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.data.storage import LocalStorage
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import WindowSettings

LATENT = "latent.npy"
FLOATS = np.dtype("<f4")
FILES = 256  # mapped at a time: each holds a file descriptor
PAGES_BYTES = 2**28  # of mapped files that count as ours, before they are let go
LOOK_EVERY = 256  # members read between two looks at how many these are


class LatentReader:
    """Reads the episodes of sets that hold latents."""

    def __init__(self, sets: ShardSets, window: WindowSettings) -> None:
        """Raises DataError when the latents are of other pictures than the window's."""
        assert sets.latents is not None
        made, self._frames = sets.latents, window.frames
        for key, now in (("height", window.height), ("width", window.width)):
            if (then := getattr(made, key)) != now:
                raise DataError(
                    f"{sets}: latents of {key} {then}, and [window] {key} = {now}; set it to "
                    f"{then}, or make latents of these pictures"
                )
        if window.cameras != (made.camera,):
            raise DataError(
                f"{sets}: latents of camera {made.camera}, and [window] camera = "
                f"{', '.join(map(str, window.cameras))}; set it to {made.camera}"
            )
        self.sets, self.shape = sets, made.shape
        self._dtype = np.dtype(made.dtype).newbyteorder("<")
        self.actions, self._maps = ActionWindows(sets.contract, window), Maps()
        self.is_instant = all(isinstance(part.storage, LocalStorage) for part in sets.parts)

    def read(self, row: int, choice: int = 0) -> Held:
        assert choice == 0
        index, at = self.sets.find(row)
        episode, width = index.rows[at], len(index.contract.names)
        return Held(
            row=row,
            key=episode.key,
            frames=self._maps.array(index, at, LATENT, (episode.frames, *self.shape), self._dtype),
            actions=self.actions.rows(
                lambda member, count: self._maps.array(index, at, member, (count, width), FLOATS),
                episode.frames,
            ),
        )

    def members(self, choice: int) -> list[str]:  # noqa: ARG002 (they are of one camera)
        return [LATENT, self.actions.member]

    def blank(self, count: int, *, pin: bool = False) -> Tensor:
        channels, height, width = self.shape
        shape = (count, channels, self._frames, height, width)
        return torch.empty(shape, dtype=torch.float16, pin_memory=pin)

    def slots(self, blank: Tensor) -> np.ndarray:
        return blank.numpy().transpose(0, 2, 1, 3, 4)

    def as_batch(self, blank: Tensor) -> dict[str, Tensor]:
        return {"latent": blank}


class Maps:
    """Files of this machine in memory: a bounded number of them, and of their pages, at a time.

    Pages that were read stay in the system's cache; what is bounded is how many count as ours.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int, int, int], tuple[mmap.mmap, np.ndarray]]
        self._held, self._reads, self._before = OrderedDict(), 0, _mapped_bytes()

    def __reduce__(self) -> tuple[type["Maps"], tuple[()]]:
        return Maps, ()

    def array(
        self, index: SplitIndex, at: int, member: str, shape: tuple[int, ...], dtype: np.dtype
    ) -> np.ndarray:
        """A .npy member of that shape, without a copy where that can be. Raises DataError."""
        name, head = f"{index.rows[at].key}.{member}\0".encode(), _head(shape, dtype)
        content, begin = self._content(index, at, member), BLOCK + len(head)
        if (
            len(content) == begin + math.prod(shape) * dtype.itemsize
            and content[: len(name)].tobytes() == name
            and content[BLOCK:begin].tobytes() == head
        ):
            return content[begin:].view(dtype).reshape(shape)
        return checked(index, at, member, index.read_array(at, member), shape)

    def _content(self, index: SplitIndex, at: int, member: str) -> np.ndarray:
        """The bytes of a member and of the head before it; none when they cannot be mapped."""
        storage, row = index.storage, index.rows[at]
        if not isinstance(storage, LocalStorage) or member not in row.members:
            return np.empty(0, np.uint8)
        offset, size = row.members[member]
        try:
            return self._file(f"{storage.root}/{row.shard}")[offset - BLOCK : offset + size]
        except (OSError, ValueError):
            return np.empty(0, np.uint8)

    def _file(self, path: str) -> np.ndarray:
        """A file's bytes. One that was replaced or cut off since is another, and mapped anew."""
        facts = os.stat(path)
        key = (path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if key not in self._held:
            with open(path, "rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._held[key] = pages, np.frombuffer(pages, np.uint8)
            if len(self._held) > FILES:
                self._held.popitem(last=False)
        self._reads += 1
        if self._reads % LOOK_EVERY == 0 and _mapped_bytes() - self._before > PAGES_BYTES:
            for pages, _ in self._held.values():
                pages.madvise(mmap.MADV_DONTNEED)
            self._before = _mapped_bytes()
        return self._held[key][1]


def _mapped_bytes() -> int:
    """Pages of files in this process's memory; 0 where the system does not say (Linux does)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


@lru_cache(maxsize=4096)
def _head(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The bytes before the numbers of a .npy."""
    head = io.BytesIO()
    about = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, about)
    return head.getvalue()
