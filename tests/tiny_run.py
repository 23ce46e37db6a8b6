"""Runs for tests of rollouts: a random tiny network, and planted ones whose frames are known."""

from pathlib import Path

import torch

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.recipe import DiffusionSettings, Recipe, recipe_from_table
from cosmos_wds.train.run import LoadedRun, Place

PLACE = Place(Path("planted.pt"), None)
BRIDGE, UNSCALED = ActionContract(), ActionContract(scale=(1.0,) * 7)


def tiny_recipe(**sections) -> Recipe:
    """A recipe for 16x32 pictures; `window={"frames": 3}` and such replace its keys."""
    table = {
        "window": {"frames": 2, "height": 16, "width": 32},
        "model": {
            "width": 32,
            "heads": 2,
            "blocks": 2,
            "adaln_rank": 4,
            "text_width": 0,
            "max_frames": 8,
            "max_height": 8,
            "max_width": 8,
        },
        "tokenizer": {"kind": "patch", "patch": 4},
        "train": {"precision": "float32"},
        "infer": {"steps": 3},
    }
    for name, values in sections.items():
        table[name] = {**table.get(name, {}), **values}
    return recipe_from_table(table, origin="test")


def tiny_tokenizer() -> PatchTokenizer:
    generator = torch.Generator().manual_seed(5)
    noise = torch.rand(8, 3, 4, 8, generator=generator)
    frames = torch.nn.functional.interpolate(noise, (16, 32), mode="bilinear")
    return PatchTokenizer.fit((frames * 255).to(torch.uint8))


def random_run(*, contract=BRIDGE, **sections) -> LoadedRun:
    """A network with random weights, so that noise, actions and frames all matter."""
    recipe = tiny_recipe(**sections)
    torch.manual_seed(3)
    denoiser = Denoiser(recipe.model, DiffusionSettings(), action_dims=7)
    denoiser.initialise(0)
    for parameter in denoiser.parameters():  # gates and outputs start at zero: wake them
        torch.nn.init.normal_(parameter, std=0.2)
    return LoadedRun(
        denoiser=denoiser.eval().requires_grad_(False),
        tokenizer=tiny_tokenizer(),
        recipe=recipe,
        contract=contract,
        place=PLACE,
        audit="random",
    )


class GreyTokenizer:
    """A picture of one grey level <-> a latent that holds the level."""

    factor, channels, digest = 4, 1, "grey"

    def encode(self, video):
        return video.float().mean((1, 3, 4))[:, None, :, None, None].expand(-1, 1, -1, 4, 8)

    def decode(self, latent):
        level = latent.mean((1, 3, 4)).round().to(torch.uint8)
        return level[:, None, :, None, None].expand(-1, 3, -1, 16, 32)

    def to(self, device):
        return self


class AddingDenoiser(torch.nn.Module):
    """Each frame is the frame before it plus the first number of its action. Exact at any sigma."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # tells the device
        self.seen, self.actions = [], []

    def terms(self, x, *, action, fps, has_action):
        return None

    def denoise(self, x, sigma, *, given, action, fps, augment_sigma, augment_noise, **_):
        assert action.shape[1] == x.shape[2] - 1
        self.actions.append(action)
        self.seen.append({"fps": fps, "noise": augment_noise, "sigma": augment_sigma})
        return self.predicted(given, action)

    def forward(self, latent, *, action, fps, draws):
        """The mean square error of each window's prediction."""
        return (self.predicted(latent[:, :, 0], action) - latent).square().mean((1, 2, 3, 4))

    def predicted(self, given, action):
        sums = torch.cumsum(action[:, :, 0], dim=1)[:, None, :, None, None]
        return torch.cat([given[:, :, None], given[:, :, None] + sums], dim=2)


class DeafDenoiser(AddingDenoiser):
    """Nothing moves, whatever the actions say."""

    def predicted(self, given, action):
        return super().predicted(given, torch.zeros_like(action))


def with_eval(recipe: Recipe, **changes) -> Recipe:
    """A recipe with other keys of [eval]."""
    return recipe.model_copy(update={"eval": recipe.eval.model_copy(update=changes)})


def planted_run(*, contract=UNSCALED, denoiser=None, **sections) -> LoadedRun:
    """Actions move the grey level of the picture; nothing else matters."""
    return LoadedRun(
        denoiser=denoiser or AddingDenoiser(),
        tokenizer=GreyTokenizer(),
        recipe=tiny_recipe(**sections),
        contract=contract,
        place=PLACE,
        audit="planted",
    )
