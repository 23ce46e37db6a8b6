"""The body of `cosmos-wds infer`: weights, a first frame and actions -> a video."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.markup import escape

from cosmos_wds.console import say
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.storage import storage
from cosmos_wds.data.video import resize
from cosmos_wds.diffusion.guardrail import load_guardrail, remind
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.recipe import Recipe, load_recipe
from cosmos_wds.rollout.film import beside, write_mp4
from cosmos_wds.rollout.inputs import Inputs, read_inputs
from cosmos_wds.rollout.metrics import psnr, shown_steps
from cosmos_wds.rollout.rollout import contract_of, rollout_with_bar
from cosmos_wds.sources.bridge import BridgeSource
from cosmos_wds.train.folder import read_recipe
from cosmos_wds.train.parallel import choose_device
from cosmos_wds.train.run import Kind, find_weights, load_run


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """What the user asks of `infer`; None stands for the recipe's choice."""

    checkpoint: str
    """A run's folder, a file of weights, or the name of shipped ones."""
    actions: Path
    """An annotation (.json, Bridge layout) or an array (.npy)."""
    output: Path
    first: Path | None = None
    """An image or a video; None takes the annotation's own video."""
    seed: int = 0
    steps: int | None = None
    """Sampler steps per call."""
    fps: float | None = None
    """Frames per second of the output; None: those of the data."""
    height: int | None = None
    """Size of the output; None: the model's."""
    width: int | None = None
    compare: bool = False
    """Put the recording to the left of the rollout, and tell how far apart they are."""
    overwrite: bool = False
    weights: Kind | None = None
    device: str = "auto"
    guardrail: str | None = None
    """`module:function` that the frames pass through; None: the recipe's."""


def infer(request: InferRequest) -> Path:
    """Write the video that a request asks for; returns its path.

    Everything that can be refused is refused before the weights are read. Raises UserError.
    """
    check_request(request)
    device = choose_device(request.device)
    recipe, contract = describe(request.checkpoint)
    recipe = with_guardrail(recipe, request.guardrail)
    inputs = read_inputs(
        request.first,
        request.actions,
        contract=contract,
        window=recipe.window,
        with_truth=request.compare,
    )
    kind = request.weights or recipe.infer.weights
    run = load_run(request.checkpoint, weights=kind, device=device)
    run = replace(run, recipe=recipe)
    say(escape(str(run.audit)))
    remind(recipe)
    frames = rollout_with_bar(
        run, inputs.first[None], inputs.actions[None], seed=request.seed, steps=request.steps
    )[0]
    shown = _at_size(frames, request)
    if inputs.truth is not None:
        _tell_psnr(frames, inputs)
        shown = beside(_at_size(inputs.truth, request), shown)
    fps = request.fps or contract.fps / recipe.window.interval
    write_mp4(request.output, shown, fps)
    say(f"{escape(str(request.output))}: {len(frames)} frames, {len(inputs.actions)} actions")
    return request.output


def with_guardrail(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe with another guardrail, if one is given.

    Raises ConfigError when the guardrail cannot be imported.
    """
    if name == "":  # as from an unset variable of the shell; it must not remove the recipe's own
        raise ConfigError("--guardrail '': empty; leave it out for the recipe's own")
    if name is not None:
        changed = recipe.infer.model_copy(update={"guardrail": name})
        recipe = recipe.model_copy(update={"infer": changed})
    load_guardrail(recipe.infer.guardrail)
    return recipe


def check_request(request: InferRequest) -> None:
    """Refuse numbers and outputs that cannot be, before anything is loaded. Raises UserError."""
    if request.output.suffix != ".mp4":
        raise ConfigError(f"{request.output}: the output is an .mp4 file")
    if not 0 <= request.seed < 2**32:
        raise ConfigError(f"--seed {request.seed}: a whole number from 0 to 4294967295")
    if request.steps is not None and request.steps < 1:
        raise ConfigError(f"--steps {request.steps}: at least 1")
    if request.fps is not None and not 0 < request.fps <= 1000:
        raise ConfigError(f"--fps {request.fps}: above 0, at most 1000")
    for name, size in (("height", request.height), ("width", request.width)):
        if size is not None and (size < 16 or size % 2 or size > 8192):
            raise ConfigError(f"--{name} {size}: H.264 takes even sizes; from 16 to 8192 here")
    check_output(request.output, overwrite=request.overwrite)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that is there, or whose folder cannot be written. Raises ConfigError."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists; name another file, or give --overwrite")
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{path}: its folder cannot be written: {error.strerror}; choose another one"
        ) from None


def bridge_run() -> str:
    """The run of the bridge recipe, which `infer` takes when none is named."""
    return str(load_recipe("bridge").run_folder)


def bridge_episode() -> Path:
    """The first validation episode of Bridge. Raises DataError when it is not there."""
    root = load_pipeline("bridge").source.path
    episodes = BridgeSource(storage(root)).list("val")
    if not episodes:
        raise DataError(f"{root}: no val episode; give --annotation FILE or --npy FILE")
    return Path(root) / episodes[0].file


def describe(checkpoint: str) -> tuple[Recipe, ActionContract]:
    """The recipe and contract that lie beside weights, without reading the weights themselves.

    Raises CheckpointError when there are none.
    """
    place = find_weights(checkpoint)
    contract, recipe = place.contract, read_recipe(place.folder) if place.folder else None
    if recipe is None or contract is None or recipe.model.actions == "none":
        run = load_run(checkpoint)  # says what is missing, unless the model takes no actions
        return run.recipe, contract_of(run)
    return recipe, contract


def _at_size(frames: np.ndarray, request: InferRequest) -> np.ndarray:
    height, width = frames.shape[1:3]
    return resize(frames, request.height or height, request.width or width)


def _tell_psnr(frames: np.ndarray, inputs: Inputs) -> None:
    assert inputs.truth is not None
    values = psnr(frames[1:], inputs.truth[1:])
    parts = ", ".join(f"{values[s - 1]:.1f} at step {s}" for s in shown_steps(len(values)))
    say(f"PSNR against the recording, dB: {parts}; mean {values.mean():.1f}")
