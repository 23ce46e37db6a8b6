"""Trackers, each for real and offline: what arrives there, and that a resumed run goes on there."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from cosmos_wds.config import dump
from cosmos_wds.errors import ConfigError
from cosmos_wds.train import extras, loop, trackers
from cosmos_wds.train.loop import train
from cosmos_wds.train.trackers import TRACKER, open_tracker
from tests.training import metrics, small_recipe, small_shards

KINDS = ("tensorboard", "wandb", "trackio")
WATCH = {"validate_every": 2, "windows": 4, "rollouts": 1, "rollout_frames": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"), val=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_one_line_and_nothing_is_written(shards, tmp_path, monkeypatch, kind):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", missing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / kind).mkdir()  # as W&B leaves one: not the package
    recipe = small_recipe(shards, tmp_path / "out", steps=2, watch={"tracker": kind})
    with pytest.raises(ConfigError) as refused:
        train(recipe)
    assert str(refused.value) == (
        f"[watch] tracker = \"{kind}\" needs: pip install 'cosmos-wds[{kind}]'"
    )
    assert not (tmp_path / "out").exists()


def test_no_tracker():
    assert open_tracker(small_recipe("-", "-", steps=2), 0) is None


def events(folder):
    """What TensorBoard would show: (step, value) of scalars by name, and steps of pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in tags["scalars"]
    }
    return scalars, {name: [e.step for e in found.Images(name)] for name in tags["images"]}


def test_tensorboard_hides_what_comes_again(tmp_path):
    recipe = small_recipe("-", tmp_path, steps=9, watch={"tracker": "tensorboard"})
    for first, last, value in ((0, 5, 1.0), (3, 6, 2.0)):
        tracker = open_tracker(recipe, first)
        for step in range(first + 1, last + 1):
            tracker.numbers(step, {"train/loss": value})
            tracker.pictures(step, {"validation/a": np.zeros((4, 6, 3), np.uint8)})
        tracker.close()
    scalars, pictures = events(recipe.run_folder / "tensorboard")
    assert scalars["train/loss"] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    assert pictures["validation/a"] == [1, 2, 3, 4, 5, 6]


def test_a_run_and_its_tensorboard_say_the_same(shards, tmp_path, monkeypatch):
    recipe = small_recipe(
        shards, tmp_path, steps=4, infer={"steps": 1}, watch={**WATCH, "tracker": "tensorboard"}
    )

    def stopping(run, batch, train_step=loop.train_step):
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(run, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "train_step", stopping)
        train(recipe)
    folder = train(recipe)
    scalars, pictures = events(folder / "tensorboard")
    lines = metrics(folder, times=True)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for key in lines[0].keys() - {"step", "mfu"}:
        wanted = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines]
        assert scalars[f"train/{key}"] == wanted
    assert "train/mfu" not in scalars, "unknown on a CPU"
    checked = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    for key in ("loss", "loss_ema", "listening_gap"):
        wanted = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in checked]
        assert scalars[f"validation/{key}"] == wanted
    for level, loss in checked[0]["loss_by_sigma"].items():
        assert scalars[f"validation/loss_by_sigma/{level}"][0] == (2, pytest.approx(loss, rel=1e-6))
    assert pictures == {"validation/val_0": [2, 4]}


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from cosmos_wds.recipe import load_recipe
from cosmos_wds.train.trackers import open_tracker

first, last = map(int, sys.argv[2:])
tracker = open_tracker(load_recipe(sys.argv[1]), first)
for step in range(first + 1, last + 1):
    tracker.numbers(step, {"train/loss": step + 0.25})
tracker.pictures(last, {"validation/a": np.full((4, 6, 3), last, np.uint8)})
tracker.close()
"""


def track(recipe, path, first, last, **variables):
    """Log steps in a process of its own, as each start of a run is one."""
    path.write_text(dump(recipe))
    dropped = {"WANDB_MODE", "WANDB_API_KEY", "TRACKIO_DIR"}
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(first), str(last)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**kept, "NETRC": str(path.parent / "none"), **variables},
    )


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    """Two starts are one run at W&B: both of its files carry the same id."""
    recipe = small_recipe("-", tmp_path, steps=9, watch={"tracker": "wandb"})
    for first, last in ((0, 3), (3, 5)):
        ended = track(recipe, tmp_path / "r.toml", first, last, WANDB_MODE="offline")
        assert ended.returncode == 0 and not ended.stdout, ended.stderr
    run_id = json.loads((recipe.run_folder / TRACKER).read_text())["wandb"]
    files = sorted((recipe.run_folder / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    one, two = (file.read_bytes() for file in files)
    for content in (one, two):
        for word in (run_id, recipe.project, recipe.group, recipe.name, "train/loss", "step"):
            assert word.encode() in content
    assert b"3.25" in one and b"5.25" in two and b"5.25" not in one
    pictures = (recipe.run_folder / "wandb").glob("offline-run-*/files/media/images/validation/*")
    assert len([*pictures]) == 2


@pytest.mark.slow
def test_wandb_without_a_login_is_one_line(tmp_path):
    recipe = small_recipe("-", tmp_path, steps=9, watch={"tracker": "wandb"})
    ended = track(recipe, tmp_path / "r.toml", 0, 1, WANDB_BASE_URL="http://127.0.0.1:9")
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "ConfigError: wandb: " in last and last.endswith("; or set WANDB_MODE=offline")


def test_a_damaged_id_is_told(tmp_path):
    (tmp_path / TRACKER).write_text("{}")
    with pytest.raises(ConfigError, match="holds no W&B id; delete it"):
        trackers._kept_id(tmp_path)
    (tmp_path / TRACKER).unlink()
    made = trackers._kept_id(tmp_path)
    assert len(made) == 8 and made == trackers._kept_id(tmp_path)


@pytest.mark.slow
def test_trackio(tmp_path):
    """Two starts are one run, in a database inside the run's folder."""
    recipe = small_recipe("-", tmp_path, steps=9, watch={"tracker": "trackio"})
    for first, last in ((0, 3), (3, 5)):
        ended = track(recipe, tmp_path / "r.toml", first, last)
        assert ended.returncode == 0 and not ended.stdout, ended.stderr
    (database,) = (recipe.run_folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("select run_id, run_name, step, metrics from metrics").fetchall()
    opened.close()
    assert len({row[0] for row in rows}) == 1 and {row[1] for row in rows} == {recipe.name}
    losses = [(row[2], json.loads(row[3]).get("train/loss")) for row in rows]
    assert [row for row in losses if row[1]] == [(i, i + 0.25) for i in range(1, 6)]
    pictures = [json.loads(row[3]).get("validation/a") for row in rows]
    files = [picture["file_path"] for picture in pictures if picture]
    assert len(files) == 2
    assert all((recipe.run_folder / "trackio" / "media" / file).is_file() for file in files)
