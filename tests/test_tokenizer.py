"""Tokenizers: the embedded one inverts on its span, NVIDIA's wrapper equals the reference's."""

import json
import logging
import shutil
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model.tokenizer_diffusers import load_autoencoder
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.model.tokenizer_torchscript import load_torchscript
from cosmos_wds.model.tokenizers import load_tokenizer
from cosmos_wds.recipe import TokenizerSettings, recipe_from_table
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
        z = torch.einsum("bcthw,kc->bkthw", x[..., ::8, ::8], self.weight)
        return z, (0, 0)


class StandInDecoder(nn.Module):
    """A 16 -> 3 matrix, then every pixel eight times."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.einsum("bkthw,ck->bcthw", z, self.weight)
        return x.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)


def save_script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript's
        torch.jit.script(module).save(path)


@pytest.fixture
def released(tmp_path):
    """NVIDIA's three files around float32 stand-ins, which loading casts to bfloat16."""
    golden, _ = read_golden("tokenizer_wrapper")
    enc, dec = golden["enc_w"], golden["dec_w"]
    enc = enc if enc.shape == (16, 3) else enc.T
    dec = dec if dec.shape == (3, 16) else dec.T
    save_script(StandInEncoder(enc), tmp_path / "encoder.jit")
    save_script(StandInDecoder(dec), tmp_path / "decoder.jit")
    torch.save((golden["mean"], golden["std"]), tmp_path / "mean_std.pt")
    return tmp_path, golden


def test_cosmos_tokenizer_equals_the_reference(released):
    folder, golden = released
    tokenizer = load_tokenizer(TokenizerSettings(kind="cosmos", path=str(folder)), folder)
    latent = tokenizer.encode(golden["video_u8"])
    assert latent.dtype == torch.float32
    assert torch.equal(latent.to(torch.bfloat16), golden["latent_scaled_bf16"])
    pixels = tokenizer.decode(golden["latent_scaled_bf16"])
    shown = pixels[0].permute(1, 2, 3, 0)
    assert torch.equal(shown, golden["decoded_uint8_THWC_b0"])


class CountingEncoder(nn.Module):
    """Its latent holds how many frames came together."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        z = x[:, :1, :, ::8, ::8].expand(-1, 16, -1, -1, -1)
        return (torch.full_like(z, float(x.shape[0])),)


class CountingDecoder(nn.Module):
    """Its video holds how many frames came together, in levels of -1 + n / 8."""

    def forward(self, z: Tensor) -> Tensor:
        x = z[:, :3].repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
        return torch.full_like(x, float(z.shape[0]) / 8 - 1)


def test_at_most_8_frames_are_encoded_together_and_4_decoded(released):
    folder, _ = released
    save_script(CountingEncoder(), folder / "encoder.jit")
    save_script(CountingDecoder(), folder / "decoder.jit")
    torch.save((torch.zeros(256), torch.ones(256)), folder / "mean_std.pt")
    tokenizer = load_torchscript(folder)
    latent = tokenizer.encode(torch.zeros(2, 3, 5, 16, 24, dtype=torch.uint8))
    assert latent.shape == (2, 16, 5, 2, 3)
    assert latent[:, 0, :, 0, 0].flatten().tolist() == [4.0] * 8 + [1.0] * 2  # times LATENT_STD
    frames = tokenizer.decode(latent)
    assert frames.shape == (2, 3, 5, 16, 24)
    assert frames[:, 0, :, 0, 0].flatten().tolist() == [63] * 8 + [31] * 2


@pytest.mark.parametrize("name", ["encoder.jit", "decoder.jit", "mean_std.pt"])
def test_cosmos_tokenizer_names_what_is_missing_or_damaged(released, name):
    folder, _ = released
    content = (folder / name).read_bytes()
    for damaged in (b"not this", b"", content[: len(content) // 2]):
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name) as told:
            load_torchscript(folder)
        assert "\n" not in str(told.value)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file.*cosmos-wds download"):
        load_torchscript(folder)


@pytest.mark.parametrize("name", ["encoder.jit", "decoder.jit", "mean_std.pt"])
def test_every_file_counts_in_the_digest(released, name):
    folder, golden = released
    before = load_torchscript(folder).digest
    assert load_torchscript(folder).digest == before
    if name == "mean_std.pt":
        torch.save((golden["mean"] + 1, golden["std"]), folder / name)
    elif name == "encoder.jit":
        save_script(StandInEncoder(torch.ones(16, 3)), folder / name)
    else:
        save_script(StandInDecoder(torch.ones(3, 16)), folder / name)
    assert load_torchscript(folder).digest != before


@pytest.mark.parametrize(
    "content, says",
    [
        (torch.zeros(2, 256), "not a pair"),
        ({"mean": torch.zeros(256)}, "not a pair"),
        ((torch.zeros(256), torch.ones(16)), "16 numbers for mean or spread, 256 expected"),
        ((torch.zeros(256), torch.zeros(256)), "numbers that cannot be"),
        ((torch.zeros(256), torch.full((256,), torch.nan)), "numbers that cannot be"),
        ((torch.zeros(256, dtype=torch.int64), torch.ones(256)), "not two tensors of floats"),
        (([0.0] * 256, [1.0] * 256), "not two tensors of floats"),
    ],
)
def test_statistics_of_something_else_are_refused(released, content, says):
    folder, _ = released
    torch.save(content, folder / "mean_std.pt")
    with pytest.raises(CheckpointError, match=says):
        load_torchscript(folder)


class Halving(nn.Module):
    """Halves the picture, as a tokenizer of another compression does."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x[:, :1, :, ::2, ::2].expand(-1, 16, -1, -1, -1),)


