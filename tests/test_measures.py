"""Measures equal those of the libraries they come from; what is missing is told in one line."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image.fid import FrechetInceptionDistance

from cosmos_wds.config import parse
from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.recipe_eval import EvalSettings
from cosmos_wds.rollout import measures
from cosmos_wds.rollout.measures import (
    frame_measures,
    grey,
    latent_l2,
    lpips,
    psnr_grey,
    ssim,
    wanted_measures,
)
from cosmos_wds.rollout.metrics import psnr
from cosmos_wds.rollout.set_metrics import frechet_distance, set_scores

CPU = torch.device("cpu")


def videos(count=2, frames=3, height=24, width=32, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, (count, frames, height, width, 3), np.uint8)
    spread = rng.uniform(1, 90, (count, frames, 1, 1, 1))
    made = truth + rng.normal(0, 1, truth.shape) * spread
    return made.clip(0, 255).astype(np.uint8), truth


def script(module, path):
    """Write a module as TorchScript."""
    with pytest.warns(DeprecationWarning):
        torch.jit.script(module).save(path)
    return str(path)


def test_grey_is_pillow_s():
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    assert np.array_equal(grey(picture), np.array(Image.fromarray(picture).convert("L")))


def test_psnr_and_ssim_are_scikit_image_s():
    for seed in range(3):
        made, truth = videos(seed=seed)
        found = {"psnr": psnr(made, truth), "grey": psnr_grey(made, truth)}
        found["ssim"] = ssim(made, truth)
        assert {name: values.shape for name, values in found.items()} == dict.fromkeys(
            found, (2, 3)
        )
        for at in np.ndindex(2, 3):
            one, two = made[at], truth[at]
            light = [np.array(Image.fromarray(picture).convert("L")) for picture in (one, two)]
            wanted = peak_signal_noise_ratio(two, one, data_range=255)
            assert found["psnr"][at] == pytest.approx(wanted, abs=1e-6)
            wanted = peak_signal_noise_ratio(*light, data_range=255)
            assert found["grey"][at] == pytest.approx(wanted, abs=1e-6)
            assert found["ssim"][at] == pytest.approx(structural_similarity(*light), abs=1e-6)
    assert (ssim(truth, truth) == 1).all()


def test_latent_l2_is_a_mean_square():
    one, two = np.zeros((2, 3, 4, 5, 6), np.float32), np.ones((2, 3, 4, 5, 6), np.float32)
    two[1] = 3
    assert latent_l2(one, two).tolist() == [[1, 1, 1], [9, 9, 9]]


class Apart(torch.nn.Module):
    """In place of LPIPS: the mean distance of two pictures, as (n, 1, 1, 1)."""

    def forward(self, a, b):
        return (a - b).abs().mean([1, 2, 3], keepdim=True)


class Alone(torch.nn.Module):
    def forward(self, a):
        return a


def test_lpips_comes_from_the_user_s_network(tmp_path):
    made, truth = videos(count=9)
    measure = lpips(script(Apart(), tmp_path / "apart.pt"), CPU)
    wanted = np.abs(made / 127.5 - truth / 127.5).mean((-3, -2, -1))
    np.testing.assert_allclose(measure(made, truth), wanted, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such file; a TorchScript file, or"):
        lpips("nowhere.pt", CPU)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(CheckpointError, match=r"text\.pt: not a TorchScript file"):
        lpips(str(tmp_path / "text.pt"), CPU)
    alone = lpips(script(Alone(), tmp_path / "alone.pt"), CPU)
    with pytest.raises(CheckpointError, match=r"alone\.pt: not a network of two pictures") as told:
        alone(made, truth)
    assert "\n" not in str(told.value)


def test_frechet_distance_is_its_library_s_and_the_formula():
    rng = np.random.default_rng(0)
    one = rng.normal(0, 1, (60, 5)) @ rng.normal(0, 1, (5, 5))
    two = rng.normal(0.5, 1, (40, 5)) @ rng.normal(0, 1, (5, 5))
    found = frechet_distance(one, two)
    covariances = [np.cov(samples, rowvar=False) for samples in (one, two)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    wanted = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


class Seen(torch.nn.Module):
    """In place of an I3D or Inception: means of colours over a picture's or a video's quarters."""

    def forward(self, x):
        x = x.float() / 255
        mean, half = x.flatten(2), x.flatten(2).shape[-1] // 2
        return torch.cat([mean[..., :half].mean(-1), mean[..., half:].square().mean(-1)], dim=1)


class Released(torch.nn.Module):
    """As the released networks are called; what is wrong with a call makes its features wrong."""

    def forward(
        self, x, rescale: bool = False, resize: bool = False, return_features: bool = False
    ):
        told = float(rescale and resize and return_features)
        return x.float().flatten(2).mean(-1) / 255 * told


class Inception(torch.nn.Module):
    def forward(self, img, return_features: bool = False):
        assert img.dtype == torch.uint8
        return img.float().flatten(2).mean(-1) / 255 * float(return_features)


@pytest.mark.parametrize("kind", ["fvd", "fid"])
def test_sets_are_compared_by_features_of_videos_or_of_frames(tmp_path, kind):
    made, truth = videos(count=9, frames=5)
    where = script(Seen(), tmp_path / "seen.pt")
    found = set_scores(kind, where, {"true": made, "same": truth}, truth, CPU)
    shape = (-1, 5) if kind == "fvd" else (-1, 1)
    seen = [
        Seen()(torch.from_numpy(video.reshape(*shape, 24, 32, 3)).permute(0, 4, 1, 2, 3))
        for video in (made, truth)
    ]

    class Held(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x

    library = FrechetInceptionDistance(feature=Held()).set_dtype(torch.float64)
    library.update(seen[1].double(), real=True)
    library.update(seen[0].double(), real=False)
    assert found["true"] == pytest.approx(float(library.compute()), rel=1e-4)
    assert found["same"] == pytest.approx(0, abs=1e-5) and found["true"] > 1e-4


@pytest.mark.parametrize("kind, module", [("fvd", Released), ("fid", Inception)])
def test_released_networks_are_asked_for_features(tmp_path, kind, module):
    made, truth = videos(count=5)
    where = script(module(), tmp_path / "net.pt")
    assert set_scores(kind, where, {"true": made // 2}, truth, CPU)["true"] > 0.01


def test_a_network_of_other_samples_is_refused_in_one_line(tmp_path):
    made, truth = videos()
    where = script(Apart(), tmp_path / "apart.pt")
    with pytest.raises(CheckpointError, match=r"apart\.pt: does not take FID's samples of") as told:
        set_scores("fid", where, {"true": made}, truth, CPU)
    assert "\n" not in str(told.value)


def test_what_is_measured_without_being_asked(monkeypatch):
    assert wanted_measures(EvalSettings()) == ("psnr", "psnr_grey", "ssim", "latent_l2")
    chosen = EvalSettings(measures=("latent_l2", "psnr", "psnr"))
    assert wanted_measures(chosen) == ("latent_l2", "psnr")
    assert list(frame_measures(("latent_l2", "psnr"), chosen, CPU)) == ["psnr"]

    def missing(name):
        raise measures.PackageNotFoundError(name)

    monkeypatch.setattr(measures, "distribution", missing)
    monkeypatch.setattr("cosmos_wds.train.extras.distribution", missing)
    assert wanted_measures(EvalSettings()) == ("psnr", "psnr_grey", "latent_l2")
    with pytest.raises(ConfigError, match=r"ssim needs: pip install 'cosmos-wds\[eval\]'"):
        wanted_measures(EvalSettings(measures=("ssim",)))
    with pytest.raises(ConfigError, match=r"fvd needs: pip install 'cosmos-wds\[eval\]'"):
        wanted_measures(EvalSettings(measures=("fvd",)))


def test_settings_that_cannot_be():
    table = {"episodes": 1, "actions": 0, "wrong": ["zero"], "measures": ["lpips"], "seed": -1}
    with pytest.raises(ConfigError) as told:
        parse(EvalSettings, table, origin="test")
    for words in (
        *("episodes = 1: two or more", "actions = 0", "needs shuffled", "seed = -1"),
        'lpips needs its weights; set lpips = "FILE"',
    ):
        assert words in str(told.value)
