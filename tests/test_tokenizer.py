"""Tokenizers: the embedded one inverts on its span, NVIDIA's wrapper equals the reference's."""

import pytest
import torch
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model.tokenizer_cosmos import CosmosTokenizer
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
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
    tokenizer = CosmosTokenizer.from_torchscript(folder)
    latent = tokenizer.encode(golden["video_u8"])
    assert torch.equal(latent.to(torch.bfloat16), golden["latent_scaled_bf16"])
    pixels = tokenizer.decode(golden["latent_scaled_bf16"])
    shown = pixels[0].permute(1, 2, 3, 0)
    assert torch.equal(shown, golden["decoded_uint8_THWC_b0"])
    assert tokenizer.digest == CosmosTokenizer.from_torchscript(folder).digest


@pytest.mark.parametrize("name", ["encoder.jit", "decoder.jit", "mean_std.pt"])
def test_cosmos_tokenizer_names_what_is_missing_or_damaged(released, name):
    folder, _ = released
    (folder / name).write_bytes(b"not this")
    with pytest.raises(CheckpointError, match=name):
        CosmosTokenizer.from_torchscript(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        CosmosTokenizer.from_torchscript(folder)


@pytest.mark.parametrize(
    "content, says",
    [
        (torch.zeros(2, 256), "not a pair"),
        ((torch.zeros(256), torch.ones(16)), "16 numbers for mean or spread, 256 expected"),
        ((torch.zeros(256), torch.zeros(256)), "numbers that cannot be"),
        ((torch.zeros(256), torch.full((256,), torch.nan)), "numbers that cannot be"),
        ((torch.zeros(256, dtype=torch.int64), torch.ones(256)), "not two tensors of floats"),
    ],
)
def test_statistics_of_something_else_are_refused(released, content, says):
    folder, _ = released
    torch.save(content, folder / "mean_std.pt")
    with pytest.raises(CheckpointError, match=says):
        CosmosTokenizer.from_torchscript(folder)


class OtherEncoder(nn.Module):
    """Halves the picture, as a tokenizer of another compression does."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x[:, :1, :, ::2, ::2].expand(-1, 16, -1, -1, -1),)


def test_another_compression_is_told(released):
    folder, _ = released
    with pytest.warns(DeprecationWarning):
        torch.jit.script(OtherEncoder()).save(folder / "encoder.jit")
    tokenizer = CosmosTokenizer.from_torchscript(folder)
    with pytest.raises(CheckpointError, match="not a CV8x8x8 tokenizer"):
        tokenizer.encode(torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A small AutoencoderKLCosmos with random weights, and statistics of its own."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLCosmos(
        encoder_block_out_channels=(16, 16, 16, 16),
        decode_block_out_channels=(16, 16, 16, 16),
        num_layers=1,
        latents_mean=torch.linspace(-1, 1, 256).tolist(),
        latents_std=torch.linspace(0.5, 2, 256).tolist(),
    )
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder, model.eval()


@torch.no_grad()
def test_diffusers_autoencoder_is_the_same_tokenizer_in_another_form(autoencoder):
    folder, model = autoencoder
    tokenizer = CosmosTokenizer.from_diffusers(folder)
    video = smooth_video(frames=3, height=32, width=48)
    latent = tokenizer.encode(video)
    assert latent.shape == (1, 16, 3, 4, 6) and latent.dtype == torch.float32
    column = (1, 16, 1, 1, 1)
    mean = torch.linspace(-1, 1, 256)[::16].to(torch.bfloat16).view(column)
    std = torch.linspace(0.5, 2, 256)[::16].to(torch.bfloat16).view(column)
    for t in range(3):  # each frame is a clip of its own
        clip = video[:, :, t : t + 1].to(torch.bfloat16) / 127.5 - 1
        z = model.encode(clip.float()).latent_dist.mode().to(torch.bfloat16)
        wanted = ((z - mean) / std * 0.5).float()
        torch.testing.assert_close(latent[:, :, t : t + 1], wanted, rtol=0.02, atol=0.02)
    frames = tokenizer.decode(latent)
    assert frames.shape == video.shape and frames.dtype == torch.uint8
    z = latent[:, :, :1].to(torch.bfloat16) / 0.5 * std + mean
    shown = ((1 + model.decode(z.float()).sample) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    assert (frames[:, :, :1].int() - shown.int()).abs().max() <= 3  # batches round differently


def test_an_autoencoder_s_digest_follows_its_weights_and_damage_is_told(autoencoder, tmp_path):
    import json
    import shutil

    folder, _ = autoencoder
    digest = CosmosTokenizer.from_diffusers(folder).digest
    copy = tmp_path / "vae"
    shutil.copytree(folder, copy)
    assert CosmosTokenizer.from_diffusers(copy).digest == digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"latents_mean": [0.0] * 256}))
    assert CosmosTokenizer.from_diffusers(copy).digest != digest
    (copy / "config.json").write_text(json.dumps(config | {"latents_mean": [0.0] * 16}))
    with pytest.raises(CheckpointError, match="16 numbers"):
        CosmosTokenizer.from_diffusers(copy)
    weights = copy / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="no readable AutoencoderKLCosmos"):
        CosmosTokenizer.from_diffusers(copy)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        CosmosTokenizer.from_diffusers(copy)


def test_without_diffusers_the_extra_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"cosmos-wds\[diffusers\]"):
        CosmosTokenizer.from_diffusers(tmp_path)
