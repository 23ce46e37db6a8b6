"""The whole way in one command: recordings, shards, post-training, rollouts, report.

OUTPUT/data/raw, OUTPUT/data/shards   the demo pipeline's recordings and shards
OUTPUT/checkpoints/...                the run of the demo recipe
OUTPUT/rollouts/...                   of held-out episodes, under true and wrong actions
OUTPUT/episode_*.mp4, report.html     some beside the truth, and how close all are
OUTPUT/demo.png, eval.json            a picture of one, and all numbers
OUTPUT/demo.json                      comes last: settings of a finished demo

Every stage goes on where it stopped, so an interrupted demo is continued by the same command, and
a finished one has nothing to do.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from cosmos_wds import __version__
from cosmos_wds.config import dump, override, write_bytes, write_text
from cosmos_wds.console import say
from cosmos_wds.pipeline import Pipeline, load_pipeline
from cosmos_wds.recipe import Recipe, load_recipe

FINISHED, REPORT, RESULTS, POSTER = "demo.json", "report.html", "eval.json", "demo.png"


def demo(output: Path, overrides: Sequence[str] = ()) -> Path:
    """Run the demo under a folder, or what is left of it; returns the report's path.

    overrides   `section.key=value` for the demo's recipe, or for its pipeline where the section is
                one of a pipeline's (generate, shards, ...)
    Raises UserError for anything that the user can mend.
    """
    pipeline, recipe = settings(output, overrides)
    settings_digest = digest(pipeline, recipe)
    results = read_finished(output, settings_digest)
    if results is None:
        results = run_stages(output, pipeline, recipe)
        write_text(output / FINISHED, json.dumps({"settings": settings_digest}) + "\n")
    else:
        say(f"{escape(str(output))}: this demo is finished; delete the folder to run it anew")
    from cosmos_wds.rollout.results import show

    show(results)
    return output / REPORT


def settings(output: Path, overrides: Sequence[str]) -> tuple[Pipeline, Recipe]:
    """The demo's pipeline and recipe with every path below `output`, then the overrides."""
    raw, shards = output / "data" / "raw", output / "data" / "shards"
    sections = tuple(f"{name}." for name in Pipeline.model_fields)
    of_pipeline = [o for o in overrides if o.strip().startswith(sections)]
    of_recipe = [o for o in overrides if o not in of_pipeline]
    pipeline = load_pipeline(
        "demo", [override("source.path", raw), override("shards.path", shards), *of_pipeline]
    )
    places = [override("data.shards", shards), override("output", output / "checkpoints")]
    if any(o.strip().startswith("generate.") for o in of_pipeline):
        places.append('eval.list=""')  # the shipped one is of the episodes as shipped
    return pipeline, load_recipe("demo", [*places, *of_recipe])


def run_stages(output: Path, pipeline: Pipeline, recipe: Recipe) -> dict[str, Any]:
    """Do every stage, each from where it stands; returns what eval.json holds."""
    from cosmos_wds.prepare import shard
    from cosmos_wds.sources.fetch import fetch
    from cosmos_wds.train.loop import train

    say("[bold]1 of 4[/bold]  recordings")
    fetch(pipeline)
    say("[bold]2 of 4[/bold]  shards")
    shard(pipeline)
    say("[bold]3 of 4[/bold]  post-training with actions")
    folder = train(recipe)
    say("[bold]4 of 4[/bold]  rollouts of held-out episodes")
    return roll_out(output, folder, recipe)


def roll_out(output: Path, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Evaluate the trained run, write videos, report, poster and eval.json; returns its content."""
    from cosmos_wds.rollout.episodes import held_out
    from cosmos_wds.rollout.eval_command import ROLLOUTS, write_all, write_results
    from cosmos_wds.rollout.evaluate import evaluate
    from cosmos_wds.rollout.film import poster
    from cosmos_wds.rollout.ready import contract_of
    from cosmos_wds.train.parallel import choose_device
    from cosmos_wds.train.run import load_run

    device = choose_device(recipe.train.device)
    run = load_run(folder, weights=recipe.infer.weights, device=device)
    run = replace(run, recipe=recipe)  # [infer] and [eval] may have changed since the run began
    episodes = held_out(recipe, contract_of(run))
    evaluation = evaluate(run, episodes, folder=output / ROLLOUTS)
    table = write_all(output, evaluation, run, title="cosmos-wds demo")
    write_bytes(output / POSTER, poster(evaluation))
    table["files"].append(POSTER)
    write_results(output, table)
    return table


def digest(pipeline: Pipeline, recipe: Recipe) -> str:
    """Sixteen hex digits of all settings that a demo's results depend on."""
    text = "\n".join((__version__, dump(pipeline), dump(recipe)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_finished(output: Path, settings_digest: str) -> dict[str, Any] | None:
    """The results that a finished demo of the same settings left, if all is still there."""
    try:
        finished: dict[str, Any] = json.loads((output / FINISHED).read_text(encoding="utf-8"))
        if finished["settings"] != settings_digest:
            return None
        results: dict[str, Any] = json.loads((output / RESULTS).read_text(encoding="utf-8"))
        is_whole = all((output / name).is_file() for name in results["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return results if is_whole else None