class Counts(nn.Module):
    """Numbers of codes, as a tokenizer for discrete tokens gives them."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x[:, :1, :, ::8, ::8].expand(-1, 16, -1, -1, -1).to(torch.int32),)


class Nothing(nn.Module):
    """Gives no tensor at all."""

    def forward(self, x: Tensor) -> int:
        return x.shape[0]


@pytest.mark.parametrize(
    ("module", "makes"),
    [
        (Halving(), r"makes bfloat16 \(1, 16, 1, 8, 8\), not floats \(1, 16, 1, 2, 2\)"),
        (Counts(), "makes int32"),
        (Nothing(), "makes a int"),
    ],
)
def test_an_encoder_of_another_kind_is_told(released, module, makes):
    folder, _ = released
    save_script(module, folder / "encoder.jit")
    tokenizer = load_torchscript(folder)
    with pytest.raises(CheckpointError, match=f"not a CV8x8x8 tokenizer.*{makes}"):
        tokenizer.encode(torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8))


def test_a_decoder_of_another_kind_is_told(released):
    folder, _ = released
    save_script(CountingEncoder(), folder / "decoder.jit")
    with pytest.raises(CheckpointError, match="not a CV8x8x8 tokenizer.*makes a tuple"):
        load_torchscript(folder).decode(torch.zeros(1, 16, 1, 2, 2))


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
    ).to(torch.bfloat16)
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder, model.float().eval()  # the bfloat16 weights, in what a CPU computes in


@pytest.fixture
def copy(autoencoder, tmp_path):
    """The autoencoder's folder, to be damaged."""
    return shutil.copytree(autoencoder[0], tmp_path / "vae")


@torch.no_grad()
def test_diffusers_autoencoder_is_the_same_tokenizer_in_another_form(autoencoder):
    folder, model = autoencoder
    tokenizer = load_tokenizer(TokenizerSettings(kind="diffusers", path=str(folder)), folder)
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


