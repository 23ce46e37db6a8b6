"""The body of `cosmos-wds infer`: weights, first frames and actions -> videos.

A rollout's frames depend on its seed, first frame and actions alone: all have the number 0, so that
an episode looks the same by itself and among others.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.markup import escape

from cosmos_wds.console import say
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.storage import storage
from cosmos_wds.diffusion.guardrail import remind
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.recipe import Recipe, load_recipe
from cosmos_wds.rollout.action_log import ActionLog, read_log, weights_digest
from cosmos_wds.rollout.asked import Asked, Inputs
from cosmos_wds.rollout.choice import LARGEST_SEED, MOST
from cosmos_wds.rollout.described import adjusted, describe
from cosmos_wds.rollout.jobs import Job, digest, episode_jobs, single_job
from cosmos_wds.rollout.outputs import (
    LEDGER,
    Form,
    Ledger,
    Outputs,
    check_writable,
    claimed,
)
from cosmos_wds.rollout.replay import check_log
from cosmos_wds.rollout.work import Work, make, tell_folder
from cosmos_wds.sources.bridge import BridgeSource
from cosmos_wds.train.parallel import choose_device
from cosmos_wds.train.run import find_weights, load_run

RUNS_ALIKE = {"batch", "compile"}
"""Keys of [infer] that change nothing in what is seen."""


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """What the user asks of `infer`; None stands for the recipe's choice."""

    checkpoint: str | None
    """A run's folder, a file of weights, or the name of shipped ones; None: the log's."""
    output: Path
    """An .mp4 file, or a folder, in which a stopped command goes on."""
    asked: Asked = field(default_factory=Asked)
    episodes: tuple[str, ...] = ()
    """Of the shards (choice.py)."""
    shards: str | None = None
    """A set in place of the recipe's."""
    replay: Path | None = None
    """An action log."""
    seeds: tuple[int, ...] = ()
    """A rollout for each; none: 0."""
    steps: int | None = None
    """Sampler steps per call."""
    frames_per_call: int | None = None
    guidance: float | None = None
    guardrail: str | None = None
    """`module:function` that the frames pass through."""
    settings: tuple[str, ...] = ()
    """`section.key=value` of [infer] and [data]."""
    fps: float | None = None
    """Frames per second of the output; None: those of the data."""
    height: int | None = None
    """Size of the output; None: the model's."""
    width: int | None = None
    compare: bool = False
    """Put the recording to the left of the rollout, and tell how far apart they are."""
    png: bool = False
    npz: bool = False
    overwrite: bool = False
    device: str = "auto"

    @property
    def is_folder(self) -> bool:
        """Whether many videos are asked for, in a folder."""
        return self.output.suffix != ".mp4"


def infer(request: InferRequest) -> Path:
    """Write the videos that a request asks for; returns the file's path, or the folder's.

    Everything that can be refused is refused before the weights are read. Raises UserError.
    """
    check_request(request)
    device = choose_device(request.device)
    log = read_log(request.replay) if request.replay else None
    checkpoint = request.checkpoint or (log.checkpoint if log else "")
    recipe, contract = describe(checkpoint)
    recipe = adjusted(
        recipe,
        request.settings,
        shards=request.shards,
        guardrail=request.guardrail,
        steps=log.steps if log else request.steps,
        frames_per_call=request.frames_per_call,
        guidance=request.guidance,
    )
    place = find_weights(checkpoint, recipe.infer.weights)
    if log:
        check_log(str(request.replay), log, contract, place)
    seeds = (log.seed,) if log else request.seeds or (0,)
    works = _works(request, _jobs(request, log, contract, recipe), seeds)
    outputs = Outputs(
        request.output if request.is_folder else request.output.parent,
        _form(request, recipe, contract),
        contract,
        request.overwrite,
    )
    with claimed(outputs.folder) if request.is_folder else nullcontext():
        ledger = _ledger(request, outputs, recipe, seeds=seeds, weights=weights_digest(place))
        missing = _missing(works, outputs, ledger)
        if missing:
            run = load_run(checkpoint, weights=recipe.infer.weights, device=device)
            run = replace(run, recipe=recipe)
            say(escape(str(run.audit)))
            remind(recipe)
            make(run, missing, outputs, ledger, log)
        if ledger:
            tell_folder(outputs.folder, works, ledger, len(missing))
    return request.output


