"""How close generated frames are to the truth, how sure a mean is, and both in words. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

ROUNDING = 1 / 12
"""Mean square error of rounding to whole levels: below it two frames count as equal (58.9 dB)."""

_Z = 1.959964  # 97.5 % point of the normal distribution
_T = (12.7062, 4.3027, 3.1824, 2.7764)  # 97.5 % points of Student's t for 1 to 4 degrees of freedom


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


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


def mean_interval(values: np.ndarray) -> Interval:
    """Mean over episodes (E,) with its 95 % interval from Student's t.

    The interval of a single episode is unknown: NaN.
    """
    values = np.asarray(values, np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_point(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def t_point(freedom: int) -> float:
    """97.5 % point of Student's t (Abramowitz & Stegun 26.7.5, and a table for few episodes)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, v = _Z, freedom
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / v + g2 / v**2 + g3 / v**3 + g4 / v**4


def shown_steps(steps: int) -> list[int]:
    """Of steps 1 .. `steps`, those that tables name: powers of two, and the last."""
    powers = [2**i for i in range(steps.bit_length()) if 2**i < steps]
    return [*powers, steps]


def words(value: Interval, sign: str = "", digits: int = 2) -> str:
    """`24.13 ± 0.42`; without a spread where it is unknown. sign="+" shows the sign always."""
    half = value.high - value.mean
    spread = f" ± {half:.{digits}f}" if math.isfinite(half) else ""
    return f"{value.mean:{sign}.{digits}f}{spread}"


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
