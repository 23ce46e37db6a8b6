"""The body of `cosmos-wds eval`: weights and shards -> numbers, films and a report.

OUTPUT/rollouts/ROW/KEY.npz            rollouts, kept so that the same command goes on (kept.py)
OUTPUT/episode_*.mp4, report.html      some of them beside the recordings, and all numbers
OUTPUT/eval.json                       the numbers; comes last
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from cosmos_wds import __version__
from cosmos_wds.config import dump, write_text
from cosmos_wds.console import say
from cosmos_wds.data.lock import holding
from cosmos_wds.diffusion.guardrail import remind
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.recipe import Recipe
from cosmos_wds.rollout.action_log import weights_digest
from cosmos_wds.rollout.choice import read_choices
from cosmos_wds.rollout.described import adjusted, describe
from cosmos_wds.rollout.episodes import HeldOut, held_out, write_list
from cosmos_wds.rollout.evaluate import evaluate
from cosmos_wds.rollout.evaluation import Evaluation
from cosmos_wds.rollout.film import write_films
from cosmos_wds.rollout.measures import wanted_measures
from cosmos_wds.rollout.outputs import check_writable
from cosmos_wds.rollout.report import Facts, read_losses, write_report
from cosmos_wds.rollout.results import FORMAT, results, show, to_text
from cosmos_wds.train.folder import METRICS
from cosmos_wds.train.parallel import choose_device
from cosmos_wds.train.run import LoadedRun, find_weights, load_run

RESULTS, REPORT, ROLLOUTS = "eval.json", "report.html", "rollouts"
LOCK = ".eval.lock"


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What the user asks of `eval`; None stands for the recipe's choice."""

    checkpoint: str
    """A run's folder, a file of weights, or the name of shipped ones."""
    output: Path
    shards: str | None = None
    split: str | None = None
    episodes: tuple[str, ...] = ()
    """As read_choices takes them."""
    steps: int | None = None
    """Sampler steps per call."""
    guardrail: str | None = None
    settings: tuple[str, ...] = ()
    """`section.key=value` of [eval], [infer], [data]."""
    write_list: Path | None = None
    """Where to write the keys of the episodes."""
    overwrite: bool = False
    device: str = "auto"


def run_eval(request: EvalRequest) -> dict[str, Any]:
    """Do what is left of an evaluation, and show it; returns what eval.json holds.

    What can be refused is refused before the weights are read. Raises UserError.
    """
    device = choose_device(request.device)
    choices = read_choices(request.episodes) if request.episodes else ()
    recipe, contract = describe(request.checkpoint)
    recipe = _adjusted(recipe, request)
    wanted_measures(recipe.eval)
    place = find_weights(request.checkpoint, recipe.infer.weights)
    episodes = held_out(recipe, contract, choices)
    check_writable(request.output / RESULTS)
    with holding(request.output / LOCK) as holder:
        if holder is not None:
            raise ConfigError(
                f"{request.output}: another eval is writing here (process {holder or '?'}); wait "
                "for it, or name another --output"
            )
        if request.write_list:
            write_list(request.write_list, episodes.keys)
        settings = digest(recipe, episodes, weights_digest(place))
        table = read_results(request.output)
        _refuse_other(table, settings, request)
        if table and table.get("settings") == settings and _is_whole(request.output, table):
            say(f"{escape(str(request.output))}: this evaluation is finished")
        else:
            run = load_run(request.checkpoint, weights=recipe.infer.weights, device=device)
            say(escape(str(run.audit)))
            remind(recipe)
            run = replace(run, recipe=recipe)
            evaluation = evaluate(run, episodes, folder=request.output / ROLLOUTS)
            table = write_all(request.output, evaluation, run, title=f"Evaluation of {recipe.name}")
            write_results(request.output, {**table, "settings": settings})
    show(table)
    return table


def _adjusted(recipe: Recipe, request: EvalRequest) -> Recipe:
    """The recipe as the options change it. Raises ConfigError."""
    recipe = adjusted(
        recipe,
        request.settings,
        shards=request.shards,
        guardrail=request.guardrail,
        steps=request.steps,
    )
    if request.split is None:
        return recipe
    if request.episodes:
        raise ConfigError("--episodes names its splits; leave --split out")
    changed = recipe.eval.model_copy(update={"split": request.split})
    return recipe.model_copy(update={"eval": changed})


def write_all(
    output: Path, evaluation: Evaluation, run: LoadedRun, *, title: str
) -> dict[str, Any]:
    """Write films and the report in the place of others; returns what eval.json shall hold.

    Raises DataError when the disk refuses.
    """
    contract, recipe = run.contract, run.recipe
    assert contract is not None
    _clear(output)
    videos = write_films(
        output,
        evaluation,
        fps=contract.fps / recipe.window.interval,
        count=recipe.eval.films,
    )
    facts = Facts(
        title=title,
        seed=recipe.eval.seed,
        sampler_steps=recipe.infer.steps,
        losses=read_losses(run.place.folder / METRICS) if run.place.folder else (),
    )
    write_report(output / REPORT, evaluation, run, facts=facts, videos=videos)
    files = [REPORT, *(video.name for video in videos)]
    return {**results(evaluation, run), "files": files}


def write_results(output: Path, table: dict[str, Any]) -> None:
    """Write eval.json. Raises DataError when the disk refuses."""
    try:
        write_text(output / RESULTS, to_text(table))
    except OSError as error:
        raise DataError(f"{output / RESULTS}: cannot be written: {error.strerror}") from None


def _clear(output: Path) -> None:
    """Take away what eval.json of an evaluation before names, itself first."""
    before = read_results(output)
    if before is None:
        return
    (output / RESULTS).unlink()
    for name in before["files"]:
        if Path(name).name == name:
            (output / name).unlink(missing_ok=True)


def read_results(output: Path) -> dict[str, Any] | None:
    """What eval.json holds; None where there is none. Raises ConfigError for something else."""
    path = output / RESULTS
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] == FORMAT and isinstance(table["files"], list):
            return table
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{path}: not what eval wrote; name another --output, or remove the file")


def digest(recipe: Recipe, episodes: HeldOut, weights: str) -> str:
    """Sixteen hex digits of all that an evaluation's results depend on."""
    words: Sequence[str] = (
        __version__,
        dump(recipe),
        weights,
        episodes.digest,
        *episodes.keys,
        *wanted_measures(recipe.eval),
    )
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _refuse_other(table: dict[str, Any] | None, settings: str, request: EvalRequest) -> None:
    """Raise ConfigError when the folder holds an evaluation of other settings."""
    if table and table.get("settings") != settings and not request.overwrite:
        raise ConfigError(
            f"{request.output / RESULTS}: of other weights, episodes or settings; name another "
            "--output, or give --overwrite"
        )


def _is_whole(output: Path, table: dict[str, Any]) -> bool:
    return all((output / str(name)).is_file() for name in table["files"])
