"""Rollouts that are kept as files, so that an evaluation goes on where it stopped.

FOLDER/ROW/KEY.npz   one rollout: frames, latents, and the fingerprint of all that it depends on

A file whose fingerprint is another one's, or that is damaged, is made again. What only measures
rollouts (metrics, which episodes are listed beside it) is no part of a fingerprint: the same
rollouts serve any measure, and an episode added to a list costs that episode alone. A guardrail
counts by its name: after changing what it does, begin a new folder.

R rollouts, N actions of width A, C latent channels, h x w latent pixels, H x W pixels.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape

from cosmos_wds import __version__
from cosmos_wds.config import write_bytes
from cosmos_wds.console import progress_bar, say
from cosmos_wds.errors import DataError
from cosmos_wds.rollout.action_log import weights_digest
from cosmos_wds.rollout.rollout import Rolled, rolled
from cosmos_wds.train.run import LoadedRun


@dataclass(frozen=True)
class Job:
    """One rollout."""

    row: str
    """What kind of actions it has."""
    key: str
    """Of its episode: it alone decides the noise, so that all rows of an episode share it."""
    first: np.ndarray
    """(H, W, 3) uint8"""
    actions: np.ndarray
    """(N, A), as the contract means them"""

    @property
    def number(self) -> int:
        """The rollout's number, which its noise is drawn from."""
        return zlib.crc32(self.key.encode())


def roll_out(
    run: LoadedRun, jobs: Sequence[Job], *, seed: int, folder: Path | None = None
) -> list[Rolled]:
    """Make the rollouts that are not kept yet, in batches of [infer] batch; returns all.

    folder   where they are kept; None: nowhere
    Each result holds one rollout. Raises as rollout.rolled, and DataError when the disk refuses.
    """
    common = _common(run, seed)
    prints = [_fingerprint(common, job) for job in jobs]
    done = {i: kept for i, kept in _kept(folder, jobs, prints)}
    if done:
        say(f"{escape(str(folder))}: {len(done)} of {len(jobs)} rollouts are there already")
    missing = [i for i in range(len(jobs)) if i not in done]
    batch = run.recipe.infer.batch
    with progress_bar() as progress:
        frames = sum(len(jobs[i].actions) for i in missing)
        task = progress.add_task("rollouts", total=frames, note="", visible=bool(missing))
        for at in range(0, len(missing), batch):
            chosen = missing[at : at + batch]
            made = _made(run, [jobs[i] for i in chosen], seed, lambda n: progress.advance(task, n))
            for i, one in zip(chosen, made, strict=True):
                done[i] = one
                if folder is not None:
                    _keep(_place(folder, jobs[i]), one, prints[i])
    return [done[i] for i in range(len(jobs))]


def _made(
    run: LoadedRun, jobs: Sequence[Job], seed: int, on_frame: Callable[[int], object]
) -> list[Rolled]:
    together = rolled(
        run,
        np.stack([job.first for job in jobs]),
        np.stack([job.actions for job in jobs]),
        seed=seed,
        numbers=[job.number for job in jobs],
        on_frame=on_frame,
    )
    pairs = zip(together.frames, together.latents, strict=True)
    return [Rolled(frames[None], latents[None]) for frames, latents in pairs]


def _common(run: LoadedRun, seed: int) -> Mapping[str, object]:
    """What all rollouts of a run depend on."""
    recipe = run.recipe
    place = run.place.file
    return {
        "version": __version__,
        "weights": weights_digest(run.place) if place.exists() else str(place),
        "tokenizer": run.tokenizer.digest,
        "contract": run.contract.digest if run.contract else "",
        "window": recipe.window.model_dump(mode="json"),
        "infer": recipe.infer.model_dump(mode="json", exclude={"batch", "compile"}),
        "precision": recipe.train.precision,
        "seed": seed,
    }


def _fingerprint(common: Mapping[str, object], job: Job) -> str:
    found = hashlib.sha256(json.dumps(common, sort_keys=True).encode())
    found.update(job.key.encode())
    for array in (job.first, job.actions):
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _place(folder: Path, job: Job) -> Path:
    return folder / job.row / f"{job.key}.npz"


def _kept(
    folder: Path | None, jobs: Sequence[Job], prints: Sequence[str]
) -> Iterable[tuple[int, Rolled]]:
    if folder is None:
        return
    for i, (job, fingerprint) in enumerate(zip(jobs, prints, strict=True)):
        try:
            content = io.BytesIO(_place(folder, job).read_bytes())
            with np.load(content, allow_pickle=False) as kept:
                if str(kept["fingerprint"]) == fingerprint:
                    yield i, Rolled(kept["frames"], kept["latents"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            continue  # not there, or damaged


def _keep(path: Path, one: Rolled, fingerprint: str) -> None:
    content = io.BytesIO()
    np.savez_compressed(
        content, frames=one.frames, latents=one.latents, fingerprint=np.array(fingerprint)
    )
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
