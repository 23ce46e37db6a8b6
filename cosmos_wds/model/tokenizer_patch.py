"""The embedded tokenizer: principal components of pixel patches, fitted in closed form.

B batch, T frames, H x W pixels, C latent channels, f pixels per side of a latent cell.
"""

import hashlib
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cosmos_wds.config import write_bytes
from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.tokenizer import LATENT_STD, to_uint8, to_unit


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
