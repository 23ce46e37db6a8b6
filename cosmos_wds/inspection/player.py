"""The page with playing episodes: each frame's action drawn over it, and the gripper as a curve.

One file that loads nothing. player.js only moves what stands here to the frame that is shown; what
it moves it to is computed here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_wds.config import write_text
from cosmos_wds.inspection.overview import Overview
from cosmos_wds.inspection.reach import Sample
from cosmos_wds.inspection.tables import CONCERNS, SPLITS, Table, browser_words, tables
from cosmos_wds.page import data_url, html_page

GROUPS = (("x", "y", "z"), ("roll", "pitch", "yaw"))
"""Dimensions that share one scale."""
GRIPPER = "gripper"
LARGEST = 2**26  # bytes of a video that still goes into a page
FRAMES_OF = {
    "previous": "the axes of the hand one frame before",
    "first": "the axes of the hand one frame before",
    "recorded": "the axes of the recording",
}
"""A contract's frame -> whose axes the rows of action.npy are in."""


def write_player(path: Path, found: Overview, samples: Iterable[Sample]) -> None:
    """Write the page of a set: the overview's tables, and episodes of each split."""
    here = Path(__file__)
    every = list(tables(found))
    first = [table for table in every if table.title in (SPLITS, CONCERNS)]
    axes = FRAMES_OF.get(found.contract["frame"], "the axes that the contract says")
    parts = [
        f"<header><h1>{escape(found.path)}</h1></header>",
        *(_table(table) for table in first),
        "<section><h2>episodes</h2>"
        f'<p class="note">Drawn over the picture is the action from the shown frame to the next, '
        f"in {axes}. It is an indicator, not a place in the picture: where the camera stands is "
        "not known. x goes right, y up; 98&nbsp;% of all actions stay below full length.</p>"
        "<noscript><p>Without JavaScript the drawings do not move.</p></noscript>"
        f'<div class="episodes">{"".join(_figures(found, samples))}</div></section>',
        *(_table(table) for table in every if table not in first),
    ]
    page = html_page(
        f"shards: {found.path}",
        "\n".join(parts),
        style=here.with_name("player.css").read_text(encoding="utf-8"),
        script=here.with_name("player.js").read_text(encoding="utf-8"),
        has_films=True,
    )
    write_text(path, page)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in table.heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        f"{''.join(f'<td>{escape(word)}</td>' for word in rest)}</tr>"
        for first, *rest in table.rows
    )
    kind = "" if table.is_numbers else ' class="words"'
    return (
        f'<section><h2>{escape(table.title)}</h2><div class="scroll" tabindex="0">'
        f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _figures(found: Overview, samples: Iterable[Sample]) -> Iterator[str]:
    for number, sample in enumerate(samples):
        yield _figure(number, sample, found)


def _figure(number: int, sample: Sample, found: Overview) -> str:
    names: Sequence[str] = found.contract["names"]
    arrow = [names.index(name) for name in ("x", "y")] if {"x", "y"} <= set(names) else []
    bars = [i for i, name in enumerate(names) if i not in arrow and name != GRIPPER]
    marks = (sample.action / _bounds(found, sample.action))[:, arrow + bars].clip(-1, 1)
    marks = np.nan_to_num(np.concatenate([marks, np.zeros_like(marks[:1])])).round(4)
    data = {
        "rate": float(sample.about.get("container_fps") or found.contract["fps"]),
        "marks": marks.tolist(),
        "words": [*_words(sample.action, found.contract), "the last frame: no action follows"],
    }
    text = f" &ldquo;{escape(sample.text)}&rdquo;" if sample.text else ""
    curve = ""
    if GRIPPER in names:
        curve = _curve(sample.action[:, names.index(GRIPPER)], sample.frames)
    return (
        f'<figure class="episode" data-episode="{escape(json.dumps(data))}">'
        f"<figcaption><b>{escape(sample.key)}</b>{text} <span class=muted>{escape(sample.split)}, "
        f"{sample.frames} frames{escape(f', {sample.codec}' if sample.codec else '')}</span>"
        "</figcaption>"
        f"{_stage(sample, _drawing(number, [names[i] for i in bars], has_arrow=bool(arrow)))}"
        f'<div class="tracks"><span>frame</span><input type="range" min="0" '
        f'max="{sample.frames - 1}" value="0" aria-label="{escape(f"frame of {sample.key}")}">'
        f'<span class="at"></span>{curve}</div><p class="now"></p></figure>'
    )


def _stage(sample: Sample, drawing: str) -> str:
    """The video, or a word why there is none, with the drawing over it."""
    if not sample.video or len(sample.video) > LARGEST:
        why = f"a video of {len(sample.video) / 1e6:.0f} MB, too large for a page"
        why = why if sample.video else "no video, latents only"
        return f'<div class="stage novideo"><p>{why}</p>{drawing}</div>'
    source = data_url("video/mp4", sample.video)
    return (
        f'<div class="stage"><video src="{source}" controls muted loop playsinline '
        f'aria-label="{escape(f"{sample.key}: {sample.text}")}"></video>{drawing}</div>'
        f'<p class="cannot" hidden>This browser cannot play this video: {escape(sample.codec)}; '
        f"{escape(browser_words(sample.codec))}.</p>"
    )


def _drawing(number: int, bars: Sequence[str], *, has_arrow: bool) -> str:
    """A dial with the arrow of x and y, and a bar for each other dimension."""
    left = 100 if has_arrow else 16
    parts = []
    if has_arrow:
        parts.append(
            f'<marker id="tip{number}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="4" '
            'markerHeight="4" orient="auto"><path class="tip" d="M0,1 L8,4 L0,7 Z"/></marker>'
            '<circle class="frame" cx="46" cy="50" r="36"/>'
            '<circle class="tip" cx="46" cy="50" r="2.5"/>'
            '<path class="frame" d="M10,50 H82 M46,14 V86"/>'
            '<text x="89" y="54">x</text><text x="46" y="10">y</text>'
            f'<line class="arrow" x1="46" y1="50" x2="46" y2="50" marker-end="url(#tip{number})"/>'
        )
    for place, name in enumerate(bars):
        x = left + 28 * place + 10
        parts.append(
            f'<path class="frame" d="M{x - 6},14 H{x + 6} V86 H{x - 6} Z M{x - 9},50 H{x + 9}"/>'
            f'<rect class="bar" x="{x - 6}" y="50" width="12" height="0"/>'
            f'<text x="{x}" y="97">{escape(name)}</text>'
        )
    width = left + 28 * len(bars) + 4
    return f'<svg class="hud" viewBox="0 0 {width} 100" aria-hidden="true">{"".join(parts)}</svg>'


def _curve(values: np.ndarray, frames: int) -> str:
    """The gripper against frames, open on top; an action's gripper is that of the later frame."""
    values = np.nan_to_num(values)
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    heights = 1 - (values - low) / (high - low)
    points = " ".join(f"{frame},{y:.4f}" for frame, y in enumerate(heights, start=1))
    return (
        f'<span>gripper</span><svg viewBox="0 -0.08 {max(1, frames - 1)} 1.16" role="img" '
        f'preserveAspectRatio="none" aria-label="gripper over the frames">'
        f'<polyline points="{points}"/><line class="cursor" y1="-0.08" y2="1.08"/></svg>'
        f"<span>{low:g} to {high:g}</span>"
    )


def _words(action: np.ndarray, contract: Mapping[str, Any]) -> Iterator[str]:
    units = ["" if unit == "1" else f" {unit}" for unit in contract["units"]]
    for row in action:
        named = zip(contract["names"], row, units, strict=True)
        yield ", ".join(f"{name} {value:+.4f}{unit}" for name, value, unit in named)


def _bounds(found: Overview, action: np.ndarray) -> np.ndarray:
    """(A,) what counts as a full length: 98 % of all actions stay below, one for each group."""
    names: Sequence[str] = found.contract["names"]
    if found.statistics:
        bounds = np.abs([found.statistics["q01"], found.statistics["q99"]]).max(axis=0)
    else:
        bounds = np.abs(action).max(axis=0)
    for group in GROUPS:
        places = [place for place, name in enumerate(names) if name in group]
        if places:
            bounds[places] = bounds[places].max()
    return np.where(bounds > 0, bounds, 1.0)
