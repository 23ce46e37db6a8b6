"""How the report calls metrics and rows, and how it writes numbers. HTML, no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

from cosmos_wds.rollout.evaluation import TRUE, WRONG, YARDSTICKS
from cosmos_wds.train.interval import Interval, words


@dataclass(frozen=True)
class Metric:
    """A measure of how close a frame is to the recording's."""

    name: str
    unit: str
    is_higher_closer: bool
    digits: int

    @property
    def comma_unit(self) -> str:
        """What follows the name: `, dB`."""
        return f", {self.unit}" if self.unit else ""

    @property
    def title(self) -> str:
        """`PSNR, dB (higher is closer)`."""
        way = "higher" if self.is_higher_closer else "lower"
        return f"{self.name}{self.comma_unit} ({way} is closer)"


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "psnr": Metric("PSNR", "dB", True, 2),
        "psnr_grey": Metric("PSNR of grey", "dB", True, 2),
        "ssim": Metric("SSIM", "", True, 3),
        "latent_l2": Metric("latent L2", "", False, 3),
        "lpips": Metric("LPIPS", "", False, 3),
        "fvd": Metric("FVD", "", False, 1),
        "fid": Metric("FID", "", False, 1),
    }
)
ROWS: Mapping[str, str] = MappingProxyType(
    {
        TRUE: "true actions",
        "shuffled": "another episode's actions",
        "zero": "zero actions",
        "negated": "negated actions",
        "shifted": "actions shifted in time",
        "first": "first frame, copied",
        "previous": "previous true frame, copied",
        "round_trip": "recording through the tokenizer",
    }
)
GROUPS = (("rollouts", (TRUE, *WRONG)), ("yardsticks", YARDSTICKS))
"""Rows of tables, in parts with their heads."""


def number(value: Interval, digits: int = 2, sign: str = "") -> str:
    """A mean with its 95 % interval, the interval in small print."""
    mean, plus_minus, half = words(value, sign, digits).partition(" ± ")
    return f"{mean} <small>±&nbsp;{half}</small>" if plus_minus else mean


def share(value: Interval) -> str:
    """A share as `0.62 (0.55 to 0.69)`; without what is unknown of it."""
    if math.isnan(value.mean):
        return "unknown"
    if math.isnan(value.low):
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def verdict(score: Interval) -> str:
    """What the control score says, as a sentence in plain text."""
    if math.isnan(score.mean):
        return (
            "Wrong actions do no harm here, so it is unknown whether the model follows its actions."
        )
    if math.isnan(score.low):
        return "One episode cannot tell whether the model follows its actions."
    if score.low > 0:
        return "The model follows its actions."
    return "No evidence that the model follows its actions."


def table(caption: str, head: str, bodies: str, kind: str = "") -> str:
    """A table that scrolls sideways where it must, reachable by keyboard. All but caption HTML."""
    name = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f'<table class="{kind}"><caption>{name}</caption><thead>{head}</thead>{bodies}</table>'
        "</div>"
    )


def grouped(rows: Mapping[str, str], columns: int) -> str:
    """Bodies of a table: `rows` holds the cells of each row; those without are left out."""
    bodies = []
    for title, names in GROUPS:
        there = [name for name in names if name in rows]
        if not there:
            continue
        lines = "".join(
            f'<tr class="row-{name}"><th scope="row">{escape(ROWS[name])}</th>{rows[name]}</tr>'
            for name in there
        )
        bodies.append(
            f'<tbody><tr class="group"><th scope="rowgroup" colspan="{columns + 1}">{title}</th>'
            f"</tr>{lines}</tbody>"
        )
    return "".join(bodies)


def heads(*names: str) -> str:
    """Head cells of columns; names are HTML."""
    return "".join(f'<th scope="col">{name}</th>' for name in names)


def choice(name: str, legend: str, panels: Mapping[str, str]) -> str:
    """Panels of which one is shown, chosen by radio buttons; no script. Titles -> HTML.

    The style knows five of them. On paper all are shown.
    """
    if len(panels) == 1:
        return next(iter(panels.values()))
    buttons, shown = [], []
    for i, (title, panel) in enumerate(panels.items()):
        checked = " checked" if i == 0 else ""
        buttons.append(
            f'<label><input type="radio" name="{name}" class="pick{i}"{checked}>'
            f"<span>{escape(title)}</span></label>"
        )
        shown.append(f'<div class="panel panel{i}">{panel}</div>')
    return (
        f'<div class="choice"><fieldset class="picks"><legend>{escape(legend)}</legend>'
        f"{''.join(buttons)}</fieldset>{''.join(shown)}</div>"
    )
