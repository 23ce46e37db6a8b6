"""The report's tables and curves of how close frames come to the recording. HTML.

E episodes, N steps ahead.
"""

import math

from cosmos_wds.rollout.charts import Line, line_chart
from cosmos_wds.rollout.evaluation import TRUE, WRONG, YARDSTICKS, Evaluation
from cosmos_wds.rollout.metrics import shown_steps
from cosmos_wds.rollout.report_words import (
    METRICS,
    ROWS,
    Metric,
    choice,
    grouped,
    heads,
    number,
    table,
)
from cosmos_wds.train.interval import Interval, mean_interval

LOOKS = {name: look for look, name in enumerate((TRUE, *WRONG, *YARDSTICKS))}
"""row -> number of its colour and dashes in the style sheet, the same in all charts."""
AT_FIRST = (TRUE, "shuffled", "first")
"""Curves that are on when the page opens."""


def summary(evaluation: Evaluation) -> str:
    """Every metric, mean over all steps, for every row; sets of videos beside it."""
    steps = evaluation.episodes.frames.shape[1] - 1
    rows = {}
    for row in ROWS:
        cells = [_mean(evaluation, metric, row) for metric in evaluation.scores]
        for metric, values in evaluation.set_scores.items():
            there = row in values and math.isfinite(values[row])
            cells.append(f"{values[row]:.{METRICS[metric].digits}f}" if there else "&ndash;")
        if any(row in values for values in evaluation.scores.values()):
            rows[row] = "".join(f"<td>{cell}</td>" for cell in cells)
    names = [_head(METRICS[m]) for m in (*evaluation.scores, *evaluation.set_scores)]
    ahead = f"{steps} steps" if steps > 1 else "the one step"
    return table(
        f"Means over {ahead} ahead and {len(evaluation.episodes.keys)} episodes",
        f'<tr><th scope="col">frames compared with the recording</th>{heads(*names)}</tr>',
        grouped(rows, len(names)),
        "scores",
    )


def step_by_step(evaluation: Evaluation) -> str:
    """For each metric, chosen by the reader: curves with intervals, and a table of some steps."""
    panels = {
        METRICS[metric].name: _curves(evaluation, metric) + _table(evaluation, metric)
        for metric in evaluation.scores
    }
    return choice("metric", "Metric", panels)


def gains(evaluation: Evaluation) -> str:
    """For each metric: curves of how much closer true actions come than wrong ones, paired."""
    panels = {}
    for metric, scores in evaluation.scores.items():
        words = METRICS[metric]
        lines = [
            curve(ROWS[row], evaluation.gain(metric, row), LOOKS[row], is_shown=row in AT_FIRST)
            for row in WRONG
            if row in scores
        ]
        panels[words.name] = line_chart(
            lines,
            title=f"{words.name}: gain of true actions over wrong ones against steps ahead",
            x_label="steps ahead",
            y_label=f"gain in {words.name}{words.comma_unit}",
            has_switches=True,
            has_zero=True,
        )
    return choice("gain", "Metric", panels)


def curve(name: str, values: tuple[Interval, ...], look: int, *, is_shown: bool = True) -> Line:
    """A line of a chart from one interval for each step ahead."""
    return Line(
        name,
        range(1, len(values) + 1),
        [v.mean for v in values],
        [v.low for v in values],
        [v.high for v in values],
        look=look,
        is_shown=is_shown,
    )


def _head(metric: Metric) -> str:
    arrow, words = ("&uarr;", "higher") if metric.is_higher_closer else ("&darr;", "lower")
    return (
        f'{metric.name}{metric.comma_unit} <span aria-hidden="true">{arrow}</span>'
        f'<span class="unseen">, {words} is closer</span>'
    )


def _mean(evaluation: Evaluation, metric: str, row: str) -> str:
    scores = evaluation.scores[metric]
    if row not in scores:
        return "&ndash;"
    return number(mean_interval(scores[row].mean(axis=1)), METRICS[metric].digits)


def _curves(evaluation: Evaluation, metric: str) -> str:
    """The tokenizer's round trip is left to the table: far off, it would flatten all others."""
    lines = [
        curve(ROWS[row], evaluation.curve(metric, row), LOOKS[row], is_shown=row in AT_FIRST)
        for row in ROWS
        if row in evaluation.scores[metric] and row != "round_trip"
    ]
    words = METRICS[metric]
    return line_chart(
        lines,
        title=f"{words.name} against steps ahead",
        x_label="steps ahead",
        y_label=f"{words.name}{words.comma_unit}",
        has_switches=True,
    )


def _table(evaluation: Evaluation, metric: str) -> str:
    words, steps = METRICS[metric], shown_steps(evaluation.episodes.frames.shape[1] - 1)
    rows = {}
    for row in evaluation.scores[metric]:
        points = evaluation.curve(metric, row)
        rows[row] = "".join(f"<td>{number(points[s - 1], words.digits)}</td>" for s in steps)
    return table(
        f"{words.title}, by steps ahead",
        f'<tr><th scope="col">steps ahead</th>{heads(*map(str, steps))}</tr>',
        grouped(rows, len(steps)),
        "scores",
    )
