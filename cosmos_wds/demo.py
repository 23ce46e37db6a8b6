"""The whole way in one command: recordings, shards, post-training, rollouts, report.

OUTPUT/data/raw, OUTPUT/data/shards   the demo pipeline's recordings and shards
OUTPUT/checkpoints/...                the run of the demo recipe
OUTPUT/episode_*.mp4, report.html     held-out episodes beside the truth, and how close they are
OUTPUT/demo.json                      comes last: settings and numbers of a finished demo

Every stage goes on where it stopped, so an interrupted demo is continued by the same command, and
a finished one has nothing to do.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from cosmos_wds import __version__
from cosmos_wds.config import dump, override, write_text
from cosmos_wds.console import console, say
from cosmos_wds.pipeline import Pipeline, load_pipeline
from cosmos_wds.recipe import Recipe, load_recipe
from cosmos_wds.rollout.metrics import StepRow, psnr_table, verdict
from cosmos_wds.train.interval import Interval

FINISHED, REPORT = "demo.json", "report.html"
STEPS, FILMS, SEED = 16, 6, 0
"""Actions of a rollout (at interval 1), episodes that the report shows, and the rollouts' noise."""


def demo(output: Path, overrides: Sequence[str] = ()) -> Path:
    """Run the demo under a folder, or what is left of it; returns the report's path.

    overrides   `section.key=value` for the demo's recipe, or for its pipeline where the section is
                one of a pipeline's (generate, shards, ...)
    Raises UserError for anything that the user can mend.
    """
    pipeline, recipe = settings(output, overrides)
    report, settings_digest = output / REPORT, digest(pipeline, recipe)
    finished = read_finished(output, settings_digest)
    if finished is None:
        finished = run_stages(output, pipeline, recipe)
        finished["settings"] = settings_digest
        write_text(output / FINISHED, json.dumps(finished, indent=1) + "\n")
    else:
        say(f"{escape(str(output))}: this demo is finished; delete the folder to run it anew")
    tell(finished)
    return report


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
    return pipeline, load_recipe("demo", [*places, *of_recipe])


def run_stages(output: Path, pipeline: Pipeline, recipe: Recipe) -> dict[str, Any]:
    """Do every stage, each from where it stands; returns what demo.json keeps."""
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
    """Evaluate the trained run and write videos and report; returns the numbers."""
    from cosmos_wds.rollout.episodes import evaluate, held_out
    from cosmos_wds.rollout.film import write_films
    from cosmos_wds.rollout.report import Facts, read_losses, write_report
    from cosmos_wds.rollout.rollout import contract_of
    from cosmos_wds.train.folder import METRICS
    from cosmos_wds.train.parallel import choose_device
    from cosmos_wds.train.run import load_run

    device = choose_device(recipe.train.device)
    run = load_run(folder, weights=recipe.infer.weights, device=device)
    run = replace(run, recipe=recipe)  # [infer] may have changed since the run began
    contract, interval = contract_of(run), recipe.window.interval
    episodes = held_out(
        recipe.data.shards,
        "val",
        contract=contract,
        window=recipe.window,
        steps=max(1, STEPS // interval),
    )
    evaluation = evaluate(run, episodes, seed=SEED)
    videos = write_films(output, evaluation, fps=contract.fps / interval, count=FILMS)
    facts = Facts(
        title="cosmos-wds demo",
        seed=SEED,
        sampler_steps=recipe.infer.steps,
        losses=read_losses(folder / METRICS),
    )
    write_report(output / REPORT, evaluation, run, facts=facts, videos=videos)
    return {
        "report": REPORT,
        "videos": [video.name for video in videos],
        "gain": list(evaluation.gain),
        "rows": [asdict(row) for row in evaluation.rows],
    }


def digest(pipeline: Pipeline, recipe: Recipe) -> str:
    """Sixteen hex digits of all settings that a demo's results depend on."""
    text = "\n".join((__version__, dump(pipeline), dump(recipe)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_finished(output: Path, settings_digest: str) -> dict[str, Any] | None:
    """What a finished demo of the same settings left, if it is all still there."""
    try:
        finished: dict[str, Any] = json.loads((output / FINISHED).read_text(encoding="utf-8"))
        names = [finished["report"], *finished["videos"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_whole = all((output / name).is_file() for name in names)
    return finished if is_whole and finished.get("settings") == settings_digest else None


def tell(finished: dict[str, Any]) -> None:
    """Show the table and the verdict of a finished demo."""
    rows = tuple(
        StepRow(**{k: v if k == "step" else Interval(*v) for k, v in row.items()})
        for row in finished["rows"]
    )
    console.print(psnr_table(rows))
    say(verdict(Interval(*finished["gain"]), len(rows)))
