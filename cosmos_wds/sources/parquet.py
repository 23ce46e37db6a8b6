"""Columns of parquet files as arrays, through the extra `[lerobot]`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.sources.kept import once_per_file
from cosmos_wds.sources.values import numbers

NUMBER = "episode_index"


def need_pyarrow() -> None:
    """Raise ConfigError naming the extra when pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ConfigError("LeRobot data need pyarrow: pip install 'cosmos-wds[lerobot]'") from None


def parquet_columns(storage: Storage, file: str, wanted: Callable[[str], bool]) -> Any:
    """The columns of a file whose names are wanted, as a pyarrow Table. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = storage.read(file)
    try:
        opened = pq.ParquetFile(pa.BufferReader(content))
        names = [name for name in opened.schema_arrow.names if wanted(name)]
        return opened.read(columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise DataError(f"{file}: not readable as parquet: {line}") from None


def episode_table(
    storage: Storage, file: str, number: int, names: tuple[str, ...]
) -> dict[str, Any]:
    """Columns of one episode, which may share the file with others, as pyarrow has them.

    Raises DataError where the file has not these columns, or not the episode's rows together.
    """
    table = _table(storage, file, names)
    missing = {*names, NUMBER} - set(table.column_names)
    if missing:
        raise DataError(f"{file}: no column {', '.join(sorted(missing))}")
    rows = np.flatnonzero(table.column(NUMBER).to_numpy() == number)
    if not len(rows):
        raise DataError(f"{file}: no rows of episode {number}")
    first, count = int(rows[0]), len(rows)
    if rows[-1] - first + 1 != count:
        raise DataError(f"{file}: rows of other episodes between those of episode {number}")
    return {name: table.column(name).slice(first, count) for name in names}


def column_numbers(columns: Mapping[str, Any], names: Sequence[str], file: str) -> np.ndarray:
    """Columns side by side, (T, width) float64; one of single numbers has width 1.

    Raises DataError for what is not numbers, or not finite.
    """
    parts = []
    for name in names:
        values = columns[name].to_pylist()
        is_flat = not any(isinstance(value, list) for value in values)
        parts.append(numbers([[v] for v in values] if is_flat else values, file, name))
    length = len(next(iter(columns.values())))
    return np.column_stack([np.empty((length, 0)), *parts])


@once_per_file(2)
def _table(storage: Storage, file: str, names: tuple[str, ...]) -> Any:
    return parquet_columns(storage, file, lambda name: name in (*names, NUMBER))
