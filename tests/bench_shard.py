# ruff: noqa: T201 (it prints what it measures)
"""How fast are shards written, measured against `cp -r` of the same files in the same run?

    python -m tests.bench_shard FOLDER [--megabytes 2000] [--video-kilobytes 250]
    python -m tests.bench_shard FOLDER --flat

Makes recordings of small generated videos in FOLDER once, then copies and shards them in turn, both
with a cold cache where it may be dropped (root, Linux). `synced` counts until the disk has it all.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cosmos_wds.data.video import encode
from tests.conftest import moving_frames, tiny_states

FRAMES = 35


def make(raw, episodes, kilobytes):
    """Recordings with different annotations and videos of about this size.

    Each video is one of eight, made larger by a box that players pass over, with its number in it.
    """
    if (raw / "done").exists():
        return
    videos = [encode(moving_frames(FRAMES, 96, 128, seed=i), crf=20) for i in range(8)]
    filling = np.random.default_rng(0).bytes(1000 * kilobytes)
    (raw / "annotation/train").mkdir(parents=True)
    for number in range(episodes):
        folder = raw / f"videos/train/{number}"
        folder.mkdir(parents=True)
        video = videos[number % 8]
        free = f"{number:08d}".encode() + filling[len(video) :]
        content = video + (8 + len(free)).to_bytes(4, "big") + b"free" + free
        (folder / "rgb.mp4").write_bytes(content)
        states = tiny_states(FRAMES, seed=number)
        table = {
            "episode_id": str(number),
            "texts": ["push the block"],
            "videos": [{"video_path": f"videos/train/{number}/rgb.mp4"}],
            "state": states.tolist(),
            "continuous_gripper_state": states[:, 6].tolist(),
            "action": states[1:].tolist(),
        }
        (raw / f"annotation/train/{number}.json").write_text(json.dumps(table))
    (raw / "done").touch()


def timed(command):
    """Seconds of a command from a cold cache: until it ended, and until the disk has it all."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        print("the cache is not dropped: not root", file=sys.stderr)
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    ended = time.monotonic() - began
    os.sync()
    return ended, time.monotonic() - began


def flat(folder):
    """CPU milliseconds an episode of sets that grow: they should not."""
    for episodes in (1_000, 5_000, 25_000):
        raw, shards = folder / f"raw{episodes}", folder / f"shards{episodes}"
        make(raw, episodes, 5)
        shutil.rmtree(shards, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "cosmos_wds", "shard", raw, shards, "--pipeline", "small"]
        seconds, _ = timed(command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{episodes} episodes: {seconds:.1f} s, {1e3 * cpu / episodes:.2f} CPU ms an episode; "
            f"largest process so far {after.ru_maxrss / 1e3:.0f} MB"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--video-kilobytes", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flat", action="store_true", help="the cost from 1 k to 25 k")
    given = parser.parse_args()
    if given.flat:
        flat(given.folder)
        return
    raw, copy, shards = (given.folder / name for name in ("raw", "copy", "shards"))
    make(raw, int(given.megabytes * 1e3 / given.video_kilobytes), given.video_kilobytes)
    files = [p for p in raw.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    print(f"{len(files) // 2} episodes, {size / 1e6:.0f} MB")
    for _ in range(given.repeats):
        for folder in (copy, shards):
            shutil.rmtree(folder, ignore_errors=True)
        copied = timed(["cp", "-r", raw, copy])
        written = timed(
            [sys.executable, "-m", "cosmos_wds", "shard", raw, shards, "--pipeline", "small"]
        )
        ratios = [c / w for c, w in zip(copied, written, strict=True)]
        print(
            f"cp {copied[0]:.2f} s (synced {copied[1]:.2f}), shard {written[0]:.2f} s (synced "
            f"{written[1]:.2f}): {ratios[0]:.0%} of cp's speed, synced {ratios[1]:.0%}"
        )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(f"largest process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
