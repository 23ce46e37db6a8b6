"""Everything a run needs before its next step: new, or as its latest checkpoint left it."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import nn

from cosmos_wds.config import dump, write_text
from cosmos_wds.console import say
from cosmos_wds.data.loader import Loader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError, ConfigError, DataError
from cosmos_wds.model.names import from_released, to_released
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.model.tokenizers import load_tokenizer, open_tokenizer
from cosmos_wds.model.weight_files import load_pt, read_state
from cosmos_wds.model.weights import load_state
from cosmos_wds.recipe import Recipe
from cosmos_wds.train import folder as files
from cosmos_wds.train.checkpoint import (
    checkpoint_file,
    latest_step,
    remove_leftovers,
)
from cosmos_wds.train.ema import Ema
from cosmos_wds.train.optim import (
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    trainable,
)
from cosmos_wds.train.parallel import Ranks, choose_precision, lanes_of
from cosmos_wds.train.run import (
    Place,
    build_denoiser,
    check_contract,
    find_weights,
    load_base,
)

FRAMES_OF_EPISODE = 8
"""Of each episode that the tokenizer is fitted on, where there are enough episodes."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads: found and checked before anything is written."""

    sets: ShardSets
    loader: Loader
    lanes: range
    base: Place | None
    """Weights to start from; None when there are none, or the run only continues."""


@dataclass
class Training:
    """A run between two steps."""

    recipe: Recipe
    ranks: Ranks
    inputs: Inputs
    tokenizer: Tokenizer
    denoiser: Denoiser
    model: nn.Module
    """The denoiser; while training on several ranks, wrapped (loop.distributed)."""
    parameters: dict[str, nn.Parameter]
    """What training moves, by name."""
    optimizer: torch.optim.Optimizer
    ema: Ema
    precision: torch.dtype
    """Of activations; weights, gradients and averages are float32."""
    step: int = 0
    """Steps done: the next one's 0-based number."""
    saved: int = 0
    """The step of the latest checkpoint; 0 when there is none."""
    recent: list[list[float]] = field(default_factory=list)
    """[loss, gradient norm] of each step since the last line of metrics.jsonl."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.recipe.run_folder

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / files.CHECKPOINTS

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one window."""
        window, factor = self.recipe.window, self.tokenizer.factor
        return (
            self.tokenizer.channels,
            window.frames,
            window.picture_height // factor,
            window.width // factor,
        )

    def digests(self) -> dict[str, str]:
        """Of what the weights depend on, and a resume must find again."""
        contract = self.inputs.sets.contract
        return {"action contract": contract.digest, "tokenizer": self.tokenizer.digest}

    def parts(self) -> dict[str, Any]:
        """What the files of a checkpoint hold (checkpoint.py)."""
        weights = self.denoiser.state_dict()
        return {
            "_reg_model": to_released(weights),
            "_ema_model": to_released({**weights, **self.ema.average}),
            "_optim": optimizer_state(self.optimizer, self.parameters),
            "": {
                "iteration": self.step,
                # A rank may have fetched a batch that another one's stop kept it from using.
                "loader": {**self.inputs.loader.state_dict(), "step": self.step},
                "digests": self.digests(),
                "recent": self.recent,
            },
        }


def find_inputs(recipe: Recipe, ranks: Ranks) -> Inputs:
    """Open the shards and find the base weights. Raises UserError; writes nothing."""
    lanes = lanes_of(ranks, recipe.train)
    sets = ShardSets.load(recipe.data)
    loader = Loader(
        sets, recipe, rank=ranks.rank, world=ranks.world, pin=ranks.device.type == "cuda"
    )
    base = None
    if recipe.model.base and latest_step(recipe.run_folder / files.CHECKPOINTS) is None:
        base = find_weights(recipe.model.base)
        check_contract(base, sets.contract)
    return Inputs(sets, loader, lanes, base)


def start(recipe: Recipe, ranks: Ranks, inputs: Inputs) -> Training | None:
    """Begin a run, or continue it; None when all its steps are done. Hold the folder's lock.

    Raises UserError, on every rank, when one of them cannot.
    """
    done = ranks.together(lambda: step_to_continue(recipe))
    if done == recipe.train.steps:
        return None
    ranks.on_first(lambda: prepare_folder(recipe, inputs, is_new=done is None))
    run = ranks.together(lambda: assemble(recipe, ranks, inputs, done))
    if done is not None:
        folder = escape(str(recipe.run_folder))
        say(f"{folder}: continuing after step {done} of {recipe.train.steps}")
    return run


def step_to_continue(recipe: Recipe) -> int | None:
    """The step of the latest checkpoint; None for a new run. ConfigError for another recipe."""
    done = latest_step(recipe.run_folder / files.CHECKPOINTS)
    if done is not None:
        files.check_same_recipe(recipe.run_folder, recipe)
    return done


