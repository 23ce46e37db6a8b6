"""`cosmos-wds bench train --grid`: a step under each setting that trades memory for time.

Every cell has a process of its own, so that one that does not fit leaves nothing behind. Larger
micro-batches than one that did not fit are not tried.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from cosmos_wds.config import dump
from cosmos_wds.console import say
from cosmos_wds.recipe import Recipe

CHECKPOINTING = ("none", "selective", "full")
COMPILED = (False, True)
COLUMNS = ("seconds", "windows_per_second", "tflops", "share", "peak_gb")


def bench_grid(recipe: Recipe, *, steps: int) -> list[dict[str, Any]]:
    """Time a step for each checkpointing, compilation and micro-batch (1, 2, 4, ... the batch).

    Each micro-batch is the whole batch of its step, so that cells compare by windows a second. A
    cell that does not fit has `problem` in place of figures.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(dump(recipe), encoding="utf-8")
        for checkpointing, compiled in product(CHECKPOINTING, COMPILED):
            for micro_batch in _doubling(recipe.train.batch):
                cell = {"micro_batch": micro_batch, "checkpointing": checkpointing}
                row = _cell(path, {**cell, "compile": compiled}, steps)
                rows.append(row)
                say(", ".join(f"{key} {value}" for key, value in row.items() if key in SHOWN))
                if "problem" in row:
                    break
    return rows


SHOWN = ("micro_batch", "checkpointing", "compile", *COLUMNS, "problem")


def grid_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each cell."""
    table = Table(*(name.replace("_", " ") for name in SHOWN[:-1]))
    for row in rows:
        values = [row.get(name, "does not fit" if name == "seconds" else "") for name in SHOWN[:-1]]
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    return table


def _doubling(most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        yield size
        size *= 2


def _cell(path: Path, cell: dict[str, Any], steps: int) -> dict[str, Any]:
    """Figures of one cell, from a process of its own."""
    settings = {
        "batch": cell["micro_batch"],
        "accumulate": 1,
        "checkpointing": cell["checkpointing"],
        "compile": str(cell["compile"]).lower(),
    }
    command = [sys.executable, "-m", "cosmos_wds", "bench", "train", str(path), "--json"]
    command += ["--steps", str(steps)]
    command += [f"--set=train.{key}={value}" for key, value in settings.items()]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"]
        return {**cell, "problem": lines[-1][:200]}
    figures = json.loads(ended.stdout)
    return {**cell, **{name: figures[name] for name in COLUMNS}}
