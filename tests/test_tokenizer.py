"""Tokenizers: the embedded one inverts on its span, NVIDIA's wrapper equals the reference's."""

import pytest
import torch
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.tokenizer import CosmosTokenizer, PatchTokenizer
from tests.golden_vectors import read_golden


def smooth_video(frames=6, height=32, width=48):
    y, x, t = torch.meshgrid(
        torch.arange(height), torch.arange(width), torch.arange(frames), indexing="ij"
    )
    channels = [torch.sin(0.2 * x + 0.1 * c * y + 0.3 * t) for c in range(1, 4)]
    return ((torch.stack(channels) * 0.45 + 0.5) * 255).to(torch.uint8).permute(0, 3, 1, 2)[None]


def psnr(a, b):
    return -10 * torch.log10((a.float() - b.float()).square().mean() / 255**2)


def test_patch_tokenizer_round_trip():
    video = smooth_video()
    tokenizer = PatchTokenizer.fit(video[0].transpose(0, 1))
    latent = tokenizer.encode(video)
    assert latent.shape == (1, 16, 6, 8, 12)
    assert abs(latent.square().mean().sqrt() - 0.5) < 0.01
    assert psnr(tokenizer.decode(latent), video) > 35
    again = tokenizer.encode(tokenizer.decode(latent))
    assert (again - latent).abs().max() < 0.05


def test_patch_tokenizer_file_and_digest(tmp_path):
    frames = smooth_video()[0].transpose(0, 1)
    tokenizer = PatchTokenizer.fit(frames)
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    loaded = PatchTokenizer.load(tmp_path / "tokenizer.safetensors")
    assert loaded.digest == tokenizer.digest == PatchTokenizer.fit(frames).digest
    video = smooth_video(height=16)
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))
    assert PatchTokenizer.fit(255 - frames).digest != tokenizer.digest
    (tmp_path / "cut").write_bytes((tmp_path / "tokenizer.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cut"):
        PatchTokenizer.load(tmp_path / "cut")


class StandInEncoder(nn.Module):
    """Every 8th pixel, then a 3 -> 16 matrix; returns a tuple as the released file does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        z = torch.einsum("bcthw,kc->bkthw", x[..., ::8, ::8], self.weight.to(x.dtype))
        return z, (0, 0)


class StandInDecoder(nn.Module):
    """A 16 -> 3 matrix, then every pixel eight times."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.einsum("bkthw,ck->bcthw", z, self.weight.to(z.dtype))
        return x.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)


@pytest.fixture
def released(tmp_path):
    golden, _ = read_golden("tokenizer_wrapper")
    enc, dec = golden["enc_w"], golden["dec_w"]
    enc = enc if enc.shape == (16, 3) else enc.T
    dec = dec if dec.shape == (3, 16) else dec.T
    with pytest.warns(DeprecationWarning):
        torch.jit.script(StandInEncoder(enc)).save(tmp_path / "encoder.jit")
        torch.jit.script(StandInDecoder(dec)).save(tmp_path / "decoder.jit")
    torch.save((golden["mean"], golden["std"]), tmp_path / "mean_std.pt")
    return tmp_path, golden


def test_cosmos_tokenizer_equals_the_reference(released):
    folder, golden = released
    tokenizer = CosmosTokenizer(folder)
    latent = tokenizer.encode(golden["video_u8"])
    assert torch.equal(latent.to(torch.bfloat16), golden["latent_scaled_bf16"])
    pixels = tokenizer.decode(golden["latent_scaled_bf16"])
    shown = pixels[0].permute(1, 2, 3, 0)
    assert torch.equal(shown, golden["decoded_uint8_THWC_b0"])
    assert tokenizer.digest == CosmosTokenizer(folder).digest


@pytest.mark.parametrize("name", ["encoder.jit", "decoder.jit", "mean_std.pt"])
def test_cosmos_tokenizer_names_what_is_missing_or_damaged(released, name):
    folder, _ = released
    (folder / name).write_bytes(b"not this")
    with pytest.raises(CheckpointError, match=name):
        CosmosTokenizer(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        CosmosTokenizer(folder)
