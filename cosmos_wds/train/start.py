"""Everything a run needs before its next step: new, or as its latest checkpoint left it."""

import json
import os

import torch
from rich.markup import escape

from cosmos_wds.config import dump, write_text
from cosmos_wds.console import say
from cosmos_wds.data.loader import Loader
from cosmos_wds.data.memory import keep_freed_memory
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError, ConfigError, DataError
from cosmos_wds.model.tokenizer import Tokenizer
from cosmos_wds.model.tokenizer_patch import PatchTokenizer
from cosmos_wds.model.tokenizers import load_tokenizer, open_tokenizer
from cosmos_wds.recipe import Recipe
from cosmos_wds.train import folder as files
from cosmos_wds.train.checkpoint import checkpoint_folder, latest_step, remove_leftovers
from cosmos_wds.train.distribute import apply_checkpointing, shard
from cosmos_wds.train.ema import build_ema
from cosmos_wds.train.extras import check_extras
from cosmos_wds.train.lora import add_lora
from cosmos_wds.train.optim import build_optimizer, trainable
from cosmos_wds.train.parallel import Ranks, choose_precision, lanes_of
from cosmos_wds.train.run import (
    build_denoiser,
    check_contract,
    find_weights,
    load_base,
)
from cosmos_wds.train.state import Saver, read_facts, restore_tensors
from cosmos_wds.train.training import Inputs, Training, Work

FRAMES_OF_EPISODE = 8
"""Of each episode that the tokenizer is fitted on, where there are enough episodes."""


def find_inputs(recipe: Recipe, ranks: Ranks) -> Inputs:
    """Open the shards and find the base weights. Raises UserError; writes nothing."""
    check_extras(recipe)
    if ranks.device.type == "cuda":
        keep_freed_memory()  # of decoded frames; a step on the CPU needs it for other sizes
    lanes = lanes_of(ranks, recipe.train)
    sets = ShardSets.load(recipe.data)
    loader = Loader(
        sets, recipe, rank=ranks.rank, world=ranks.world, pin=ranks.device.type == "cuda"
    )
    base = None
    checkpoints = recipe.run_folder / files.CHECKPOINTS
    if recipe.model.base and (recipe.lora.rank or latest_step(checkpoints) is None):
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
    settings = recipe.train
    precision = choose_precision(settings.precision, ranks.device)
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.run_folder).to(ranks.device)
    check_latents(inputs, tokenizer)
    denoiser = build_denoiser(recipe, inputs.sets.contract)  # on the meta device: no memory yet
    if done is None and not inputs.base:
        denoiser.to_empty(device="cpu").initialise(recipe.seed)
        denoiser.to(ranks.device)
    spread(denoiser, recipe, ranks, precision)
    if inputs.base:
        say(escape(str(load_base(denoiser, recipe, inputs.base, device=ranks.device))))
    elif done is not None:
        denoiser.to_empty(device=ranks.device)  # filled by `restore`
    run = Training(
        **vars(equip(recipe, ranks, denoiser, precision, tokenizer)),
        inputs=inputs,
        saver=Saver(
            recipe.run_folder / files.CHECKPOINTS, ranks, keep=settings.keep, step=done or 0
        ),
    )
    if done is not None:
        restore(run, done)
    return run


def equip(
    recipe: Recipe,
    ranks: Ranks,
    denoiser: Denoiser,
    precision: torch.dtype,
    tokenizer: Tokenizer | None,
) -> Work:
    """A filled network with all that training it needs: adapters, optimizer, average, lanes."""
    settings = recipe.train
    if recipe.lora.rank:
        frozen = precision if ranks.device.type == "cuda" else torch.float32
        add_lora(denoiser, recipe.lora, seed=recipe.seed, frozen=frozen)
    parameters = trainable(denoiser)
    return Work(
        recipe=recipe,
        ranks=ranks,
        tokenizer=tokenizer,
        latent_shape=(recipe.model.latent_channels, *recipe.latent_size),
        denoiser=denoiser,
        model=denoiser,
        parameters=parameters,
        optimizer=build_optimizer(denoiser, settings),
        ema=build_ema(parameters, settings),
        precision=precision,
        lanes=lanes_of(ranks, settings),
    )


def spread(denoiser: Denoiser, recipe: Recipe, ranks: Ranks, precision: torch.dtype) -> None:
    """What the recipe asks for around the blocks: checkpointing, compilation, sharding."""
    settings = recipe.train
    apply_checkpointing(denoiser, settings.checkpointing)
    if settings.compile:
        for block in denoiser.net.blocks:
            block.compile()
    if settings.way(ranks.world) == "fsdp":
        shard(denoiser, ranks, replicate=settings.replicate, precision=precision)
        if next(denoiser.parameters()).is_meta:
            denoiser.to_empty(device=ranks.device)


def restore(run: Training, done: int) -> None:
    """Take weights, averages, the optimizer's state and the position from the checkpoint `done`.

    Raises CheckpointError when it is damaged, or what the run reads is not what it was.
    """
    folder = checkpoint_folder(run.checkpoints, done)
    facts = read_facts(folder)
    before, now = facts["digests"], run.digests()
    for what in [w for w in now if now[w] != before.get(w)]:
        raise CheckpointError(
            f"{folder}: the {what} changed since: {str(before.get(what))[:16]} then, "
            f"{now[what][:16]} now; put back what the run began with, or start another one"
        )
    run.inputs.loader.load_state_dict(facts["loader"])
    run.step, run.recent = facts["iteration"], facts["recent"]
    restore_tensors(folder, run.tensors(), run.ranks)
