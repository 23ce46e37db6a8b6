"""report.html: what rollouts of held-out episodes look like and measure, in one file.

Nothing is loaded from elsewhere: style, script, charts, pictures and videos stand in the file
itself. Without the script everything but the sliders works.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cosmos_wds.config import dump, write_text
from cosmos_wds.errors import DataError
from cosmos_wds.page import html_page
from cosmos_wds.rollout import report_control, report_scores
from cosmos_wds.rollout.charts import Line, line_chart
from cosmos_wds.rollout.evaluation import Evaluation
from cosmos_wds.rollout.report_cases import episodes
from cosmos_wds.rollout.report_words import verdict
from cosmos_wds.train.run import LoadedRun

NOTE = (
    "Means over episodes, ± the 95&nbsp;% interval (Student&rsquo;s t). All rollouts of an episode "
    "start from the same frame with the same noise."
)


@dataclass(frozen=True)
class Facts:
    """What else a report says about where its numbers come from."""

    title: str
    seed: int
    sampler_steps: int
    losses: tuple[tuple[float, float], ...] = ()
    """(step, loss) of the training."""


def write_report(
    path: Path, evaluation: Evaluation, run: LoadedRun, *, facts: Facts, videos: Sequence[Path]
) -> None:
    """Write the report. `videos` are the films of its cases (film.write_films).

    Raises DataError when the disk refuses.
    """
    sections = {
        "closeness": ("How close to the recording", _closeness(evaluation)),
        "control": ("Does it follow its actions?", report_control.section(evaluation)),
        "episodes": ("Episodes", episodes(evaluation, videos)),
        "training": ("Training loss", _training(facts)),
        "made": ("What made it", _details(evaluation, run)),
    }
    sections = {key: section for key, section in sections.items() if section[1]}
    body = "\n".join(
        f'<section id="{key}"><h2>{title}</h2>{content}</section>'
        for key, (title, content) in sections.items()
    )
    here = Path(__file__)
    page = html_page(
        facts.title,
        f"{_head(evaluation, run, facts)}\n{body}",
        style=here.with_name("report.css").read_text(encoding="utf-8"),
        script=here.with_name("report.js").read_text(encoding="utf-8"),
        has_films=True,
        links={key: title for key, (title, _) in sections.items()},
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def read_losses(path: Path) -> tuple[tuple[float, float], ...]:
    """(step, loss) from a run's metrics.jsonl, without lines that are cut or not finite."""
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            pair = float(entry["step"]), float(entry["loss"])
        except (ValueError, KeyError, TypeError):
            continue
        if all(map(math.isfinite, pair)):
            pairs.append(pair)
    return tuple(pairs)


def _head(evaluation: Evaluation, run: LoadedRun, facts: Facts) -> str:
    count, frames = evaluation.episodes.frames.shape[:2]
    trained = "" if run.place.step is None else f"{run.place.step} training steps, "
    actions = f"{frames - 1} action{'s' if frames > 2 else ''} each"
    return (
        f"<header><h1>{escape(facts.title)}</h1>"
        f"<p class=lead>{escape(verdict(evaluation.control.score))}</p>"
        f"{report_control.headline(evaluation.control)}"
        f"<p class=muted>{escape(run.recipe.name)}: {trained}{count} held-out episodes, {actions}, "
        f"sampler steps a call: {facts.sampler_steps}, seed {facts.seed}.</p></header>"
    )


def _closeness(evaluation: Evaluation) -> str:
    return (
        f'{report_scores.summary(evaluation)}<p class="note">{NOTE}</p>'
        f"<h3>Step by step</h3>{report_scores.step_by_step(evaluation)}"
    )


def _training(facts: Facts) -> str:
    if not facts.losses:
        return ""
    steps, losses = zip(*facts.losses, strict=True)
    chart = line_chart(
        [Line("loss", steps, losses)],
        title="Training loss",
        x_label="training step",
        y_label="loss (may be below zero)",
    )
    return chart


def _details(evaluation: Evaluation, run: LoadedRun) -> str:
    contract = run.contract.to_dict() if run.contract else {}
    digests = {
        "held-out split": evaluation.episodes.digest,
        "action contract": contract.get("digest", ""),
        "tokenizer": run.tokenizer.digest,
        "weights": run.audit,
    }
    return (
        f"<details open><summary>Protocol</summary>{_pairs(evaluation.protocol)}</details>"
        f"<details><summary>Action contract</summary>{_pairs(contract)}</details>"
        f"<details><summary>Digests and weights</summary>{_pairs(digests)}</details>"
        '<details><summary>Recipe</summary><pre tabindex="0">'
        f"{escape(dump(run.recipe))}</pre></details>"
    )


def _pairs(table: Mapping[str, object]) -> str:
    def shown(value: object) -> str:
        is_row = isinstance(value, Iterable) and not isinstance(value, str)
        return escape(" ".join(map(str, value)) if is_row else str(value))  # type: ignore[call-overload]

    rows = "".join(f"<dt>{escape(k)}</dt><dd>{shown(v)}</dd>" for k, v in table.items())
    return f"<dl>{rows}</dl>"
