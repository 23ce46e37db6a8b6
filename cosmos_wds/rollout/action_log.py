"""What was done in a rollout, to be shown again: `play` writes it, `infer --replay` reads it.

One JSON file that stands alone: the first frame is in it, as PNG in base64. H rows, W columns, N
actions, A numbers an action.
"""

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosmos_wds.config import write_text
from cosmos_wds.errors import DataError
from cosmos_wds.train.run import Place

FORMAT = "cosmos-wds action log 1"
MOST_BYTES = 256 * 2**20
"""Of a log: beyond it, a file is something else."""
KINDS = {str: "text", int: "a whole number", list: "a list"}
PIECES, PIECE = 64, 2**16  # of a file of weights, for its digest


@dataclass(frozen=True)
class ActionLog:
    """A rollout that was stepped by hand: what gives its frames again."""

    checkpoint: str
    """As the user named it."""
    weights: str
    """`weights_digest` of its weights; empty when unknown. With others, frames differ."""
    contract: str
    """Digest of the action contract: what the actions' numbers mean."""
    seed: int
    steps: int
    """Sampler steps per call."""
    first: np.ndarray
    """(H, W, 3) uint8, at the model's size"""
    actions: np.ndarray
    """(N, A) float64, physical units, each pose seen from the frame before it"""


def write_log(path: Path, log: ActionLog) -> None:
    """Write a log whole or not at all; reading it back gives equal numbers, bit for bit."""
    write_text(path, log_text(log))


def log_text(log: ActionLog) -> str:
    """What stands in a log's file."""
    table = {
        "format": FORMAT,
        "checkpoint": log.checkpoint,
        "weights": log.weights,
        "contract": log.contract,
        "seed": int(log.seed),
        "steps": int(log.steps),
        "first": base64.b64encode(png(log.first)).decode("ascii"),
        "actions": np.asarray(log.actions, np.float64).tolist(),
    }
    return json.dumps(table, indent=1) + "\n"


def read_log(path: Path) -> ActionLog:
    """Read a log. Raises DataError for a file that is none, or a damaged one."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: too large for an action log")
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such action log") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not an action log: {str(error)[:120]}") from None
    if not isinstance(table, Mapping) or table.get("format") != FORMAT:
        raise DataError(f"{path}: not an action log of this version, which says {FORMAT!r}")
    try:
        return ActionLog(
            checkpoint=_checked(table, "checkpoint", str),
            weights=_checked(table, "weights", str),
            contract=_checked(table, "contract", str),
            seed=_checked(table, "seed", int, least=0),
            steps=_checked(table, "steps", int, least=1),
            first=_picture(_checked(table, "first", str)),
            actions=_rows(_checked(table, "actions", list)),
        )
    except ValueError as error:
        raise DataError(f"{path}: damaged action log: {error}") from None


def weights_digest(place: Place) -> str:
    """Sixteen hex digits that tell weights apart, whatever they are called and wherever they lie.

    Of each file its size and 64 pieces from end to end: training changes every number, and 15 GB
    are not read to notice it. Raises OSError when a file cannot be read.
    """
    found = hashlib.sha256()
    files = [place.file]
    if place.file.is_dir():
        found.update(place.kind.encode())
        files = sorted(p for p in place.file.rglob("*") if p.is_file())
    elif place.file.suffix == ".json":  # of weights in several files
        files = sorted(place.file.parent.glob("*.safetensors"))
    for file in files:
        size = file.stat().st_size
        found.update(f"{size}\n".encode())
        with open(file, "rb") as opened:
            for piece in range(PIECES):
                opened.seek(max(0, size - PIECE) * piece // (PIECES - 1))
                found.update(opened.read(PIECE))
    return found.hexdigest()[:16]


def png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as PNG."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return content.getvalue()


def _checked(table: Mapping[str, Any], key: str, kind: type, least: int | None = None) -> Any:
    """A value of that type. Raises ValueError."""
    value = table.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key} = {str(value)[:40]!r}: not {KINDS[kind]}")
    if least is not None and value < least:
        raise ValueError(f"{key} = {value}: at least {least}")
    return value


def _picture(text: str) -> np.ndarray:
    try:
        content = io.BytesIO(base64.b64decode(text, validate=True))
        with Image.open(content, formats=["PNG"]) as image:
            return np.array(image.convert("RGB"))
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("first: not a picture (PNG in base64)") from None


def _rows(value: list[Any]) -> np.ndarray:
    """Rows of equally many finite numbers; there may be none. Raises ValueError."""
    width = len(value[0]) if value and isinstance(value[0], list) else 0
    for number, row in enumerate(value):
        is_row = isinstance(row, list) and len(row) == width > 0
        if not is_row or not all(_is_number(v) for v in row):
            raise ValueError(f"actions, row {number}: not {width or 'some'} finite numbers")
    return np.array(value, np.float64).reshape(len(value), width)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return is_number and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
