"""The folder of a run's checkpoints: which there are, which is the latest, which are given up.

    iter_000002000/                 the run's whole state after 2,000 steps (state.py)
    latest_checkpoint.txt           iter_000002000
    iter_000002000_reg_model.pt     weights as trained, in the reference's form (spec.md d.12),
    iter_000002000_ema_model.pt     and their running average: at the end of a run

A checkpoint is written under a temporary name, fsynced and renamed; `latest_checkpoint.txt` comes
last. So whatever stops a save, that file names a complete checkpoint.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cosmos_wds.errors import CheckpointError

LATEST = "latest_checkpoint.txt"
NAME = re.compile(r"iter_(\d{9,})")


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return folder / f"iter_{step:09d}"


def weights_file(folder: Path, step: int, kind: str) -> Path:
    """The reference's name of weights after `step` steps; kind is reg or ema."""
    return folder / f"iter_{step:09d}_{kind}_model.pt"


def latest_step(folder: Path) -> int | None:
    """The step that `latest_checkpoint.txt` names; None when there is no checkpoint yet.

    Raises CheckpointError when it names nothing, or a checkpoint that is gone.
    """
    path = folder / LATEST
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    match = NAME.fullmatch(text)
    if not match:
        raise CheckpointError(
            f"{path}: says {text[:60]!r}, not the name of a checkpoint such as iter_000000500"
        )
    step = int(match[1])
    if not checkpoint_folder(folder, step).is_dir():
        raise CheckpointError(
            f"{checkpoint_folder(folder, step)}: missing, but {LATEST} names it; "
            f"{way_back(folder, step)}"
        )
    return step


def complete_steps(folder: Path) -> list[int]:
    """Steps whose checkpoints are there, ascending."""
    found = (NAME.fullmatch(path.name) for path in folder.glob("iter_*") if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def way_back(folder: Path, step: int) -> str:
    """What to do when the checkpoint of `step` cannot be used."""
    others = [s for s in complete_steps(folder) if s != step]
    if others:
        name = checkpoint_folder(folder, others[-1]).name
        return f"to go on from step {others[-1]}, write {name} into {folder / LATEST}"
    return f"restore it, or delete {folder} to start again"


@contextmanager
def appearing(folder: Path, step: int, *, keep: int) -> Iterator[Path]:
    """A new folder to fill, published as the latest checkpoint when all is well.

    Then those beyond the last and `keep` older ones are deleted (0 keeps all). Whatever is raised
    within, nothing is left, and the former checkpoint is still the latest. Raises OSError.
    """
    temporary = temporary_folder(folder, step)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync_folder(temporary)
        final = checkpoint_folder(folder, step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _sync_folder(folder)
        write_file(folder / LATEST, lambda file: file.write(final.name.encode()))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if latest_or_none(folder) != step:
            shutil.rmtree(checkpoint_folder(folder, step), ignore_errors=True)
        raise
    for old in [s for s in complete_steps(folder) if s < step][:-keep] if keep else ():
        shutil.rmtree(checkpoint_folder(folder, old), ignore_errors=True)


def temporary_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint is while it is being written; the same for all ranks."""
    return folder / f".{checkpoint_folder(folder, step).name}.tmp"


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
    """Delete what a killed save left. Call it only while holding the run's lock."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def latest_or_none(folder: Path) -> int | None:
    """As `latest_step`, but None also where the latest checkpoint is damaged."""
    try:
        return latest_step(folder)
    except CheckpointError:
        return None


def kept(folder: Path) -> str:
    """What a save that failed leaves."""
    step = latest_or_none(folder)
    return "there is no earlier one" if step is None else f"that of step {step} is intact"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no way to, and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
