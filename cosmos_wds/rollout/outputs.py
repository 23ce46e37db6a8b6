"""What `infer` leaves: for each rollout an mp4, and beside it PNGs or numbers if they are wanted.

FOLDER/NAME.mp4        H.264, yuv420p; beside the recording, if they are compared
FOLDER/NAME.npz        frames (N+1, H, W, 3) uint8 as generated, actions (N, A), seed, contract
FOLDER/NAME_frames/    000000.png ..., the same frames
FOLDER/infer.json      of a folder of many: how they were made, and which are finished

Each is whole or not there. infer.json names a rollout just before its files are written, mp4 last:
so a file that it does not name is somebody else's and is not touched, and what it names and is not
there will be made by the next run.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_wds.config import write_bytes, write_text
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.lock import holding
from cosmos_wds.data.video import resize
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.rollout.action_log import png
from cosmos_wds.rollout.film import beside, write_mp4

LEDGER = "infer.json"
FORMAT = 1
SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class Form:
    """How rollouts are written."""

    fps: float
    height: int
    width: int
    compare: bool = False
    png: bool = False
    npz: bool = False


@dataclass(frozen=True)
class Finished:
    """One rollout, ready to be written."""

    name: str
    seed: int
    frames: np.ndarray
    """(N+1, H, W, 3) uint8, at the model's size"""
    actions: np.ndarray
    """(N, A), physical units, as the contract means them"""
    truth: np.ndarray | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """What infer.json says of it, in plain types."""


@dataclass(frozen=True)
class Outputs:
    """The files of rollouts in one folder."""

    folder: Path
    form: Form
    contract: ActionContract
    overwrite: bool = False

    def mp4(self, name: str) -> Path:
        """The video of a rollout."""
        return self.folder / f"{name}.mp4"

    def files(self, name: str) -> list[Path]:
        """All that is written of a rollout, in that order."""
        beside_it = {f"{name}.npz": self.form.npz, f"{name}_frames": self.form.png}
        wanted = [self.folder / file for file, is_wanted in beside_it.items() if is_wanted]
        return [*wanted, self.mp4(name)]

    def check_free(self, names: Sequence[str]) -> None:
        """Raise ConfigError when a rollout's files are there already, unless they may be replaced.

        Folders are replaced only if they hold PNGs of ours and nothing else.
        """
        there = [file for name in names for file in self.files(name) if os.path.lexists(file)]
        for file in there:
            if file.is_dir() and not (file.name.endswith("_frames") and _holds_frames(file)):
                raise ConfigError(f"{file}: is a folder of something else; name another output")
        if there and not self.overwrite:
            more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
            raise ConfigError(f"{there[0]}: exists{more}; name another file, or give --overwrite")

    def remove(self, names: Sequence[str]) -> None:
        """Take away videos that will be replaced: until then they must not pass for the new ones.

        Raises DataError when the disk refuses.
        """
        for file in map(self.mp4, names):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"{file}: cannot be replaced: {error.strerror}") from None

    def write(self, rollout: Finished) -> None:
        """Write a rollout's files. Raises DataError when the disk refuses."""
        npz, frames = self.form.npz, self.form.png
        try:
            if npz:
                write_bytes(self.folder / f"{rollout.name}.npz", self._numbers(rollout))
            if frames:
                _write_frames(self.folder / f"{rollout.name}_frames", rollout.frames)
        except OSError as error:
            place = error.filename or self.folder / rollout.name
            raise DataError(f"{place}: cannot be written: {error.strerror or error}") from None
        shown = resize(rollout.frames, self.form.height, self.form.width)
        if self.form.compare and rollout.truth is not None:
            shown = beside(resize(rollout.truth, self.form.height, self.form.width), shown)
        write_mp4(self.mp4(rollout.name), shown, self.form.fps)

    def _numbers(self, rollout: Finished) -> bytes:
        content = io.BytesIO()
        np.savez(
            content,
            frames=rollout.frames,
            actions=rollout.actions,
            seed=np.int64(rollout.seed),
            contract=np.str_(self.contract.digest),
        )
        return content.getvalue()


