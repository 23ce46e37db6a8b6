"""The report's part on the gripper: how far from its true place it is, and its paths. HTML.

E episodes, N steps ahead, H x W pixels.
"""

import math
from html import escape

import numpy as np
from PIL import Image

from cosmos_wds.page import data_url
from cosmos_wds.rollout.cases import Case, cases
from cosmos_wds.rollout.charts import line_chart
from cosmos_wds.rollout.evaluation import TRUE, Evaluation, GripperPath
from cosmos_wds.rollout.film import png
from cosmos_wds.rollout.report_scores import AT_FIRST, LOOKS, curve
from cosmos_wds.rollout.report_words import ROWS, grouped, heads, number, table
from cosmos_wds.rollout.results import over_found
from cosmos_wds.train.interval import Interval, mean_interval

DRAWN = (("truth", "recording"), (TRUE, ROWS[TRUE]), ("shuffled", ROWS["shuffled"]))
"""What is drawn over a frame: classes of the style sheet, and what they are called."""
FEWEST = 5
"""Episodes that a point of the curves needs."""


def paths(evaluation: Evaluation) -> str:
    """Curves of the gripper's distance from its true place, and paths over some last frames.

    Empty where the camera is not known.
    """
    path = evaluation.control.path
    if path is None:
        return ""
    lines = []
    for row, errors in path.error.items():
        points = tuple(_found(column) for column in errors.T)
        lines.append(curve(ROWS[row], points, LOOKS[row], is_shown=row in AT_FIRST))
    chart = line_chart(
        lines,
        title="Distance of the gripper from its true place against steps ahead",
        x_label="steps ahead",
        y_label="distance, pixels",
        has_switches=True,
        has_zero=True,
    )
    keys = "".join(
        f'<span class="key"><svg class="way" viewBox="0 0 26 8" aria-hidden="true">'
        f'<path class="under" d="M0,4 H26"/><path class="{kind}" d="M0,4 H26"/></svg>'
        f"{escape(name)}</span>"
        for kind, name in DRAWN
    )
    maps = "".join(_map(evaluation, path, case) for case in cases(evaluation, 3))
    height, width = evaluation.episodes.frames.shape[2:4]
    return (
        "<h3>Where the gripper is</h3>"
        '<p class="note">Distance in the picture between the gripper and where the recording has '
        f"it; a picture has {width} x {height} pixels. Frames in which it has faded count nowhere. "
        "How well it can be found at all, recordings that went through the tokenizer show.</p>"
        f"{_table(path)}{chart}"
        f'<p class="note">No point where fewer than {FEWEST} episodes show a gripper.</p>'
        '<p class="note">The way of the gripper over the recording&rsquo;s last frame, from the '
        f'ring on:</p><div class="legend">{keys}</div><div class="maps">{maps}</div>'
    )


def _table(path: GripperPath) -> str:
    rows = {}
    for row, errors in path.error.items():
        found, distance = np.isfinite(errors).mean(), over_found(errors)
        mean = "&ndash;" if math.isnan(distance.mean) else number(distance, 1)
        rows[row] = f"<td>{mean}</td><td>{100 * found:.0f}&nbsp;%</td>"
    return table(
        "The gripper, mean over the frames of an episode where it is found, then over episodes",
        f'<tr><th scope="col">frames</th>{heads("mean distance, pixels", "found in")}</tr>',
        grouped(rows, 2),
    )


def _found(values: np.ndarray) -> Interval:
    """One step's mean distance over episodes; unknown where too few show a gripper."""
    there = values[np.isfinite(values)]
    if len(there) < FEWEST:
        return Interval(math.nan, math.nan, math.nan)
    mean, low, high = mean_interval(there)
    return Interval(mean, max(0.0, low), high)


def _map(evaluation: Evaluation, path: GripperPath, case: Case) -> str:
    """An episode's last frame with the true path and those of two rollouts."""
    e, key = case.episode, evaluation.episodes.keys[case.episode]
    frame = evaluation.episodes.frames[e, -1]
    height, width = frame.shape[:2]
    ways = {"truth": path.truth[e]}
    for row in (TRUE, "shuffled"):
        ways[row] = np.concatenate([path.truth[e, :1], path.places[row][e]])
    drawn = "".join(_way(kind, places) for kind, places in ways.items())
    column, row = path.truth[e, 0] + 0.5
    name = f"{key}: paths of the gripper in the recording and in two rollouts"
    return (
        f'<figure><svg class="way" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(name)}"><image width="{width}" height="{height}" '
        f'href="{data_url("image/png", png(Image.fromarray(frame)))}"/>{drawn}'
        f'<circle class="start" cx="{column:.2f}" cy="{row:.2f}" r="{height / 32:.2f}"/></svg>'
        f"<figcaption>{escape(key)} <span class=muted>{case.kind}, rank {case.rank}</span>"
        "</figcaption></figure>"
    )


def _way(kind: str, places: np.ndarray) -> str:
    """A path through places (n, 2), pixel centres at whole numbers; what is not found is passed."""
    there = places[np.isfinite(places).all(axis=-1)] + 0.5
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in there)
    return (
        f'<polyline class="under" points="{points}"/><polyline class="{kind}" points="{points}"/>'
    )
