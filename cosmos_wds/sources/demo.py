"""The embedded data set `demo`: episodes of the little scene in the Bridge (IRASim) layout.

An episode depends on the seed, its split and its number, never on the order in which episodes are
made. Every file is complete under its name or not there, and the annotation comes last: running
again continues after any interruption and ends with the same bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cosmos_wds.config import write_text
from cosmos_wds.data.video import write_video
from cosmos_wds.data.workers import cores, ctrl_c_blocked
from cosmos_wds.errors import DataError
from cosmos_wds.sources.scene import FPS, SceneEpisode, make_episode

VERSION = 1  # of the generator: raise it whenever the same settings give other bytes
SETTINGS_FILE = "demo.json"
LEFTOVER = ".*.tmp"  # what a killed run may leave behind
DECIMALS = 6
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Settings:
    """All that the content of a demo data set depends on; kept in its `demo.json`."""

    seed: int
    train: int
    val: int
    height: int
    width: int
    version: int = VERSION


@dataclass(frozen=True)
class _Job:
    """One episode that is still to be made."""

    root: Path
    settings: Settings
    split: str
    number: int

    @property
    def annotation(self) -> Path:
        return self.root / "annotation" / self.split / f"{self.number}.json"


def generate(
    root: Path,
    *,
    seed: int,
    train: int,
    val: int,
    height: int = 96,
    width: int = 128,
    workers: int | None = None,
) -> Iterator[str]:
    """Make what is missing of a demo data set; yields "train/0", ... as each episode is there.

    Settings are checked at once, before the first episode is asked for. `workers` processes share
    the work (all cores by default; 1 works in this process) and do not change the result.
    """
    settings = Settings(seed, train, val, height, width)
    _claim(root, settings)
    for leftover in root.rglob(LEFTOVER):
        leftover.unlink()
    jobs = [_Job(root, settings, "train", number) for number in range(train)]
    jobs += [_Job(root, settings, "val", number) for number in range(train, train + val)]
    return _work(jobs, cores() if workers is None else workers)


def demo_episode(settings: Settings, split: str, number: int) -> SceneEpisode:
    """The episode with this number, straight from the generator."""
    seed = (settings.seed, SPLITS.index(split), number)
    return make_episode(seed, height=settings.height, width=settings.width)


def _claim(root: Path, settings: Settings) -> None:
    """Make the folder ours, or refuse one that was made with other settings."""
    if settings.height % 2 or settings.width % 2:
        raise DataError(f"demo: size {settings.height}x{settings.width}: video needs even numbers")
    path, wanted = root / SETTINGS_FILE, asdict(settings)
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: not readable as JSON; delete {root} and run again") from error
        if found != wanted:
            keys = [key for key in wanted if found.get(key) != wanted[key]] or sorted(found)
            change = ", ".join(f"{key} {found.get(key)} (asked: {wanted.get(key)})" for key in keys)
            raise DataError(f"{root} was made with other settings: {change}; choose another folder")
        return
    if root.exists() and any(not entry.match(LEFTOVER) for entry in root.iterdir()):
        raise DataError(f"{root} holds files but no {SETTINGS_FILE}; choose an empty folder")
    write_text(path, json.dumps(wanted, indent=1) + "\n")


def _work(jobs: list[_Job], workers: int) -> Iterator[str]:
    missing = []
    for job in jobs:
        if job.annotation.exists():
            yield _key(job)
        else:
            missing.append(job)
    if workers > 1 and len(missing) > 1:
        yield from _work_in_pool(missing, min(workers, len(missing)))
    else:
        for job in missing:
            yield _make(job)


def _work_in_pool(jobs: list[_Job], workers: int) -> Iterator[str]:
    """Fresh processes, as the caller may hold threads; few jobs wait, so stopping is quick."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    running: deque[Future[str]] = deque()
    try:
        for job in jobs:
            with ctrl_c_blocked():
                running.append(pool.submit(_make, job))
            if len(running) >= 4 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave stopping to the parent: on Ctrl-C finish the episode, but never outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _key(job: _Job) -> str:
    return f"{job.split}/{job.number}"


def _make(job: _Job) -> str:
    """Write one episode: the video, then the annotation that declares it complete."""
    episode = demo_episode(job.settings, job.split, job.number)
    video = Path("videos") / job.split / str(job.number) / "rgb.mp4"
    target = job.root / video
    write_video(target, episode.frames, fps=FPS)
    _sync(target)
    annotation = _annotation(episode, video.as_posix(), str(job.number))
    write_text(job.annotation, json.dumps(annotation) + "\n")
    return _key(job)


def _annotation(episode: SceneEpisode, video: str, episode_id: str) -> dict[str, object]:
    """The keys of a Bridge annotation; `action` is the pose difference in the base frame."""
    state = episode.state.round(DECIMALS)
    action = np.column_stack([np.diff(state[:, :6], axis=0), episode.command[1:]])
    return {
        "task": "robot_trajectory_prediction",
        "texts": [episode.text],
        "videos": [{"video_path": video}],
        "action": (action.round(DECIMALS) + 0.0).tolist(),
        "state": (state + 0.0).tolist(),
        "continuous_gripper_state": (state[:, 6] + 0.0).tolist(),
        "episode_id": episode_id,
    }


def _sync(path: Path) -> None:
    """Have a file on the disk before the annotation that vouches for it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