class Ledger:
    """infer.json: how a folder's rollouts were made, and what is known of each."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Read what is there, if anything.

        settings   plain types by name: what rollouts of one folder have in common

        Raises ConfigError when the folder's were made by others and they may not be replaced.
        """
        self._path = path
        table = _read_table(path)
        different = list(_differences(table["settings"], settings)) if table else []
        if different and not overwrite:
            lines = "\n  ".join(different)
            raise ConfigError(
                f"{path.parent}: holds rollouts made otherwise; name another folder, or give "
                f"--overwrite\n  {lines}"
            )
        self.left = sorted(table["rollouts"]) if table and different else []
        """Rollouts that were made otherwise, and whose files stay."""
        known = table["rollouts"] if table and not different else {}
        self.rollouts: dict[str, dict[str, Any]] = dict(known)
        self._settings = dict(settings)

    def is_finished(self, name: str, source: str, files: Sequence[Path]) -> bool:
        """Whether a rollout is known and all of its files are there.

        Raises ConfigError when it was made from something else.
        """
        known = self.rollouts.get(name)
        if known is None or not all(file.exists() for file in files):
            return False
        if known.get("source") != source:
            raise ConfigError(
                f"{files[-1]}: was made from another recording of that name ({known.get('source')} "
                f"there, {source} now); name another folder, or give --overwrite"
            )
        return True

    def note(self, rollouts: Sequence[Finished]) -> None:
        """Say what is about to be written. Raises DataError when the disk refuses."""
        self.rollouts |= {r.name: {"seed": r.seed, **r.about} for r in rollouts}
        table = {"format": FORMAT, "settings": self._settings, "rollouts": self.rollouts}
        try:
            write_text(self._path, _lines(table))
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written: {error.strerror}") from None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder of outputs against other commands.

    Raises ConfigError when one holds it, or it cannot be written.
    """
    check_writable(folder / LEDGER)
    with holding(folder / ".infer.lock") as holder:
        if holder is not None:
            raise ConfigError(
                f"{folder}: another infer is writing here (process {holder or '?'}); wait for it, "
                "or name another folder"
            )
        yield


def check_writable(path: Path) -> None:
    """Refuse a file whose folder cannot be made or written. Raises ConfigError."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{path}: its folder cannot be written: {error.strerror}; choose another one"
        ) from None


def _write_frames(folder: Path, frames: np.ndarray) -> None:
    """Write frames as numbered PNGs, in a folder that is whole or not there."""
    work = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for number, frame in enumerate(frames):
            write_bytes(work / f"{number:06}.png", png(frame))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _holds_frames(folder: Path) -> bool:
    return all(re.fullmatch(r"\d{6,}\.png", name) for name in os.listdir(folder))


def _read_table(path: Path) -> dict[str, Any] | None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        is_ours = table["format"] == FORMAT and isinstance(table["settings"], dict)
        if is_ours and all(isinstance(about, dict) for about in table["rollouts"].values()):
            found: dict[str, Any] = table
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ConfigError(f"{path}: not what infer wrote; name another folder, or remove the file")


def _lines(table: Mapping[str, Any]) -> str:
    """JSON with a line for each setting and rollout."""
    parts = []
    for key, value in table.items():
        inner = json.dumps(value)
        if isinstance(value, Mapping):
            rows = (f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            inner = "{\n" + ",\n".join(rows) + "\n }"
        parts.append(f" {json.dumps(key)}: {inner}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """A line for each setting that is not the same."""
    for name in dict.fromkeys([*here, *there]):
        before, now = there.get(name), here.get(name)
        if before != now:
            yield f"{name}: {_shown(now)} now, {_shown(before)} there"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
