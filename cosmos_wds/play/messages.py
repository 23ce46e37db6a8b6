"""What a page may ask of the server, and how the server answers. A numbers an action.

A page asks in JSON and waits for the answer before it asks again:

    {"do": "begin", "start": 3, "seed": 0}
    {"do": "step", "action": [A numbers]}
    {"do": "save"}

An answer is one binary message: the length of its head as four bytes, little-endian; the head, in
JSON; then the files whose sizes `sizes` in the head lists.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from cosmos_wds.errors import DataError
from cosmos_wds.rollout.starts import Limits

LONGEST = 2**14
"""Bytes of what a page asks."""
SLACK = 1e-5
"""By how much numbers may pass their limits: a page computes them from what it was told in JSON."""


@dataclass(frozen=True)
class Begin:
    """Begin anew from one of the starts."""

    start: int
    seed: int


@dataclass(frozen=True)
class Step:
    """Advance by one frame."""

    action: np.ndarray
    """(A,) float64, physical units"""


@dataclass(frozen=True)
class Save:
    """Give out what happened since the beginning."""


@dataclass(frozen=True)
class Rules:
    """What numbers a page may send."""

    names: tuple[str, ...]
    limits: Limits
    starts: int


def read_request(text: str, rules: Rules) -> Begin | Step | Save:
    """What a page asks. Raises DataError for anything else, saying what is wrong with it."""
    try:
        table = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise DataError("not a request: no JSON") from None
    if not isinstance(table, dict):
        raise DataError("not a request: no JSON object")
    keys = {"begin": {"start", "seed"}, "step": {"action"}, "save": set()}
    wanted = keys.get(str(table.get("do")))
    if wanted is None or set(table) != {"do", *wanted}:
        raise DataError(
            "not a request: begin with start and seed, step with action, or save, and no other key"
        )
    if table["do"] == "begin":
        start = _whole(table["start"], "start", rules.starts)
        return Begin(start, _whole(table["seed"], "seed", 2**32))
    return Step(_action(table["action"], rules)) if table["do"] == "step" else Save()


def answer(head: Mapping[str, Any], files: Sequence[bytes] = ()) -> bytes:
    """An answer as it is sent."""
    text = json.dumps({**head, "sizes": [len(file) for file in files]}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *files])


def read_answer(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The head and files of an answer, as a page takes it apart."""
    (length,) = struct.unpack_from("<I", message)
    head, at, files = json.loads(message[4 : 4 + length]), 4 + length, []
    for size in head["sizes"]:
        files.append(message[at : at + size])
        at += size
    assert at == len(message)
    return head, files


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _whole(value: object, name: str, below: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise DataError(f"{name}: a whole number from 0 to {below - 1}")
    return value


def _action(value: object, rules: Rules) -> np.ndarray:
    if not isinstance(value, list) or len(value) != len(rules.names):
        raise DataError(f"action: {len(rules.names)} numbers: {' '.join(rules.names)}")
    for name, number in zip(rules.names, value, strict=True):
        if not isinstance(number, int | float) or isinstance(number, bool) or not _finite(number):
            raise DataError(f"action: {name}: not a finite number")
    row = np.array(value, np.float64)
    slack = SLACK * (rules.limits.high - rules.limits.low)
    beyond = (row < rules.limits.low - slack) | (row > rules.limits.high + slack)
    if beyond.any():
        at = int(np.argmax(beyond))
        low, high = float(rules.limits.low[at]), float(rules.limits.high[at])
        raise DataError(f"action: {rules.names[at]} = {row[at]:.4g}: from {low:.4g} to {high:.4g}")
    return row


def _finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float holds
        return False
