"""The report's part on control: does the model do what its actions say? HTML."""

import math

from cosmos_wds.rollout.charts import bar
from cosmos_wds.rollout.evaluation import WRONG, Control, Evaluation
from cosmos_wds.rollout.report_paths import paths
from cosmos_wds.rollout.report_scores import gains
from cosmos_wds.rollout.report_words import METRICS, ROWS, heads, number, share, table
from cosmos_wds.train.interval import Interval, words

MEANING = (
    "Rollouts under another episode&rsquo;s actions miss the recording by more than the tokenizer "
    "alone does; of that error, true actions remove this share. 0: actions change nothing. 1: as "
    "close to the recording as the tokenizer lets any model come."
)


def headline(control: Control) -> str:
    """The control score, large, on its scale, with one sentence of what it means."""
    score = control.score
    low, high = _scale([score])
    mean, _, interval = share(score).rstrip(")").partition(" (")
    return (
        '<div class="score"><p class="figure"><span class="muted">control score</span>'
        f'<b>{mean}</b><span class="muted">95&nbsp;% interval {interval or "unknown"}</span></p>'
        f'<div class="gauge">{bar(score, low, high)}{_ends(low, high)}<p>{MEANING}</p></div></div>'
    )


def section(evaluation: Evaluation) -> str:
    """Shares and gaps under each kind of wrong actions, the loss gap, the gripper's path."""
    control = evaluation.control
    return (
        f"{_shares(control)}{_loss_gap(control)}"
        "<h3>Gain of true actions, step by step</h3>"
        '<p class="note">Paired, episode by episode: above zero, the rollout under true actions is '
        f"the closer one.</p>{gains(evaluation)}{paths(evaluation)}"
    )


def _shares(control: Control) -> str:
    low, high = _scale(list(control.shares.values()))
    metrics = list(control.gaps)
    rows = []
    for row in WRONG:
        if row not in control.shares:
            continue
        gaps = "".join(
            f"<td>{number(control.gaps[metric][row], METRICS[metric].digits, sign='+')}</td>"
            for metric in metrics
        )
        value = control.shares[row]
        rows.append(
            f'<tr><th scope="row">{ROWS[row]}</th><td>{share(value)}</td>'
            f'<td class="scale">{bar(value, low, high)}</td>{gaps}</tr>'
        )
    names = (f"gain in {METRICS[m].name}{METRICS[m].comma_unit}" for m in metrics)
    scale = (
        f'<th scope="col" class="scale"><span class="unseen">drawn</span>{_ends(low, high)}</th>'
    )
    return table(
        "True actions against wrong ones",
        f'<tr><th scope="col">instead of true actions</th>{heads("share realised")}{scale}'
        f"{heads(*names)}</tr>",
        f"<tbody>{''.join(rows)}</tbody>",
        "control",
    )


def _scale(values: list[Interval]) -> tuple[float, float]:
    """Wide enough for 0, 1 and all intervals."""
    ends = [v for value in values for v in value if math.isfinite(v)]
    return min([0.0, *ends]), max([1.0, *ends])


def _ends(low: float, high: float) -> str:
    """0 and 1 below a bar, where they are on its scale."""
    marks = "".join(
        f'<span style="left:{100 * (x - low) / (high - low):.2f}%">{x}</span>' for x in (0, 1)
    )
    return f'<div class="ends" aria-hidden="true">{marks}</div>'


def _loss_gap(control: Control) -> str:
    gap = control.loss_gap
    if gap is None:
        return ""
    return (
        "<p>Denoising loss under another episode&rsquo;s actions, less that under true ones, on "
        f"the same noise: <b>{words(gap, '+', 4)}</b>. Above zero, the actions tell the network "
        "something.</p>"
    )
