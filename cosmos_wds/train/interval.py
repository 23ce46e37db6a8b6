"""How sure a mean is, and that in words. No torch."""

import math
from typing import NamedTuple

import numpy as np

_Z = 1.959964  # 97.5 % point of the normal distribution
_T = (12.7062, 4.3027, 3.1824, 2.7764)  # 97.5 % points of Student's t for 1 to 4 degrees of freedom


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of independent values (E,) with its 95 % interval from Student's t.

    The interval of a single value is unknown: NaN.
    """
    values = np.asarray(values, np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_point(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def t_point(freedom: int) -> float:
    """97.5 % point of Student's t (Abramowitz & Stegun 26.7.5, and a table for few values)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, v = _Z, freedom
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / v + g2 / v**2 + g3 / v**3 + g4 / v**4


def words(value: Interval, sign: str = "", digits: int = 2) -> str:
    """`24.13 ± 0.42`; without a spread where it is unknown. sign="+" shows the sign always."""
    half = value.high - value.mean
    spread = f" ± {half:.{digits}f}" if math.isfinite(half) else ""
    return f"{value.mean:{sign}.{digits}f}{spread}"
