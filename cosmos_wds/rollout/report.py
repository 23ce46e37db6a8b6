"""report.html: what rollouts of held-out episodes look like and measure, in one file.

Nothing is loaded from elsewhere: style, charts, pictures and videos stand in the file itself.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cosmos_wds.config import dump, write_text
from cosmos_wds.page import data_url, html_page
from cosmos_wds.rollout.charts import Line, line_chart
from cosmos_wds.rollout.episodes import Evaluation
from cosmos_wds.rollout.film import COLUMNS, films, strip
from cosmos_wds.rollout.metrics import StepRow, shown_steps, verdict
from cosmos_wds.rollout.style import STYLE
from cosmos_wds.train.interval import Interval, words
from cosmos_wds.train.run import LoadedRun

CURVES = (("true", "true actions"), ("other", "another episode's actions"), ("copy", "first frame"))


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
    """Write the report. `videos` are those of the first episodes (film.write_films)."""
    body = "\n".join(
        [
            _head(evaluation, run, facts),
            _table(evaluation),
            _curves(evaluation),
            _episodes(evaluation, videos),
            _training(facts),
            _details(evaluation, run),
        ]
    )
    write_text(path, html_page(facts.title, body, style=STYLE))


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
    return (
        f"<header><h1>{escape(facts.title)}</h1>"
        f"<p class=lead>{escape(verdict(evaluation.gain, len(evaluation.rows)))}</p>"
        f"<p class=muted>{escape(run.recipe.name)}: {trained}{count} held-out episodes, "
        f"{frames - 1} actions each, {facts.sampler_steps} sampler steps per frame, "
        f"seed {facts.seed}.</p></header>"
    )


def _table(evaluation: Evaluation) -> str:
    heads = ("true actions", "another episode's actions", "first frame, copied")
    gains = ("over another's actions", "over copying")
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in (*heads, *gains))
    body = "".join(_row(evaluation.rows[step - 1]) for step in shown_steps(len(evaluation.rows)))
    return (
        '<section><h2>How close to the recording</h2><div class="scroll" tabindex="0"><table>'
        '<thead><tr><td></td><th scope="colgroup" colspan="3">PSNR, dB (higher is closer)</th>'
        '<th scope="colgroup" colspan="2">gain of true actions, dB</th></tr>'
        f'<tr><th scope="col">steps ahead</th>{head}</tr></thead><tbody>{body}</tbody></table>'
        '</div><p class="note">Means over episodes, ± the 95&nbsp;% interval '
        "(Student&rsquo;s t); gains are paired, episode by episode. Frames that differ by rounding "
        "alone count as 58.9&nbsp;dB. Rollouts that are compared start from the same frame with "
        "the same noise.</p></section>"
    )


def _row(row: StepRow) -> str:
    levels = "".join(f"<td>{_number(v)}</td>" for v in (row.true, row.other, row.copy))
    gains = "".join(
        f'<td class="gain">{_number(v, sign="+")}</td>' for v in (row.over_other, row.over_copy)
    )
    return f'<tr><th scope="row">{row.step}</th>{levels}{gains}</tr>'


def _number(value: Interval, sign: str = "") -> str:
    mean, plus_minus, half = words(value, sign).partition(" ± ")
    return f"{mean} <small>± {half}</small>" if plus_minus else mean


def _curves(evaluation: Evaluation) -> str:
    lines = []
    for attribute, name in CURVES:
        values: list[Interval] = [getattr(row, attribute) for row in evaluation.rows]
        lines.append(
            Line(
                name,
                [row.step for row in evaluation.rows],
                [v.mean for v in values],
                [v.low for v in values],
                [v.high for v in values],
            )
        )
    chart = line_chart(
        lines, title="PSNR against steps ahead", x_label="steps ahead", y_label="PSNR, dB"
    )
    return f"<section><h2>Step by step</h2>{chart}</section>"


def _episodes(evaluation: Evaluation, videos: Sequence[Path]) -> str:
    figures = "".join(_figure(evaluation, i, path) for i, path in enumerate(videos))
    return (
        "<section><h2>Held-out episodes</h2>"
        f'<p class="note">The first {len(videos)} of {len(evaluation.episodes.keys)}, not chosen. '
        "Every rollout sees one frame of the recording, the first.</p>"
        f"{figures}</section>"
    )


def _figure(evaluation: Evaluation, episode: int, video: Path) -> str:
    key, text = evaluation.episodes.keys[episode], evaluation.episodes.texts[episode]
    last = {name: values[episode, -1] for name, values in evaluation.psnr.items()}
    heads = "".join(f"<span>{escape(name)}</span>" for name in COLUMNS)
    source = data_url("video/mp4", video.read_bytes())
    steps = [0, *shown_steps(evaluation.true.shape[1] - 1)]
    marks = "".join(f"<span>{'start' if s == 0 else f'+{s}'}</span>" for s in steps)
    strips = "".join(
        f'<span class="name">{escape(name)}</span><img alt="{escape(f"{key}: {name}")}" '
        f'src="{data_url("image/png", strip(frames, steps))}">'
        for name, frames in zip(COLUMNS[:3], films(evaluation, episode)[:3], strict=True)
    )
    shown = f"{key}: {', '.join(COLUMNS)}, side by side"
    words = f" &ldquo;{escape(text)}&rdquo;" if text else ""
    return (
        f"<figure><figcaption><b>{escape(key)}</b>{words}<span class=muted> At the end: true "
        f"{last['true']:.1f}, another&rsquo;s {last['other']:.1f}, first frame "
        f"{last['copy']:.1f} dB.</span></figcaption>"
        f'<div class="heads">{heads}</div>'
        f'<video src="{source}" controls autoplay muted loop playsinline '
        f'aria-label="{escape(shown)}"></video>'
        f'<div class="strips"><span></span><div class="marks">{marks}</div>{strips}</div></figure>'
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
    return f"<section><h2>Training loss</h2>{chart}</section>"


def _details(evaluation: Evaluation, run: LoadedRun) -> str:
    contract = run.contract.to_dict() if run.contract else {}
    digests = {
        "held-out split": evaluation.episodes.digest,
        "action contract": contract.get("digest", ""),
        "tokenizer": run.tokenizer.digest,
        "weights": run.audit,
    }
    return (
        "<section><h2>What made it</h2>"
        f"<details><summary>Action contract</summary>{_pairs(contract)}</details>"
        f"<details><summary>Digests and weights</summary>{_pairs(digests)}</details>"
        f"<details><summary>Recipe</summary><pre>{escape(dump(run.recipe))}</pre></details>"
        "</section>"
    )


def _pairs(table: Mapping[str, object]) -> str:
    def shown(value: object) -> str:
        is_row = isinstance(value, Iterable) and not isinstance(value, str)
        return escape(" ".join(map(str, value)) if is_row else str(value))  # type: ignore[call-overload]

    rows = "".join(f"<dt>{escape(k)}</dt><dd>{shown(v)}</dd>" for k, v in table.items())
    return f"<dl>{rows}</dl>"
