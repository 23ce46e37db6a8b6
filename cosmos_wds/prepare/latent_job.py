"""One shard of a latent set: threads read and decode episodes while this one encodes them.

KEY.latent.npy   float16 (T, C, h, w)   frames come first, so that a window is one piece of the file
KEY.action.npy   KEY.state.npy   KEY.json   as they are in the shard set

A member begins at a multiple of 512 bytes of its tar, and the header of a .npy is a multiple of 64:
so the numbers lie aligned, and a reader can map them into memory where they are in the tar.

Each episode is encoded alone, `batch` frames at a time, on a CPU by one thread: on a CPU its
latents are the same bytes whoever works beside it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cosmos_wds.data.index import (
    FORMAT,
    EpisodeRow,
    LatentFormat,
    load_array,
    read_member,
    video_member,
)
from cosmos_wds.data.jobs import Job
from cosmos_wds.data.looks import Rejected
from cosmos_wds.data.samples import Facts, Sample
from cosmos_wds.data.shards import array_bytes, stored_bytes
from cosmos_wds.data.storage import Storage
from cosmos_wds.data.video import decode, resize
from cosmos_wds.data.workers import ahead, worker_number
from cosmos_wds.errors import CheckpointError, DataError, UserError
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.model.tokenizers import open_tokenizer

LATENT = "latent.npy"
CARRIED = ("action.npy", "state.npy", "json")
"""Members that go from the shard set into the latent set byte for byte."""
HEADER = 128
"""Bytes before the numbers of a .npy of four dimensions."""


@dataclass(frozen=True)
class Pixels:
    """An episode before it is encoded.

    frames    (T, H, W, 3) uint8, at the size that is encoded
    members   the carried ones
    """

    row: EpisodeRow
    frames: np.ndarray
    members: dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class LatentJob(Job):
    """One shard, encoded."""

    source: Storage
    """The shard set."""
    rows: tuple[EpisodeRow, ...]
    latents: LatentFormat
    place: str
    """The tokenizer, as `open_tokenizer` takes it."""
    gpus: int = 0
    """How many there are, of which each process takes one; 0 encodes on the CPU."""

    @property
    def digest(self) -> str:
        words = [str(FORMAT), json.dumps(vars(self.latents)), self.name]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    @property
    def frames(self) -> int:
        return sum(row.frames for row in self.rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        of_frame = 2 * int(np.prod(self.latents.shape))
        return tuple(
            stored_bytes(HEADER + row.frames * of_frame)
            + sum(stored_bytes(row.members[name][1]) for name in CARRIED if name in row.members)
            for row in self.rows
        )

    def sample(self, place: int) -> Sample | Rejected:
        return self._encoded(self._pixels(self.rows[place]))

    def samples(self) -> Iterator[Sample | Rejected]:
        with _one_thread():
            for found in ahead(self._pixels, self.rows, threads=self.threads):
                yield self._encoded(found)

    def _pixels(self, row: EpisodeRow) -> Pixels | Rejected:
        """Read and decode an episode. Raises DataError where the set is not as its index says."""
        member = video_member(self.latents.camera)
        members = {name: read_member(self.source, row, name) for name in CARRIED}
        if member not in row.members:
            return _rejected(row, member, f"there is only {', '.join(row.members)}", members)
        video = read_member(self.source, row, member)
        try:
            frames = decode(video, range(row.frames), name=member)
        except DataError as error:
            return _rejected(row, member, str(error).removeprefix(f"{member}: "), members)
        return Pixels(row, resize(frames, self.latents.height, self.latents.width), members)

    def _encoded(self, found: Pixels | Rejected) -> Sample | Rejected:
        if isinstance(found, Rejected):
            return found
        row, name = found.row, f"{self.source.name(found.row.shard)}: {found.row.key}"
        latent = self._latent(found.frames, name)
        facts = Facts(row.key, row.frames, (), (), source_fps=0.0, bytes=0)
        actions = load_array(found.members["action.npy"], f"{name}.action.npy")
        return Sample({LATENT: array_bytes(latent), **found.members}, actions, facts)

    def _latent(self, frames: np.ndarray, name: str) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 -> (T, C, h, w) float16. `name` is for errors.

        Raises DataError for numbers that float16 does not hold, UserError without memory.
        """
        device = f"cuda:{worker_number() % self.gpus}" if self.gpus else "cpu"
        tokenizer = _opened(self.place, self.latents.digest, device)
        parts = torch.from_numpy(frames).split(self.latents.batch)
        try:
            latent = torch.cat([_encode(tokenizer, part.to(device)).cpu() for part in parts])
        except torch.OutOfMemoryError:
            size = f"{self.latents.batch} frames of {self.latents.height}x{self.latents.width}"
            raise UserError(
                f"{name}: {device} has no memory for {size}; lower latents.batch"
            ) from None
        if not latent.isfinite().all():
            raise DataError(
                f"{name}: {self.place} makes latents that are not numbers, or beyond what float16 "
                "holds (65504); nothing was written for this shard. Is this the right tokenizer?"
            )
        assert latent.shape == (len(frames), *self.latents.shape), latent.shape
        return latent.numpy()


@torch.no_grad()
def _encode(tokenizer: Tokenizer, frames: Tensor) -> Tensor:
    """uint8 (t, H, W, 3) -> float16 (t, C, h, w), as training encodes a batch of one window."""
    video = rearrange(frames, "t h w c -> 1 c t h w").contiguous()
    return rearrange(tokenizer.encode(video), "1 c t h w -> t c h w").to(torch.float16)


@lru_cache(maxsize=1)
def _opened(place: str, digest: str, device: str) -> Tokenizer:
    """This process's tokenizer. Raises CheckpointError when it is not the one that was planned."""
    _, tokenizer = open_tokenizer(place)
    if tokenizer.digest != digest:
        raise CheckpointError(f"{place}: changed since this run began; run again")
    return tokenizer.to(device)


def _rejected(row: EpisodeRow, member: str, reason: str, members: dict[str, bytes]) -> Rejected:
    try:
        about = json.loads(members["json"])
        episode, split = str(about["id"]), str(about["split"])
    except (ValueError, KeyError, TypeError):
        episode, split = row.key, row.shard.rpartition("-")[0]
    return Rejected(episode, split, f"{row.shard}: {row.key}.{member}", reason)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within it, torch computes on one thread of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
