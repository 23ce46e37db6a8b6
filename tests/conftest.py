"""Fixtures that several tests share: a tiny data set in the Bridge layout, with real videos."""

import json
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_wds.data.video import write_video
from tests.object_store import s3_bucket

# Each process that a test's code spawns would import pytest, the program that it comes from.
sys.modules["__main__"].__spec__ = None
vars(sys.modules["__main__"]).pop("__file__", None)

# A shell starts what runs in the background deaf to Ctrl-C, and so are those that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def many_cores(monkeypatch):
    """As many reading threads as a recipe asks for, also on a machine of two cores."""
    monkeypatch.setattr("cosmos_wds.data.threads.cores", lambda: 9)


@contextmanager
def single_thread():
    """torch on one thread: networks of tests gain nothing from more, and lose on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread():
    """For a whole file: `pytestmark = pytest.mark.usefixtures("one_thread")`."""
    with single_thread():
        yield


def moving_frames(frames, height, width, seed=0):
    """Blocks of colour that drift over a gradient, (frames, height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    pictures = np.empty((frames, height, width, 3), np.uint8)
    pictures[:] = np.stack([rows * 200 // height, columns * 200 // width, rows * 0 + 90], -1)
    size = max(4, min(height, width) // 4)
    for color in rng.integers(60, 255, (3, 3)):
        start, step = rng.integers(0, (height, width)), rng.integers(1, 4, 2)
        for t in range(frames):
            y, x = (start + t * step) % (height - size, width - size)
            pictures[t, y : y + size, x : x + size] = color
    return pictures


def tiny_states(frames, seed=0):
    """A smooth random path of poses with an opening and closing gripper, (frames, 7) float64."""
    rng = np.random.default_rng((seed, 1))
    steps = rng.normal(0, [0.01, 0.01, 0.01, 0.02, 0.02, 0.03], (frames, 6))
    pose = np.cumsum(steps, axis=0) + [0.4, 0.0, 0.2, 0.0, 0.0, 0.0]
    return np.column_stack([pose, 0.5 + 0.5 * np.cos(np.arange(frames))])


def write_episode(
    root, split, number, *, frames=8, height=32, width=48, cameras=1, grain=0, **changes
):
    """One episode of the Bridge layout; `changes` replace keys of the annotation (None removes).

    `grain` adds noise, which makes videos large.
    """
    root, seed = Path(root), int(number) if str(number).isdigit() else 0
    seed += 1000 * sum(split.encode())
    state = tiny_states(frames, seed)
    videos = []
    for camera in range(cameras):
        path = f"videos/{split}/{number}/rgb{camera or ''}.mp4"
        pictures = moving_frames(frames, height, width, seed + camera)
        if grain:
            noise = np.random.default_rng(seed).integers(0, grain, pictures.shape, np.uint8)
            pictures = np.minimum(pictures, 255 - grain) + noise
        write_video(root / path, pictures, fps=5)
        videos.append({"video_path": path})
    annotation = {
        "task": "robot_trajectory_prediction",
        "texts": [f"move block {number}"],
        "videos": videos,
        "action": np.round(np.diff(state, axis=0), 6).tolist(),
        "state": np.round(state, 6).tolist(),
        "continuous_gripper_state": np.round(state[:, 6], 6).tolist(),
        "episode_id": f"{split}-{number}",
    }
    annotation = {k: v for k, v in (annotation | changes).items() if v is not None}
    file = root / "annotation" / split / f"{number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(annotation))
    return file


@pytest.fixture(scope="session")
def tiny_bridge():
    """A function (root, train=4, val=2, frames=8, height=32, width=48) -> root that makes a set."""

    def make(root, train=4, val=2, frames=8, height=32, width=48, cameras=1):
        for split, count in (("train", train), ("val", val)):
            for number in range(count):
                write_episode(
                    root, split, number, frames=frames, height=height, width=width, cameras=cameras
                )
        return Path(root)

    return make


@pytest.fixture(scope="session")
def bucket():
    """s3://BUCKET on a server of this machine; give each test a prefix of its own."""
    with s3_bucket() as url:
        yield url
