"""What is kept of an evaluation as numbers (eval.json), and how the console shows it.

E episodes, N steps ahead. Numbers that are unknown are null in JSON.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cosmos_wds import __version__
from cosmos_wds.console import console, say
from cosmos_wds.rollout.action_log import weights_digest
from cosmos_wds.rollout.evaluation import TRUE, Control, Evaluation
from cosmos_wds.rollout.metrics import shown_steps
from cosmos_wds.rollout.report_words import METRICS, share, verdict
from cosmos_wds.train.interval import Interval, mean_interval, words
from cosmos_wds.train.run import LoadedRun

FORMAT = 1
SHORT = {
    TRUE: "true actions",
    "shuffled": "another's actions",
    "zero": "zero actions",
    "negated": "negated actions",
    "shifted": "shifted actions",
    "first": "first frame",
    "previous": "frame before",
    "round_trip": "tokenizer alone",
}
"""Rows, for a console of 80 columns."""
DIGITS = {"dB": 1, "": 3}
"""Of metrics by their unit, there."""


def results(evaluation: Evaluation, run: LoadedRun) -> dict[str, Any]:
    """All numbers of an evaluation, as JSON takes them."""
    scores, episodes = evaluation.scores, evaluation.episodes
    is_file = run.place.file.exists()
    table = {
        "format": FORMAT,
        "version": __version__,
        "checkpoint": str(run.place.file),
        "recipe": run.recipe.name,
        "training_steps": run.place.step,
        "digests": {
            "weights": weights_digest(run.place) if is_file else "",
            "tokenizer": run.tokenizer.digest,
            "contract": run.contract.digest if run.contract else "",
            "shards": episodes.digest,
        },
        "protocol": dict(evaluation.protocol),
        "episodes": list(episodes.keys),
        "actions": episodes.actions.shape[1],
        "control": _control(evaluation.control),
        "means": {
            metric: {row: mean_interval(of.mean(axis=1)) for row, of in rows.items()}
            for metric, rows in scores.items()
        },
        "sets": {metric: dict(rows) for metric, rows in evaluation.set_scores.items()},
        "by_step": {
            metric: {row: evaluation.curve(metric, row) for row in rows}
            for metric, rows in scores.items()
        },
        "by_episode": {metric: dict(rows) for metric, rows in scores.items()},
    }
    plain: dict[str, Any] = _plain(table)
    return plain


def _control(control: Control) -> dict[str, Any]:
    path = control.path
    return {
        "score": control.score,
        "shares": control.shares,
        "gaps": control.gaps,
        "loss_gap": control.loss_gap,
        "gripper_pixels": path and {row: over_found(error) for row, error in path.error.items()},
        "gripper_found": path and {r: float(np.isfinite(e).mean()) for r, e in path.error.items()},
        "gripper_by_episode": path and dict(path.error),
    }


def over_found(error: np.ndarray) -> Interval:
    """Mean over the episodes in which the gripper is found, of (E, N) distances."""
    means = [row[np.isfinite(row)].mean() for row in error if np.isfinite(row).any()]
    return mean_interval(np.array(means)) if means else Interval(math.nan, math.nan, math.nan)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def to_text(table: Mapping[str, Any]) -> str:
    """Results as JSON: a line for each of the outer keys, and for each row of numbers."""
    return json.dumps(table, indent=1, separators=(",", ": ")) + "\n"


def show(table: Mapping[str, Any]) -> None:
    """Print results to the console: means, PSNR by steps ahead, and what they say of control."""
    console.print(_means(table))
    if "psnr" in table["by_step"]:
        console.print(_by_step(table))
    for line in told(table):
        say(line)


def told(table: Mapping[str, Any]) -> list[str]:
    """What results say of control, in lines."""
    control = table["control"]
    score = _interval(control["score"])
    lines = [f"control score {share(score)}: {verdict(score)}"]
    if control["loss_gap"]:
        gap = _interval(control["loss_gap"])
        lines.append(f"another episode's actions cost {words(gap, '+', 3)} of denoising loss")
    pixels = control["gripper_pixels"]
    if pixels and pixels[TRUE][0] is not None and pixels["shuffled"][0] is not None:
        true, other = (words(_interval(pixels[row]), digits=1) for row in (TRUE, "shuffled"))
        found = 100 * control["gripper_found"][TRUE]
        lines.append(
            f"gripper: {true} pixels from its true place where it is found ({found:.0f} % of the "
            f"frames), {other} under another episode's actions"
        )
    return lines


def _means(table: Mapping[str, Any]) -> Table:
    count, steps = len(table["episodes"]), table["actions"]
    title = f"Mean over {steps} step{'s' * (steps > 1)} and {count} episodes, 95 % interval"
    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    made.add_column("")
    for metric in (*table["means"], *table["sets"]):
        made.add_column(_head(metric), justify="right", no_wrap=True)
    rows = dict.fromkeys(row for rows in table["means"].values() for row in rows)
    for row in rows:
        cells = [
            words(_interval(of[row]), digits=DIGITS[METRICS[metric].unit]) if row in of else ""
            for metric, of in table["means"].items()
        ]
        cells += [_number(of.get(row)) for of in table["sets"].values()]
        made.add_row(SHORT[row], *cells)
    return made


def _by_step(table: Mapping[str, Any]) -> Table:
    made = Table(
        title="PSNR by steps ahead, dB",
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    made.add_column("steps ahead")
    shown = shown_steps(table["actions"])
    for step in shown:
        made.add_column(str(step), justify="right", no_wrap=True)
    for row, points in table["by_step"]["psnr"].items():
        made.add_row(SHORT[row], *(f"{points[step - 1][0]:.1f}" for step in shown))
    return made


def _head(metric: str) -> str:
    way = "higher" if METRICS[metric].is_higher_closer else "lower"
    unit = f" {METRICS[metric].unit}" if METRICS[metric].unit else ""
    return f"{METRICS[metric].name}{unit}\n({way})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _interval(values: Sequence[float | None]) -> Interval:
    return Interval(*(math.nan if value is None else value for value in values))
