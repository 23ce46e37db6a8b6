"""Actions in words: `x+0.02*5, close, z+5cm yaw-10deg, stay*3` -> rows of numbers.

    script = step { "," step }                   one after the other
    step   = word { " " word } [ "*" count ]     all at once; with `*`, so many such actions
    word   = NAME ("+" | "-") number [unit]      by so much
           | NAME "=" number [unit]              to so much; NAME " " number is the same
           | "open" | "close"                    gripper=1, gripper=0
           | "stay"                              nothing more
    unit   = "m" | "cm" | "mm" | "rad" | "deg"   without one, the contract's: metres, radians

NAME is a dimension of the model's action contract. Two kinds of them read differently:

a pose's  x y z roll pitch yaw: how far the hand moves in that step, seen from where it is. Only
          + and - make sense, and a step that does not name one does not move it.
a level   the gripper, and every dimension of a contract that is not poses: it stays as it is until
          it is set (=) or raised and lowered (+, -, in each of `count` actions).

A numbers an action, N actions.
"""

import difflib
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.errors import ConfigError
from cosmos_wds.pipeline import POSE_NAMES

MOST_ACTIONS = 100_000
UNITS = {"m": ("m", 1.0), "cm": ("m", 0.01), "mm": ("m", 0.001)}
UNITS |= {"rad": ("rad", 1.0), "deg": ("rad", math.pi / 180)}
"""Unit -> what it measures, and how much of that it is."""
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?"
AMOUNT = re.compile(rf"(?P<sign>[=+-]-?)(?P<number>{NUMBER})(?P<unit>\D*)")
LEVEL = re.compile(rf"-?{NUMBER}\D*")
POSE = frozenset(POSE_NAMES[:6])
FORMS = {"open": 1.0, "close": 0.0}

Word = tuple[int, bool, float]
"""(column, whether it is set or changed, by or to how much)"""


def read_script(
    script: str, contract: ActionContract, *, levels: Sequence[float] | None = None
) -> np.ndarray:
    """The actions (N, A) that a script says, float64, in physical units.

    A pose is seen from the frame before it, whatever the contract.

    levels   (A,) where levels stand before the first step; None: the gripper open, others at 0

    Raises ConfigError naming the word, its place, and what would be right.
    """
    reader = _Reader(script, contract)
    at = np.array(start_levels(contract) if levels is None else levels, np.float64)
    at[reader.moves] = 0.0
    rows: list[np.ndarray] = []
    for place, text in _pieces(script, ","):
        words, count = reader.step(place, text, room=MOST_ACTIONS - len(rows))
        for _ in range(count):
            row = at.copy()
            for column, is_set, value in words:
                row[column] = value if is_set else row[column] + value
            reader.check_gripper(place, text, row)
            rows.append(row)
            at = np.where(reader.moves, 0.0, row)
    return np.stack(rows)


def start_levels(contract: ActionContract) -> np.ndarray:
    """Where levels stand when nobody says it, (A,): the gripper open, others at 0."""
    return np.array([float(name == "gripper" and _is_0_to_1(contract)) for name in contract.names])


def is_pose(contract: ActionContract) -> bool:
    """Whether its actions are a pose's, and a gripper."""
    return contract.names == POSE_NAMES


def _is_0_to_1(contract: ActionContract) -> bool:
    return dict(zip(contract.names, contract.units, strict=True)).get("gripper") == "1"