def check_request(request: InferRequest) -> None:
    """Refuse numbers and outputs that cannot be, before anything is loaded. Raises UserError."""
    for seed in request.seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise ConfigError(f"--seed {seed}: a whole number from 0 to {LARGEST_SEED}")
    for name, value in (("steps", request.steps), ("count", request.asked.count)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: at least 1")
    if request.fps is not None and not 0 < request.fps <= 1000:
        raise ConfigError(f"--fps {request.fps}: above 0, at most 1000")
    for name, size in (("height", request.height), ("width", request.width)):
        if size is not None and (size < 16 or size % 2 or size > 8192):
            raise ConfigError(f"--{name} {size}: H.264 takes even sizes; from 16 to 8192 here")
    _check_output(request.output)
    check_writable(request.output / LEDGER if request.is_folder else request.output)


def _check_output(output: Path) -> None:
    if output.suffix not in ("", ".mp4") and not output.is_dir():
        raise ConfigError(f"{output}: the output is an .mp4 file, or a folder")
    if output.is_dir() and output.suffix == ".mp4":
        raise ConfigError(f"{output}: is a folder; name a file in it")
    if output.is_file() and output.suffix != ".mp4":
        raise ConfigError(f"{output}: is a file; name a folder, or an .mp4 file")


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


def _jobs(
    request: InferRequest, log: ActionLog | None, contract: ActionContract, recipe: Recipe
) -> list[Job]:
    if log:
        assert request.replay is not None
        actions = log.actions[: request.asked.count]
        inputs = Inputs(log.first, actions, None)
        return [Job(request.replay.stem, len(actions), lambda: inputs, digest(request.replay))]
    ways = {"contract": contract, "recipe": recipe, "with_truth": request.compare}
    if request.episodes:
        return episode_jobs(request.asked, request.episodes, **ways)
    return [single_job(request.asked, **ways)]


def _works(request: InferRequest, jobs: Sequence[Job], seeds: Sequence[int]) -> list[Work]:
    """A rollout for each job and seed. Raises ConfigError when they are too many."""
    if len(jobs) > 1 and not request.is_folder:
        raise ConfigError(f"{request.output}: {len(jobs)} episodes make as many; name a folder")
    if len(jobs) * len(seeds) > MOST:
        raise ConfigError(f"{len(jobs)} episodes under {len(seeds)} seeds: at most {MOST} rollouts")
    works = []
    for job, seed in product(jobs, seeds):
        name = job.name if request.is_folder else request.output.stem
        works.append(Work(f"{name}_seed{seed}" if len(seeds) > 1 else name, job, seed))
    return works


def _form(request: InferRequest, recipe: Recipe, contract: ActionContract) -> Form:
    window = recipe.window
    return Form(
        fps=request.fps or contract.fps / window.interval,
        height=request.height or window.picture_height,
        width=request.width or window.width,
        compare=request.compare,
        png=request.png,
        npz=request.npz,
    )


def _ledger(
    request: InferRequest,
    outputs: Outputs,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    weights: str,
) -> Ledger | None:
    """What is known of a folder's rollouts; None for a single file."""
    if not request.is_folder:
        return None
    window, asked = recipe.call_window, request.asked
    settings: dict[str, Any] = {
        "weights": weights,
        "contract": outputs.contract.digest,
        "seed": "in the names" if len(seeds) > 1 else seeds[0],
        **{f"infer.{k}": v for k, v in recipe.infer.model_dump().items() if k not in RUNS_ALIKE},
        "frames of a call": window.frames - 1,
        "model's size": [window.picture_height, window.width],
        "first frame": digest(asked.first) if asked.first else "the recording's",
        "actions": digest(asked.npy) if asked.npy else asked.script or "the recording's",
        "count": asked.count,
        **vars(outputs.form),
    }
    ledger = Ledger(request.output / LEDGER, settings, overwrite=request.overwrite)
    if ledger.left:
        say(
            f"{escape(str(request.output))}: {len(ledger.left)} rollouts were made otherwise; "
            f"those that are not replaced stay, and {LEDGER} forgets them"
        )
    return ledger


def _missing(works: Sequence[Work], outputs: Outputs, ledger: Ledger | None) -> list[Work]:
    """What is still to be made. Raises ConfigError when files of somebody else are in the way."""
    if ledger is None:
        outputs.check_free([work.name for work in works])
        return list(works)
    missing = [
        work
        for work in works
        if outputs.overwrite
        or not ledger.is_finished(work.name, work.job.source, outputs.files(work.name))
    ]
    outputs.check_free([work.name for work in missing if work.name not in ledger.rollouts])
    if 0 < len(missing) < len(works):
        say(f"{len(works) - len(missing)} of {len(works)} rollouts are there: going on")
    return missing
