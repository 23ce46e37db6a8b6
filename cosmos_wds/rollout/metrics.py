"""How close generated frames are to the truth, in numbers and in words. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cosmos_wds.train.interval import Interval, words

ROUNDING = 1 / 12
"""Mean square error of rounding to whole levels: below it two frames count as equal (58.9 dB)."""


@dataclass(frozen=True)
class StepRow:
    """One step ahead: PSNR in dB, and paired differences, each a mean over episodes."""

    step: int
    true: Interval
    """The rollout under the episode's own actions."""
    other: Interval
    """The rollout under another episode's actions."""
    copy: Interval
    """The first frame, standing still."""
    over_other: Interval
    """true - other, episode by episode: above zero, the model follows its actions."""
    over_copy: Interval


def psnr(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of uint8 frames (..., H, W, 3) -> (...) float64."""
    assert frames.dtype == truth.dtype == np.uint8 and frames.shape[-3:] == truth.shape[-3:]
    difference = frames.astype(np.float32) - truth
    error = np.square(difference).mean(axis=(-3, -2, -1), dtype=np.float64)
    return 10 * np.log10(255**2 / np.maximum(error, ROUNDING))


def shown_steps(steps: int) -> list[int]:
    """Of steps 1 .. `steps`, those that tables name: powers of two, and the last."""
    powers = [2**i for i in range(steps.bit_length()) if 2**i < steps]
    return [*powers, steps]


def verdict(gain: Interval, steps: int) -> str:
    """What the gain of true over another episode's actions, a mean over steps, says."""
    size = f"{words(gain, '+')} dB on average over {steps} step{'s' if steps > 1 else ''}"
    if not math.isfinite(gain.low):
        return f"One episode cannot tell whether the model follows its actions: {size}."
    if gain.low > 0:
        return f"The model follows its actions: true ones beat another episode's by {size}."
    return f"No evidence that the model follows its actions: true minus another's is {size}."


def psnr_table(rows: Sequence[StepRow]) -> Table:
    """The rows that tables name, for a console of 80 columns."""
    title = "PSNR against the recording, dB: mean over episodes, 95 % interval"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("steps\nahead", justify="right")
    for head in ("true\nactions", "another's\nactions", "first\nframe"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in ("gain over\nanother's", "gain over\nfirst frame"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in (rows[step - 1] for step in shown_steps(len(rows))):
        levels = (words(v, digits=1) for v in (row.true, row.other, row.copy))
        gains = (words(v, "+", digits=1) for v in (row.over_other, row.over_copy))
        table.add_row(str(row.step), *levels, *gains)
    return table
