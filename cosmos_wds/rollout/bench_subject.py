"""What `bench rollout` rolls out: a trained run, or a network of a named size with random weights.

R rollouts, N actions, A numbers of an action, H x W pixels.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cosmos_wds.console import say
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import DataError
from cosmos_wds.model.show import ACTION_DIMS
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.model.weights import Audit
from cosmos_wds.recipe import Recipe, recipe_from_table
from cosmos_wds.rollout.episodes import held_out
from cosmos_wds.rollout.ready import contract_of
from cosmos_wds.sizes import model_settings, size_names
from cosmos_wds.train.bench_model import fill_randomly
from cosmos_wds.train.parallel import choose_precision
from cosmos_wds.train.run import LoadedRun, Place, load_run

PICTURE, SMALL_PICTURE = (8, 256, 320), (4, 48, 64)
"""Pixels of a latent cell's side, rows and columns: of NVIDIA's sizes, and of cosmos-tiny."""


@dataclass(frozen=True)
class Inputs:
    """First frames and actions."""

    first: np.ndarray
    """(R, H, W, 3) uint8"""
    actions: np.ndarray
    """(R, N, A) physical units"""
    truth: np.ndarray | None
    """(R, N+1, H, W, 3) uint8: the recordings, when they are some"""

    def of(self, count: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` first frames, repeated where there are fewer, and `frames` actions of each."""
        rows = np.arange(count) % len(self.first)
        return self.first[rows], self.actions[rows, :frames]


def open_subject(
    name: str, *, size: tuple[int | None, int | None], device: torch.device, compiled: bool
) -> LoadedRun:
    """The model that a size, or a name of trained weights, means.

    size       height and width in pixels; None: as trained, or usual

    Raises UserError for a name that is neither, or for pictures that the model cannot make.
    """
    if name in size_names():
        run = _random_run(name, size, device)
    else:
        run = load_run(name, device=device)
        run = replace(run, recipe=_changed(run.recipe, size))
    infer = run.recipe.infer.model_copy(update={"compile": compiled, "guardrail": ""})
    return replace(run, recipe=run.recipe.model_copy(update={"infer": infer}))


def _random_run(name: str, size: tuple[int | None, int | None], device: torch.device) -> LoadedRun:
    settings = model_settings(name)
    patch, height, width = PICTURE if settings.is_nvidia else SMALL_PICTURE
    table = {
        "name": name,
        "window": {"height": size[0] or height, "width": size[1] or width},
        "model": settings.model_dump(),
        "tokenizer": {"kind": "patch", "patch": patch},
    }
    recipe = recipe_from_table(table, origin=name)
    with torch.device("meta"):
        denoiser = Denoiser(settings, recipe.diffusion, action_dims=ACTION_DIMS)
    denoiser = denoiser.to(choose_precision("auto", device)).to_empty(device=device)
    fill_randomly(denoiser)
    return LoadedRun(
        denoiser=denoiser.eval().requires_grad_(False),
        tokenizer=PatchTokenizer.fit(_noise_pictures(16, 64, 64, patch), patch=patch).to(device),
        recipe=recipe,
        contract=ActionContract(),
        place=Place(Path(name), None),
        audit=Audit(name, 0, 0, (), (), 0, {}),
    )


def _changed(recipe: Recipe, size: tuple[int | None, int | None]) -> Recipe:
    """The recipe with pictures of another size. Raises ConfigError for one that cannot be."""
    asked = {key: value for key, value in zip(("height", "width"), size, strict=True) if value}
    table = recipe.model_dump()
    return recipe_from_table({**table, "window": {**table["window"], **asked}}, origin=recipe.name)


def inputs_of(run: LoadedRun, frames: int) -> Inputs:
    """Episodes of the run's own validation split, if its shards are there; else random ones."""
    window = run.recipe.window
    if run.place.folder is not None:
        asked = run.recipe.eval.model_copy(update={"actions": frames})
        try:
            episodes = held_out(run.recipe.model_copy(update={"eval": asked}), contract_of(run))
        except DataError as error:
            say(f"random inputs: {error}")
        else:
            return Inputs(episodes.frames[:, 0], episodes.actions, episodes.frames)
    rng = np.random.default_rng(0)
    pictures = _noise_pictures(8, window.picture_height, window.width, 16)
    actions = rng.normal(0, 0.01, (8, frames, len(contract_of(run).names)))
    return Inputs(pictures.permute(0, 2, 3, 1).contiguous().numpy(), actions, None)


def _noise_pictures(count: int, height: int, width: int, cell: int) -> torch.Tensor:
    """Smooth random pictures (count, 3, height, width) uint8, about one colour each `cell`."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, height // cell + 1, width // cell + 1, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 255).to(torch.uint8)
