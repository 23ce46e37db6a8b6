"""NVIDIA's tokenizer Cosmos-Tokenize1-CV8x8x8, whichever library runs its two networks.

B batch, b frames that go through together, T frames, H x W pixels. Each frame is encoded alone, as
a clip of one frame, so statistics are those of latent time 0 (spec.md e). Weights, activations and
statistics are bfloat16. tokenizer_torchscript.py and tokenizer_diffusers.py load it.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.tokenizer import LATENT_STD, to_uint8

CHANNELS, FACTOR = 16, 8
STATISTICS = 256
"""Numbers of the mean and of the spread: 16 channels by 16 latent times, channel-major."""
ENCODE_BATCH, DECODE_BATCH = 8, 4
"""Frames that go through a network together (spec.md e)."""
READ_BYTES = 1 << 22

Coder = Callable[[Tensor], Tensor]


class CosmosTokenizer:
    """Latents of NVIDIA's tokenizer, scaled as the network wants them (spec.md d.1)."""

    factor, channels = FACTOR, CHANNELS

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        encode: Coder,
        decode: Coder,
        statistics: tuple[Tensor, Tensor],
        digest: str,
        origin: Path,
    ) -> None:
        """Put a tokenizer together.

        modules     what moves to the device
        encode      clip (b, 3, 1, H, W) bfloat16 in [-1, 1] -> latent (b, 16, 1, H/8, W/8)
        decode      the way back
        statistics  mean and spread, 256 numbers each; time 0 is taken
        origin      where it was loaded from, for messages
        """
        self.modules, self._encode, self._decode = modules, encode, decode
        self.mean, self.std = (t.reshape(CHANNELS, -1)[:, 0].to(torch.bfloat16) for t in statistics)
        self.digest, self.origin = digest, origin

    def to(self, device: torch.device | str) -> "CosmosTokenizer":
        """Move to a device; returns itself."""
        for module in self.modules:
            module.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """uint8 (B, 3, T, H, W) -> float32 latent (B, 16, T, H/8, W/8), values in bfloat16."""
        x = video.to(torch.bfloat16) / 127.5 - 1
        frames = rearrange(x, "b c t h w -> (b t) c 1 h w")
        wanted = (CHANNELS, 1, video.shape[3] // FACTOR, video.shape[4] // FACTOR)
        latents = [self._run(self._encode, part, wanted) for part in frames.split(ENCODE_BATCH)]
        z = rearrange(torch.cat(latents), "(b t) c 1 h w -> b c t h w", b=video.shape[0])
        z = (z - self._column(self.mean)) / self._column(self.std)
        return (z * LATENT_STD).float()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, 16, T, h, w) -> uint8 (B, 3, T, 8h, 8w)."""
        z = latent.to(torch.bfloat16) / LATENT_STD
        z = z * self._column(self.std) + self._column(self.mean)
        frames = rearrange(z, "b c t h w -> (b t) c 1 h w")
        wanted = (3, 1, latent.shape[3] * FACTOR, latent.shape[4] * FACTOR)
        clips = [self._run(self._decode, part, wanted) for part in frames.split(DECODE_BATCH)]
        return to_uint8(rearrange(torch.cat(clips), "(b t) c 1 h w -> b c t h w", b=len(latent)))

    def _run(self, coder: Coder, part: Tensor, wanted: tuple[int, ...]) -> Tensor:
        """One call of a network, in bfloat16. Raises CheckpointError for what it should not give.

        part    (b, C, 1, H, W)
        wanted  shape of the result without b
        """
        found = coder(part)
        is_right = isinstance(found, Tensor) and found.is_floating_point()
        if not is_right or found.shape != (len(part), *wanted):
            raise CheckpointError(
                f"{self.origin}: not a CV8x8x8 tokenizer: from {tuple(part.shape)} it makes "
                f"{_described(found)}, not floats {(len(part), *wanted)}"
            )
        return found.to(torch.bfloat16)

    def _column(self, values: Tensor) -> Tensor:
        return values[None, :, None, None, None]


def _described(found: Any) -> str:
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}"
    return f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"


def checked_statistics(found: Any, origin: Path) -> tuple[Tensor, Tensor]:
    """Mean and spread: 256 finite floats each, no spread of zero. Raises CheckpointError."""
    if not (isinstance(found, list | tuple) and len(found) == 2):
        raise CheckpointError(f"{origin}: not a pair of mean and spread; fetch it again")
    for values in found:
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise CheckpointError(f"{origin}: mean and spread are not two tensors of floats")
        if values.numel() != STATISTICS:
            raise CheckpointError(
                f"{origin}: {values.numel()} numbers for mean or spread, {STATISTICS} expected (16 "
                "channels by 16 times); it belongs to another tokenizer"
            )
    mean, std = found
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise CheckpointError(
            f"{origin}: mean or spread holds numbers that cannot be; fetch it again"
        )
    return mean, std


def digest_of(*contents: Path | bytes) -> str:
    """Hex digest of files, read in pieces, and of bytes, in this order."""
    digest = hashlib.sha256()
    for content in contents:
        one = hashlib.sha256()
        if isinstance(content, bytes):
            one.update(content)
        else:
            with open(content, "rb") as file:
                while piece := file.read(READ_BYTES):
                    one.update(piece)
        digest.update(one.digest())
    return digest.hexdigest()
