"""Pixels <-> latents: NVIDIA's TorchScript tokenizer, and the embedded closed-form one.

B batch, T frames, H x W pixels, C latent channels, f pixels per side of a latent cell.
Each frame is encoded alone (`pixel_chunk_duration = 1`, spec.md e).
"""

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import Protocol

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cosmos_wds.config import write_bytes
from cosmos_wds.errors import CheckpointError

LATENT_STD = 0.5
"""Latents are scaled to this standard deviation (sigma_data, spec.md d.1)."""


class Tokenizer(Protocol):
    """What training and rollouts need of a tokenizer."""

    factor: int
    """Pixels per side of one latent cell."""
    channels: int
    digest: str
    """Hex digest of the weights: equal digests mean equal latents."""

    def encode(self, video: Tensor) -> Tensor:
        """uint8 (B, 3, T, H, W) -> float32 latent (B, C, T, H/f, W/f)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, C, T, h, w) -> uint8 (B, 3, T, h*f, w*f)."""
        ...

    def to(self, device: torch.device | str) -> "Tokenizer":
        """Move to a device; returns itself."""
        ...


def to_unit(video: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1] (spec.md d.1)."""
    return video.float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """[-1, 1] -> uint8 by clamping and truncation, in the video's own dtype (spec.md e)."""
    return ((1 + video) / 2).clamp(0, 1).mul(255).to(torch.uint8)


class PatchTokenizer:
    """Principal components of f x f pixel patches: linear, exact inverse on their span.

    Channel c is divided by spread[c], a power of its standard deviation, so that coarse structure
    keeps more weight than fine detail, while the mean square over channels is LATENT_STD^2.
    """

    def __init__(self, mean: Tensor, components: Tensor, spread: Tensor) -> None:
        """mean (3ff,), components (C, 3ff) orthonormal rows, spread (C,)."""
        self.mean, self.components, self.spread = mean, components, spread
        self.channels = components.shape[0]
        self.factor = round((components.shape[1] / 3) ** 0.5)
        data = b"".join(t.cpu().numpy().astype("<f4").tobytes() for t in self._tensors().values())
        self.digest = hashlib.sha256(data).hexdigest()

    @classmethod
    def fit(
        cls, frames: Tensor, *, patch: int = 4, channels: int = 16, whiten: float = 0.5
    ) -> "PatchTokenizer":
        """Fit on uint8 frames (N, 3, H, W); closed form, deterministic.

        whiten   0 keeps the components' own spread (pixel error), 1 makes all channels equal
        """
        patches = rearrange(
            to_unit(frames), "n c (h p) (w q) -> (n h w) (c p q)", p=patch, q=patch
        ).double()
        mean = patches.mean(0)
        centred = patches - mean
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        variance = variance.flip(0)[:channels].clamp_min(1e-8)
        components = vectors.flip(1)[:, :channels].T
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        spread = variance.sqrt() ** whiten
        rms = (variance / spread**2).mean().sqrt()
        spread = spread * rms / LATENT_STD
        return cls(mean.float(), components.float().contiguous(), spread.float())

    def _tensors(self) -> dict[str, Tensor]:
        return {"components": self.components, "mean": self.mean, "spread": self.spread}

    def to(self, device: torch.device | str) -> "PatchTokenizer":
        """Move to a device; returns itself."""
        self.mean, self.components, self.spread = (
            t.to(device) for t in (self.mean, self.components, self.spread)
        )
        return self

    def encode(self, video: Tensor) -> Tensor:
        """uint8 (B, 3, T, H, W) -> float32 latent (B, C, T, H/f, W/f)."""
        f = self.factor
        patches = rearrange(to_unit(video), "b c t (h p) (w q) -> b t h w (c p q)", p=f, q=f)
        latent = (patches - self.mean) @ self.components.T / self.spread
        return rearrange(latent, "b t h w c -> b c t h w").contiguous()

    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, C, T, h, w) -> uint8 (B, 3, T, h*f, w*f)."""
        f = self.factor
        coded = rearrange(latent.float(), "b c t h w -> b t h w c") * self.spread
        patches = coded @ self.components + self.mean
        # Half a level is added, since to_uint8 truncates.
        video = rearrange(patches, "b t h w (c p q) -> b c t (h p) (w q)", p=f, q=f, c=3)
        return to_uint8(video + 1 / 255)

    def save(self, path: Path) -> None:
        """Write the tensors as safetensors, whole or not at all."""
        tensors = {k: t.cpu().contiguous() for k, t in self._tensors().items()}
        write_bytes(path, save(tensors, metadata={"kind": "patch"}))

    @classmethod
    def load(cls, path: Path) -> "PatchTokenizer":
        """Read what `save` wrote. Raises CheckpointError when missing or damaged."""
        try:
            tensors = load_file(path)
            return cls(tensors["mean"], tensors["components"], tensors["spread"])
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"{path}: no readable patch tokenizer ({error})") from None


class CosmosTokenizer:
    """NVIDIA's Cosmos-Tokenize1 CV8x8x8 as released: encoder.jit, decoder.jit, mean_std.pt."""

    factor = 8
    channels = 16
    encode_batch, decode_batch = 8, 4
    """Frames that go through the network together (spec.md e)."""

    def __init__(self, folder: Path) -> None:
        """Load from a folder. Raises CheckpointError naming the missing or damaged file."""
        self.encoder, self.decoder = (
            _load_jit(folder / f"{n}.jit") for n in ("encoder", "decoder")
        )
        path = folder / "mean_std.pt"
        try:
            mean, std = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{path}: missing or damaged ({reason})") from None
        # Entries are channel-major over 16 latent times; one-frame clips use time 0 (spec.md e).
        time_0 = (t.reshape(self.channels, -1)[:, 0].to(torch.bfloat16) for t in (mean, std))
        self.mean, self.std = time_0
        names = ("encoder.jit", "decoder.jit", "mean_std.pt")
        digest = hashlib.sha256()
        for name in names:
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
        self.digest = digest.hexdigest()

    def to(self, device: torch.device | str) -> "CosmosTokenizer":
        """Move to a device; returns itself."""
        self.encoder, self.decoder = self.encoder.to(device), self.decoder.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """uint8 (B, 3, T, H, W) -> float32 latent (B, 16, T, H/8, W/8), values in bfloat16."""
        x = video.to(torch.bfloat16) / 127.5 - 1
        frames = rearrange(x, "b c t h w -> (b t) c 1 h w")
        parts = [self.encoder(part)[0] for part in frames.split(self.encode_batch)]
        z = rearrange(torch.cat(parts), "(b t) c 1 h w -> b c t h w", b=video.shape[0])
        z = (z.to(torch.bfloat16) - self._column(self.mean)) / self._column(self.std)
        return (z * LATENT_STD).float()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, 16, T, h, w) -> uint8 (B, 3, T, 8h, 8w)."""
        z = latent.to(torch.bfloat16) / LATENT_STD
        z = z * self._column(self.std) + self._column(self.mean)
        frames = rearrange(z, "b c t h w -> (b t) c 1 h w")
        parts = [self.decoder(part) for part in frames.split(self.decode_batch)]
        video = rearrange(torch.cat(parts), "(b t) c 1 h w -> b c t h w", b=latent.shape[0])
        return to_uint8(video)

    def _column(self, values: Tensor) -> Tensor:
        return values[None, :, None, None, None]


def _load_jit(path: Path) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; fetch the tokenizer with `cosmos-wds download bridge`"
        )
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but it is what NVIDIA released
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path}: not a TorchScript file ({reason})") from None