def test_diffusers_says_nothing(autoencoder, caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        tokenizer = load_autoencoder(autoencoder[0])
        tokenizer.decode(tokenizer.encode(smooth_video(frames=1, height=16, width=16)))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_frames_do_not_know_of_each_other(autoencoder):
    """As many as are more than go through the network together."""
    tokenizer = load_autoencoder(autoencoder[0])
    video = smooth_video(frames=11, height=16, width=16)
    latent = tokenizer.encode(video)
    alone = torch.cat([tokenizer.encode(video[:, :, t : t + 1]) for t in range(11)], dim=2)
    torch.testing.assert_close(latent, alone, rtol=0.02, atol=0.02)
    changed = video.clone()
    changed[:, :, 4] = 255 - changed[:, :, 4]
    moved = (tokenizer.encode(changed) != latent).flatten(3).any(3)[0].any(0)
    assert moved.tolist() == [t == 4 for t in range(11)]


def test_an_autoencoder_s_digest_is_of_its_weights_and_what_they_mean(copy):
    digest = load_autoencoder(copy).digest
    config = json.loads((copy / "config.json").read_text())
    for table, is_same in (
        (config | {"_diffusers_version": "9.9"}, True),
        (config | {"latents_mean": [0.0] * 256}, False),
        (config | {"patch_type": "rearrange"}, False),
    ):
        (copy / "config.json").write_text(json.dumps(table, indent=7))
        assert (load_autoencoder(copy).digest == digest) == is_same
    (copy / "config.json").write_text(json.dumps(config))
    weights = copy / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state[next(iter(state))] += 1
    save_file(state, weights)
    assert load_autoencoder(copy).digest != digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latents_mean": [0.0] * 16}, "config.json: 16 numbers"),
        ({"latents_std": None}, "config.json: mean and spread are not two tensors"),
        ({"latents_std": ["a"] * 256}, "config.json: mean and spread are not two tensors"),
        ({"_class_name": "AutoencoderKLWan"}, "describes a AutoencoderKLWan, not an Auto"),
        ({"encoder_block_out_channels": [32, 32, 32, 32]}, "do not make an AutoencoderKLCosmos"),
        ({"patch_type": "round"}, "do not make an AutoencoderKLCosmos"),
    ],
)
def test_an_autoencoder_of_another_kind_is_told(copy, change, says):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=says) as told:
        load_autoencoder(copy)
    assert "\n" not in str(told.value)


def test_a_lacking_weight_is_not_made_up(copy):
    weights = copy / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    gone = sorted(state)[0]
    save_file({k: v for k, v in state.items() if k != gone}, weights)
    with pytest.raises(CheckpointError, match=f"Missing key.*{gone}"):
        load_autoencoder(copy)
    save_file(state | {"more": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="Unexpected key.*more"):
        load_autoencoder(copy)


def test_an_autoencoder_s_missing_or_damaged_file_is_named(copy):
    weights, config = copy / "diffusion_pytorch_model.safetensors", copy / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match=f"{weights.name}: .*damaged"):
        load_autoencoder(copy)
    weights.rename(copy / "diffusion_pytorch_model.bin")  # a pickle is not looked for
    with pytest.raises(CheckpointError, match=f"{weights.name}: no such file"):
        load_autoencoder(copy)
    weights.write_bytes(whole)
    config.write_text("[]")
    with pytest.raises(CheckpointError, match="config.json: describes a None"):
        load_autoencoder(copy)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="config.json: no readable JSON"):
        load_autoencoder(copy)
    config.unlink()
    with pytest.raises(CheckpointError, match="config.json: no such file"):
        load_autoencoder(copy)


def test_without_diffusers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'cosmos-wds\[diffusers\]'"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("kind", ["cosmos", "diffusers"])
def test_a_tokenizer_of_nvidia_s_needs_a_folder(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"\[tokenizer\] path is empty"):
        load_tokenizer(TokenizerSettings(kind=kind), tmp_path)
    with pytest.raises(CheckpointError, match="nowhere.*no such file"):
        load_tokenizer(TokenizerSettings(kind=kind, path=str(tmp_path / "nowhere")), tmp_path)


def test_a_patch_of_no_pixels_is_told():
    for patch in (0, -4):
        table = {"tokenizer": {"kind": "patch", "patch": patch, "fit_frames": 0}}
        with pytest.raises(ConfigError, match=r"\[tokenizer\] patch = .*1 or more") as told:
            recipe_from_table(table, origin="test")
        assert "[tokenizer] fit_frames = 0" in str(told.value)


def test_nvidia_s_tokenizers_take_multiples_of_16():
    """8 pixels a latent cell, 2 cells a token."""
    for kind in ("cosmos", "diffusers"):
        table = {"tokenizer": {"kind": kind}, "window": {"height": 24, "width": 32}}
        with pytest.raises(ConfigError, match="height = 24: .*multiples of 16"):
            recipe_from_table(table, origin="test")
