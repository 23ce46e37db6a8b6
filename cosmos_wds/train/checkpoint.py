"""Files of a run's checkpoints, named as the reference names them (spec.md d.12).

    iter_000002000_reg_model.pt   weights as trained, float32, released names
    iter_000002000_ema_model.pt   their running average, the same names
    iter_000002000_optim.pt       AdamW's moments
    iter_000002000.pt             step, loader position, digests
    latest_checkpoint.txt         iter_000002000.pt

Each file is written under a temporary name, fsynced and renamed; `latest_checkpoint.txt` comes
last. So whatever stops a save, that file names a complete checkpoint.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cosmos_wds.errors import CheckpointError

LATEST = "latest_checkpoint.txt"
PARTS = ("_reg_model", "_ema_model", "_optim", "")
"""Endings of a checkpoint's files, in the order of writing."""


def checkpoint_file(folder: Path, step: int, part: str) -> Path:
    """Path of one part of the checkpoint that holds the state after `step` steps."""
    assert part in PARTS
    return folder / f"iter_{step:09d}{part}.pt"


def latest_step(folder: Path) -> int | None:
    """The step that `latest_checkpoint.txt` names; None when there is no checkpoint yet.

    Raises CheckpointError when it names nothing, or a checkpoint whose files are gone.
    """
    path = folder / LATEST
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    match = re.fullmatch(r"iter_(\d{9,})\.pt", text)
    if not match:
        raise CheckpointError(
            f"{path}: says {text[:60]!r}, not the name of a checkpoint such as iter_000000500.pt"
        )
    step = int(match[1])
    for part in PARTS:
        if not checkpoint_file(folder, step, part).is_file():
            raise CheckpointError(
                f"{checkpoint_file(folder, step, part)}: missing, but {LATEST} names its "
                f"checkpoint; {way_back(folder, step)}"
            )
    return step


def complete_steps(folder: Path) -> list[int]:
    """Steps of which every file is there, ascending."""
    found = (re.fullmatch(r"iter_(\d{9,})\.pt", path.name) for path in folder.glob("iter_*.pt"))
    steps = sorted(int(match[1]) for match in found if match)
    return [s for s in steps if all(checkpoint_file(folder, s, part).is_file() for part in PARTS)]


def way_back(folder: Path, step: int) -> str:
    """What to do when the checkpoint of `step` cannot be used."""
    others = [s for s in complete_steps(folder) if s != step]
    if others:
        name = checkpoint_file(folder, others[-1], "").name
        return f"to go on from step {others[-1]}, write {name} into {folder / LATEST}"
    return f"restore the file, or delete {folder} to start again"


def save_checkpoint(folder: Path, step: int, parts: Mapping[str, Any], *, keep: int) -> None:
    """Write a checkpoint, publish it, then delete those beyond the last and `keep` older ones.

    `parts` maps PARTS to what each file holds. Raises CheckpointError when the disk is full or
    the folder cannot be written; the former checkpoint is then still the latest.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            content = parts[part]
            write_file(
                checkpoint_file(folder, step, part),
                lambda file, content=content: torch.save(content, file),
            )
        name = checkpoint_file(folder, step, "").name
        write_file(folder / LATEST, lambda file: file.write(name.encode()))
    except OSError as error:
        if folder.is_dir() and latest_or_none(folder) != step:
            _remove(folder, step)
        raise CheckpointError(
            f"{folder}: the checkpoint of step {step} could not be written: "
            f"{error.strerror or error}; {_kept(folder)}; make room or mend the folder, then run "
            "the same command again"
        ) from error
    if keep:
        for old in [s for s in complete_steps(folder) if s < step][:-keep]:
            _remove(folder, old)


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears under `path` whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except RuntimeError as error:
        # torch.save turns a failed write into a RuntimeError about its archive's size.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed save left: temporary files, and parts of a checkpoint beyond the latest.

    Call it only while holding the run's lock.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    latest = latest_or_none(folder) or 0
    whole = set(complete_steps(folder))
    for path in folder.glob("iter_*.pt"):
        match = re.match(r"iter_(\d{9,})[_.]", path.name)
        if match and int(match[1]) > latest and int(match[1]) not in whole:
            path.unlink(missing_ok=True)


def latest_or_none(folder: Path) -> int | None:
    """As `latest_step`, but None also where the latest checkpoint is damaged."""
    try:
        return latest_step(folder)
    except CheckpointError:
        return None


def _kept(folder: Path) -> str:
    step = latest_or_none(folder)
    return "there is no earlier one" if step is None else f"that of step {step} is intact"


def _remove(folder: Path, step: int) -> None:
    """Delete a checkpoint; its iter_*.pt first, so that what is left never looks complete."""
    for part in reversed(PARTS):
        checkpoint_file(folder, step, part).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no way to, and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