class _Reader:
    """Reads the steps of one script for one contract."""

    def __init__(self, script: str, contract: ActionContract) -> None:
        self._script, self._contract = script, contract
        self._columns = {name: i for i, name in enumerate(contract.names)}
        self._longest_first = sorted(contract.names, key=len, reverse=True)
        self._has_gripper = _is_0_to_1(contract)
        self.moves = np.array([is_pose(contract) and name in POSE for name in contract.names])
        """(A,) bool: which dimensions are a pose's."""

    def step(self, place: int, text: str, *, room: int) -> tuple[list[Word], int]:
        """A step's words, and how many actions it is."""
        body, star, times = text.partition("*")
        if not body.strip():
            raise self._wrong(place, text.strip(), "a step without words; write `stay` to stay")
        count = 1
        if star:
            if not re.fullmatch(r"\s*[1-9]\d{0,8}\s*", times):
                raise self._wrong(place, text.strip(), "after * stands a whole number from 1")
            count = int(times)
        if count > room:
            raise self._wrong(place, text.strip(), f"more than {MOST_ACTIONS} actions in all")
        words: list[Word] = []
        for at, word in _joined(_pieces(body, r"\s", offset=place), self._columns):
            found = self._word(at, word)
            if found and found[0] in [column for column, _, _ in words]:
                name = self._contract.names[found[0]]
                raise self._wrong(at, word, f"{name} comes twice in one step; put a comma between")
            words += [found] if found else []
        return words, count

    def check_gripper(self, place: int, text: str, row: np.ndarray) -> None:
        """Raise ConfigError when a step takes the gripper out of its range."""
        if not self._has_gripper:
            return
        value = row[self._columns["gripper"]]
        if not -1e-9 <= value <= 1 + 1e-9:
            raise self._wrong(place, text.strip(), f"gripper {value:g}: 0 is closed, 1 open")

    def _word(self, at: int, word: str) -> Word | None:
        """What one word says; None for one that says nothing."""
        if word == "stay" and word not in self._columns:
            return None
        if word in FORMS and word not in self._columns:
            if not self._has_gripper:
                raise self._wrong(at, word, "this model has no gripper from 0 to 1")
            return self._columns["gripper"], True, FORMS[word]
        name = next((n for n in self._longest_first if _begins(word, n)), None)
        if name is None:
            raise self._wrong(at, word, self._unknown(word))
        amount = AMOUNT.fullmatch(word[len(name) :])
        if not amount or (amount["sign"] in ("+-", "--")):
            raise self._wrong(at, word, f"write it as {self._example(name)}")
        column = self._columns[name]
        if amount["sign"].startswith("=") and self.moves[column]:
            raise self._wrong(at, word, f"{name} moves by so much: write {self._example(name)}")
        value = float(amount["number"]) * self._factor(at, word, name, amount["unit"])
        if not math.isfinite(value):
            raise self._wrong(at, word, "too large a number")
        is_negative = amount["sign"].endswith("-")
        return column, amount["sign"].startswith("="), -value if is_negative else value

    def _factor(self, at: int, word: str, name: str, unit: str) -> float:
        """What a number in `unit` is multiplied by, to be in the contract's unit."""
        own = self._contract.units[self._columns[name]]
        if not unit:
            return 1.0
        kind, size = UNITS.get(unit, ("", 0.0))
        own_kind, own_size = UNITS.get(own, (own, 1.0))
        if not kind or kind != own_kind:
            fitting = [u for u, (k, _) in UNITS.items() if k == own_kind] or ["no unit"]
            raise self._wrong(at, word, f"{unit!r} is no unit of {name}: {', '.join(fitting)}")
        return size / own_size

    def _example(self, name: str) -> str:
        unit = self._contract.units[self._columns[name]]
        amount = {"m": "+0.02", "rad": "-10deg"}.get(unit, "=0.5")
        return f"{name}{amount}"

    def _unknown(self, word: str) -> str:
        stem = re.split(r"[=+\d-]", word, maxsplit=1)[0]
        near = difflib.get_close_matches(stem, self._known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {' '.join(self._known)}"
        return f"no such dimension; {hint}"

    @property
    def _known(self) -> list[str]:
        return [*self._contract.names, *(FORMS if self._has_gripper else ()), "stay"]

    def _wrong(self, place: int, word: str, why: str) -> ConfigError:
        line = " ".join(self._script.split())
        shown = line if len(line) <= 60 else f"{line[:57]}..."
        return ConfigError(f"script {shown!r}: {word!r} at character {place + 1}: {why}")


def _begins(word: str, name: str) -> bool:
    return word.startswith(name) and word[len(name) : len(name) + 1] in ("", "=", "+", "-")


def _pieces(text: str, between: str, offset: int = 0) -> Iterator[tuple[int, str]]:
    """The parts of a text, and where each begins; between blanks, none that is empty."""
    start = 0
    for end in [*(m.start() for m in re.finditer(between, text)), len(text)]:
        part = text[start:end]
        if part or between != r"\s":
            lead = len(part) - len(part.lstrip())
            yield offset + start + (lead if part.strip() else 0), part.strip()
        start = end + 1


def _joined(
    words: Iterator[tuple[int, str]], names: Sequence[str] | dict[str, int]
) -> Iterator[tuple[int, str]]:
    """`gripper 0.5` is one word, gripper=0.5."""
    waiting: tuple[int, str] | None = None
    for at, word in words:
        if waiting and LEVEL.fullmatch(word):
            yield waiting[0], f"{waiting[1]}={word}"
            waiting = None
            continue
        if waiting:
            yield waiting
        waiting = (at, word) if word in names else None
        if not waiting:
            yield at, word
    if waiting:
        yield waiting
