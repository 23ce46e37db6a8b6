"""The report's episodes: playing videos, a step slider under each, single frames. HTML."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from cosmos_wds.data.video import probe
from cosmos_wds.page import data_url
from cosmos_wds.rollout.cases import CLOSEST, FURTHEST, TYPICAL, Case, cases, decibels, ranked
from cosmos_wds.rollout.evaluation import TRUE, Evaluation
from cosmos_wds.rollout.film import AMPLIFIED, COLUMNS, films, strip
from cosmos_wds.rollout.metrics import shown_steps
from cosmos_wds.rollout.report_words import heads, table

HEADS = {
    CLOSEST: "Closest to the recording",
    TYPICAL: "Typical: the middle of the ranking",
    FURTHEST: "Furthest from the recording",
}
STRIPS = (0, 1, 3)
"""Columns of a film that are also shown frame by frame."""


def episodes(evaluation: Evaluation, videos: Sequence[Path]) -> str:
    """The cases by kind. `videos` are their films, as film.write_films returns them."""
    count = len(evaluation.episodes.keys)
    chosen = cases(evaluation, len(videos))
    figures: dict[str, list[str]] = {}
    for case, video in zip(chosen, videos, strict=True):
        figures.setdefault(case.kind, []).append(_figure(evaluation, case, video))
    parts = "".join(f"<h3>{HEADS[kind]}</h3>{''.join(some)}" for kind, some in figures.items())
    return (
        f'<p class="note">{len(chosen)} of {count}, chosen by mean PSNR over all steps under true '
        "actions: both ends of the ranking and its middle. Every rollout sees one frame of the "
        "recording, the first. The difference is that between rollout and recording, channel by "
        f"channel, {AMPLIFIED} times as large as it is; black is no difference.</p>"
        '<p><button type="button" class="all" hidden>Pause all videos</button></p>'
        "<noscript><p>Without JavaScript the sliders do not move.</p></noscript>"
        f"{parts}{_ranking(evaluation)}"
    )


def _figure(evaluation: Evaluation, case: Case, video: Path) -> str:
    key, text = (
        names[case.episode] for names in (evaluation.episodes.keys, evaluation.episodes.texts)
    )
    psnr = {
        "rollout": decibels(evaluation)[case.episode],
        "another’s": decibels(evaluation, "shuffled")[case.episode],
    }
    last = len(psnr["rollout"])
    data = {"rate": probe(video).fps, "words": _words(psnr)}
    title = f" &ldquo;{escape(text)}&rdquo;" if text else ""
    true, other = (values.mean() for values in psnr.values())
    marks = "".join(f"<span>{escape(name)}</span>" for name in COLUMNS)
    source = data_url("video/mp4", video.read_bytes())
    shown = f"{key}: {', '.join(COLUMNS)}, side by side"
    return (
        f'<figure class="case" data-case="{escape(json.dumps(data))}"><figcaption>'
        f"<b>{escape(key)}</b>{title} <span class=muted>rank {case.rank} of "
        f"{len(evaluation.episodes.keys)}: {true:.1f} dB on average, {other:.1f} dB under "
        "another&rsquo;s actions</span></figcaption>"
        f'<div class="heads">{marks}</div>'
        f'<video src="{source}" controls muted loop playsinline preload="auto" '
        f'aria-label="{escape(shown)}"></video>'
        '<p class="cannot" hidden>This browser cannot play this video (H.264).</p>'
        f'<div class="tracks"><span>frame</span><input type="range" min="0" max="{last}" value="0" '
        f'aria-label="{escape(f"frame of {key}")}"><span class="at"></span>{_lines(psnr)}</div>'
        f'<p class="now"></p>{_strips(evaluation, case.episode)}</figure>'
    )


def _words(psnr: Mapping[str, np.ndarray]) -> list[str]:
    """What is said of each frame, the given one first."""
    rows = zip(*psnr.values(), strict=True)
    steps = [
        f"{step} ahead: PSNR "
        + ", ".join(f"{n} {v:.1f} dB" for n, v in zip(psnr, row, strict=True))
        for step, row in enumerate(rows, start=1)
    ]
    return ["the given frame", *steps]


def _lines(psnr: Mapping[str, np.ndarray]) -> str:
    """PSNR over the frames as thin curves below the slider, with a cursor that the script moves."""
    values = np.stack(list(psnr.values()))
    low, high = values.min(), max(values.max(), values.min() + 1e-9)
    curves = "".join(
        f'<polyline class="line line{look}" points="'
        + " ".join(f"{s},{1 - (v - low) / (high - low):.3f}" for s, v in enumerate(row, start=1))
        + '"/>'
        for look, row in enumerate(values)
    )
    name = "PSNR over the frames, rollout and under another episode's actions"
    return (
        f'<span>PSNR</span><svg viewBox="0 -0.08 {values.shape[1]} 1.16" role="img" '
        f'preserveAspectRatio="none" aria-label="{escape(name)}">{curves}'
        f'<line class="cursor" y1="-0.08" y2="1.08"/></svg><span>{low:.0f} to {high:.0f} dB</span>'
    )


def _strips(evaluation: Evaluation, episode: int) -> str:
    steps = [0, *shown_steps(evaluation.episodes.frames.shape[1] - 1)]
    marks = "".join(f"<span>{'given' if s == 0 else f'+{s}'}</span>" for s in steps)
    videos, key = films(evaluation, episode), evaluation.episodes.keys[episode]
    rows = "".join(
        f'<span class="name">{escape(COLUMNS[i])}</span>'
        f'<img alt="{escape(f"{key}: {COLUMNS[i]}, frames {steps}")}" '
        f'src="{data_url("image/png", strip(videos[i], steps))}">'
        for i in STRIPS
    )
    return f'<div class="strips"><span></span><div class="marks">{marks}</div>{rows}</div>'


def _ranking(evaluation: Evaluation) -> str:
    """All episodes with their mean PSNR, folded away."""
    true, other = (decibels(evaluation, row).mean(axis=1) for row in (TRUE, "shuffled"))
    rows = "".join(
        f'<tr><td>{rank}</td><th scope="row">{escape(evaluation.episodes.keys[e])}</th>'
        f'<td class="text">{escape(evaluation.episodes.texts[e])}</td><td>{true[e]:.2f}</td>'
        f"<td>{other[e]:.2f}</td><td>{true[e] - other[e]:+.2f}</td></tr>"
        for rank, e in enumerate(ranked(evaluation), start=1)
    )
    names = heads("rank", "episode", "text", "true actions", "another&rsquo;s", "gain")
    inner = table(
        "All episodes: mean PSNR over all steps, dB",
        f"<tr>{names}</tr>",
        f"<tbody>{rows}</tbody>",
        "ranking",
    )
    return f"<details><summary>All {len(true)} episodes</summary>{inner}</details>"
