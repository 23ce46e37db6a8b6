"""NVIDIA's tokenizer Cosmos-Tokenize1-CV8x8x8: as TorchScript, or as diffusers' autoencoder.

    FOLDER/encoder.jit  decoder.jit  mean_std.pt                      as NVIDIA releases it
    FOLDER/config.json  diffusion_pytorch_model.safetensors           AutoencoderKLCosmos

B batch, T frames, H x W pixels. Each frame is encoded alone, as a clip of one frame, so statistics
are those of latent time 0 (spec.md e). Weights, activations and statistics are bfloat16.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model.tokenizer import LATENT_STD, to_uint8
from cosmos_wds.model.weight_files import load_pt

CHANNELS, FACTOR = 16, 8
STATISTICS = 256
"""Numbers of the mean and of the spread: 16 channels by 16 latent times, channel-major."""
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"

CHUNK = 1 << 22

Coder = Callable[[Tensor], Tensor]


class CosmosTokenizer:
    """Latents of NVIDIA's tokenizer, scaled as the network wants them (spec.md d.1)."""

    factor, channels = FACTOR, CHANNELS
    encode_batch, decode_batch = 8, 4
    """Frames that go through the network together (spec.md e)."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        encode: Coder,
        decode: Coder,
        statistics: tuple[Tensor, Tensor],
        digest: str,
    ) -> None:
        """Put a tokenizer together.

        modules     what moves to the device
        encode      clip (b, 3, 1, H, W) bfloat16 in [-1, 1] -> latent (b, 16, 1, H/8, W/8)
        decode      the way back
        statistics  mean and spread, 256 numbers each; time 0 is taken
        """
        self.modules, self._encode, self._decode = modules, encode, decode
        # Entries are channel-major over 16 latent times; one-frame clips use time 0 (spec.md e).
        self.mean, self.std = (t.reshape(CHANNELS, -1)[:, 0].to(torch.bfloat16) for t in statistics)
        self.digest = digest

    @classmethod
    def from_torchscript(cls, folder: Path) -> "CosmosTokenizer":
        """Load NVIDIA's release. Raises CheckpointError naming the missing or damaged file."""
        encoder, decoder = (_load_jit(folder / f"{n}.jit") for n in ("encoder", "decoder"))
        path = folder / "mean_std.pt"
        found = load_pt(path)
        if not (isinstance(found, list | tuple) and len(found) == 2):
            raise CheckpointError(f"{path}: not a pair of mean and spread; fetch it again")
        return cls(
            (encoder, decoder),
            encode=lambda x: encoder(x)[0],
            decode=decoder,
            statistics=_checked(found, path),
            digest=_digest(folder / n for n in ("encoder.jit", "decoder.jit", "mean_std.pt")),
        )

    @classmethod
    def from_diffusers(cls, folder: Path) -> "CosmosTokenizer":
        """Load an AutoencoderKLCosmos. Its config holds the statistics in the same order, and
        diffusers' pipelines scale by them and sigma_data as this class does (read in diffusers
        0.42, pipeline_cosmos_video2world.py).

        Raises ConfigError without diffusers, CheckpointError naming the missing or damaged file.
        """
        try:
            from diffusers import AutoencoderKLCosmos
        except ImportError:
            raise ConfigError(
                "[tokenizer] kind = \"diffusers\" needs: pip install 'cosmos-wds[diffusers]'"
            ) from None
        paths = (folder / "config.json", folder / DIFFUSERS_WEIGHTS)
        for path in paths:
            if not path.is_file():
                raise CheckpointError(f"{path}: no such file; name the folder that holds it")
        try:
            config = json.loads(paths[0].read_text(encoding="utf-8"))
            coder = AutoencoderKLCosmos.from_pretrained(
                folder, torch_dtype=torch.bfloat16, use_safetensors=True, local_files_only=True
            ).eval()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise CheckpointError(f"{folder}: no readable AutoencoderKLCosmos: {reason}") from None
        if config.get("_class_name") != "AutoencoderKLCosmos":
            raise CheckpointError(
                f"{paths[0]}: is a {config.get('_class_name')}, not an AutoencoderKLCosmos"
            )

        def fitting(x: Tensor) -> Tensor:
            """On a CPU its average pooling has no bfloat16: weights and input become float32."""
            return x.to(coder.to(torch.float32 if x.device.type == "cpu" else x.dtype).dtype)

        numbers = (coder.config.latents_mean, coder.config.latents_std)
        return cls(
            (coder,),
            encode=lambda x: coder.encode(fitting(x)).latent_dist.mode(),
            decode=lambda z: coder.decode(fitting(z)).sample,
            statistics=_checked([torch.tensor(n or ()) for n in numbers], paths[0]),
            digest=_digest(paths),
        )

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
        parts = [self._encode(part) for part in frames.split(self.encode_batch)]
        wanted = (CHANNELS, 1, video.shape[3] // FACTOR, video.shape[4] // FACTOR)
        if parts[0].shape[1:] != wanted:
            raise CheckpointError(
                f"the tokenizer makes latents {tuple(parts[0].shape[1:])} of a frame of "
                f"{video.shape[3]}x{video.shape[4]}, not {wanted}: it is not a CV8x8x8 tokenizer"
            )
        z = rearrange(torch.cat(parts), "(b t) c 1 h w -> b c t h w", b=video.shape[0])
        z = (z.to(torch.bfloat16) - self._column(self.mean)) / self._column(self.std)
        return (z * LATENT_STD).float()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, 16, T, h, w) -> uint8 (B, 3, T, 8h, 8w)."""
        z = latent.to(torch.bfloat16) / LATENT_STD
        z = z * self._column(self.std) + self._column(self.mean)
        frames = rearrange(z, "b c t h w -> (b t) c 1 h w")
        parts = [self._decode(part) for part in frames.split(self.decode_batch)]
        video = rearrange(torch.cat(parts), "(b t) c 1 h w -> b c t h w", b=latent.shape[0])
        return to_uint8(video)

    def _column(self, values: Tensor) -> Tensor:
        return values[None, :, None, None, None]


def _checked(found: Sequence[Any], path: Path) -> tuple[Tensor, Tensor]:
    """Mean and spread, 256 floats each, no spread of zero."""
    for values in found:
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise CheckpointError(f"{path}: mean and spread are not two tensors of floats")
        if values.numel() != STATISTICS:
            raise CheckpointError(
                f"{path}: {values.numel()} numbers for mean or spread, {STATISTICS} expected (16 "
                "channels by 16 times); it belongs to another tokenizer"
            )
    mean, std = found
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise CheckpointError(f"{path}: mean or spread holds numbers that cannot be; fetch it anew")
    return mean, std


def _digest(paths: Iterable[Path]) -> str:
    """Of files' bytes, read in pieces."""
    digest = hashlib.sha256()
    for path in paths:
        one = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(CHUNK):
                one.update(block)
        digest.update(one.digest())
    return digest.hexdigest()


def _load_jit(path: Path) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; fetch the tokenizer with "
            "`cosmos-wds download cosmos-tokenize1-cv8x8x8-720p`"
        )
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but it is what NVIDIA released
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path}: not a TorchScript file ({reason})") from None
