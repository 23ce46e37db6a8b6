"""Values of recordings as they are found, and as episodes hold them."""

import math
from typing import Any

import numpy as np

from cosmos_wds.errors import DataError


def numbers(value: Any, file: str, key: str, *, width: int = 0) -> np.ndarray:
    """Rows of at least `width` finite numbers as (N, columns) float64."""
    try:
        rows = np.asarray(value)
    except ValueError:
        raise DataError(f"{file}: {key}: rows of different lengths") from None
    if rows.dtype.kind not in "iuf" or rows.ndim != 2:
        raise DataError(f"{file}: {key}: not rows of numbers")
    if rows.shape[1] < width:
        raise DataError(f"{file}: {key}: rows of {rows.shape[1]} numbers; {width} are needed")
    is_finite = np.isfinite(rows)
    if not is_finite.all():
        row, column = np.argwhere(~is_finite)[0]
        raise DataError(f"{file}: {key}: {rows[row, column]} in row {row}, column {column}")
    return rows.astype(np.float64)


def steps(rows: np.ndarray, frames: int, file: str) -> np.ndarray:
    """Recorded actions (T-1, A). Some tools write one a frame: the last then leads nowhere."""
    if len(rows) not in (frames - 1, frames):
        raise DataError(f"{file}: action: {len(rows)} rows for {frames} states")
    return rows[: frames - 1]


def text(value: Any) -> str:
    """The first sentence, of a list or alone."""
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else ""


def finite(value: Any) -> Any:
    """The same value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [finite(v) for v in value]
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return value