def prepare_folder(recipe: Recipe, inputs: Inputs, *, is_new: bool) -> None:
    """Clear what a killed process left; give a new run its recipe, contract and tokenizer."""
    folder = recipe.run_folder
    remove_leftovers(folder)
    remove_leftovers(folder / files.CHECKPOINTS)
    if not is_new:
        return
    write_text(folder / files.RECIPE, dump(recipe))
    contract = json.dumps(inputs.sets.contract.to_dict(), indent=1)
    write_text(folder / files.CONTRACT, contract + "\n")
    if recipe.tokenizer.kind == "patch":
        path = folder / files.TOKENIZER
        embedded_tokenizer(recipe, inputs).save(path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def embedded_tokenizer(recipe: Recipe, inputs: Inputs) -> PatchTokenizer:
    """The one that is named, or the base's, whose latents it has learnt; else fitted on shards."""
    base = inputs.base.folder if inputs.base else None
    if recipe.tokenizer.path:
        kind, tokenizer = open_tokenizer(recipe.tokenizer.path)
        if not isinstance(tokenizer, PatchTokenizer):
            raise ConfigError(f"[tokenizer] kind = 'patch', but {recipe.tokenizer.path} is {kind}")
    elif base and (base / files.TOKENIZER).is_file():
        tokenizer = PatchTokenizer.load(base / files.TOKENIZER)
    elif inputs.sets.latents:
        raise ConfigError(
            f"{inputs.sets}: latents hold no frames to fit a tokenizer on; set [tokenizer] path to "
            "the one that made them"
        )
    else:
        say("fitting the tokenizer on the shards' frames")
        tokenizer = PatchTokenizer.fit(
            some_frames(recipe, inputs),
            patch=recipe.tokenizer.patch,
            channels=recipe.model.latent_channels,
        )
    wanted = (recipe.tokenizer.patch, recipe.model.latent_channels)
    if (tokenizer.factor, tokenizer.channels) != wanted:
        raise ConfigError(
            f"{recipe.model.base}: its tokenizer has patch = {tokenizer.factor} and "
            f"{tokenizer.channels} channels, the recipe patch = {wanted[0]} and latent_channels = "
            f"{wanted[1]}"
        )
    return tokenizer


def some_frames(recipe: Recipe, inputs: Inputs) -> torch.Tensor:
    """About [tokenizer] fit_frames frames (N, 3, H, W) uint8, spread over episodes and time."""
    total, count = inputs.sets.episodes, recipe.tokenizer.fit_frames
    episodes = min(total, max(1, count // FRAMES_OF_EPISODE))
    found = []
    for row in torch.linspace(0, total - 1, episodes).long().tolist():
        frames = torch.from_numpy(inputs.loader.read(row).frames)
        times = torch.linspace(0, len(frames) - 1, min(len(frames), -(-count // episodes)))
        found.append(frames[times.long()].permute(0, 3, 1, 2).contiguous())
    return torch.cat(found)


def check_latents(inputs: Inputs, tokenizer: Tokenizer) -> None:
    """Raise DataError when the shards hold latents of another tokenizer than the run's."""
    latents = inputs.sets.latents
    if latents and latents.digest != tokenizer.digest:
        raise DataError(
            f"{inputs.sets}: latents made by tokenizer {latents.digest[:16]} ({latents.tokenizer}),"
            f" and the run's is {tokenizer.digest[:16]}; name the one that made them in "
            "[tokenizer], or make latents with this one"
        )


def assemble(recipe: Recipe, ranks: Ranks, inputs: Inputs, done: int | None) -> Training:
    """Build every part and fill it: from the base, from nothing, or from the checkpoint `done`."""
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.run_folder).to(ranks.device)
    check_latents(inputs, tokenizer)
    denoiser = build_denoiser(recipe, inputs.sets.contract)  # on the meta device: no memory yet
    if done is not None:
        path = checkpoint_file(recipe.run_folder / files.CHECKPOINTS, done, "_reg_model")
        load_state(denoiser, read_state(path), origin=str(path), device=ranks.device)
    elif inputs.base:
        say(escape(str(load_base(denoiser, recipe, inputs.base, device=ranks.device))))
    else:
        denoiser.to_empty(device="cpu").initialise(recipe.seed)
        denoiser.to(ranks.device)
    if recipe.train.compile:
        for block in denoiser.net.blocks:
            block.compile()
    parameters = trainable(denoiser)
    run = Training(
        recipe=recipe,
        ranks=ranks,
        inputs=inputs,
        tokenizer=tokenizer,
        denoiser=denoiser,
        model=denoiser,
        parameters=parameters,
        optimizer=build_optimizer(denoiser, recipe.train),
        ema=Ema(parameters, recipe.train.ema_rate),
        precision=choose_precision(recipe.train.precision, ranks.device),
    )
    if done is not None:
        restore(run, done)
    return run


def restore(run: Training, done: int) -> None:
    """Take moments, averages and position from the checkpoint of step `done`.

    Raises CheckpointError when it is damaged, or what the run reads is not what it was.
    """
    paths = {p: checkpoint_file(run.checkpoints, done, p) for p in ("", "_ema_model", "_optim")}
    state = load_pt(paths[""])
    try:
        run.step, run.recent, before = state["iteration"], state["recent"], state["digests"]
        run.saved = run.step
        run.inputs.loader.load_state_dict(state["loader"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{paths['']}: not the state of a run of cosmos-wds") from None
    now = run.digests()
    for what in [w for w in now if now[w] != before.get(w)]:
        raise CheckpointError(
            f"{paths['']}: the {what} changed since: {str(before.get(what))[:16]} then, "
            f"{now[what][:16]} now; put back what the run began with, or start another one"
        )
    averages, _ = from_released(read_state(paths["_ema_model"]))
    run.ema.load(averages)
    load_optimizer_state(run.optimizer, run.parameters, load_pt(paths["_optim"]))
