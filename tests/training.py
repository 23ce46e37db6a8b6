"""What the tests of training share: small shards, small recipes, and when two runs are the same."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from cosmos_wds.config import dump
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.recipe import Recipe, recipe_from_table
from cosmos_wds.train import loop
from cosmos_wds.train.checkpoint import checkpoint_folder
from cosmos_wds.train.folder import METRICS
from cosmos_wds.train.parallel import Ranks
from cosmos_wds.train.state import held_names, read_facts, restore_tensors
from tests.conftest import write_episode

TIMES = {
    *("samples_per_second", "data_seconds", "compute_seconds"),
    *("memory_bytes", "flops_per_second", "mfu"),
}
SECTIONS = {"data", "window", "model", "tokenizer", "diffusion", "infer", "lora", "watch"}
ALONE = Ranks(0, 1, torch.device("cpu"))


def small_shards(folder: Path, episodes: int = 4, scale=None, val: int = 1) -> Path:
    """`episodes` train and `val` val episodes of 8 frames, sharded."""
    for split, count in (("train", episodes), ("val", val)):
        for number in range(count):
            write_episode(folder / "raw", split, number)
    table = {
        "source": {"path": str(folder / "raw"), "splits": ["train", "val"]},
        "shards": {"path": str(folder / "shards"), "workers": 1},
        "actions": {"scale": scale} if scale else {},
    }
    shard(Pipeline.model_validate(table))
    return folder / "shards"


def small_recipe(shards: Path, output: Path, *, steps: int, name="run", **changes) -> Recipe:
    """A recipe of a very small model; a change is a section's dictionary or a key of [train]."""
    sections = {key: changes.pop(key, {}) for key in SECTIONS}
    train = {"precision": "float32", "warmup": 1, "batch": 4, "lr": 1e-3, **changes}
    train = {"save_every": 100, "log_every": 1, **train}
    table = {
        "output": str(output),
        "name": name,
        "data": {"shards": str(shards), "workers": 0, **sections["data"]},
        "window": {"height": 32, "width": 48, **sections["window"]},
        "model": {
            **{"width": 32, "heads": 2, "blocks": 1, "adaln_rank": 4, "text_width": 0},
            **{"max_frames": 4, "max_height": 4, "max_width": 6},
            **sections["model"],
        },
        "tokenizer": {"kind": "patch", "fit_frames": 32, **sections["tokenizer"]},
        "diffusion": sections["diffusion"],
        **{name: sections[name] for name in ("infer", "lora", "watch")},
        "train": {"steps": steps, **train},
    }
    return recipe_from_table(table, origin="test")


def command(recipe: Recipe, path: Path) -> list[str]:
    """The command line that trains a recipe, which it writes to `path`."""
    path.write_text(dump(recipe))
    return [sys.executable, "-m", "cosmos_wds", "train", str(path)]


def metrics(folder: Path, *, times: bool = False) -> list[dict]:
    """The lines of metrics.jsonl, without what differs from run to run."""
    lines = map(json.loads, (folder / METRICS).read_text().splitlines())
    return [{k: v for k, v in line.items() if times or k not in TIMES} for line in lines]


def same(one: Path, two: Path, *, step: int, with_metrics: bool = True) -> None:
    """Assert that two runs hold the same state after `step` steps, bit for bit."""
    a, b = (state_of(folder, step) for folder in (one, two))
    assert_equal(a, b, "state")
    if with_metrics:
        assert metrics(one) == metrics(two)


def stop_after(monkeypatch, step: int, signal_number=signal.SIGINT) -> None:
    """Send this process a signal when `step` steps are done."""
    original = loop.train_step

    def stopping(run, batch):
        lr = original(run, batch)
        if run.step == step:
            os.kill(os.getpid(), signal_number)
        return lr

    monkeypatch.setattr(loop, "train_step", stopping)


def state_of(folder: Path, step: int) -> dict:
    """All that the checkpoint of a step holds: tensors by name, and what run.json says."""
    held = checkpoint_folder(folder / "checkpoints", step)
    blank = {n: torch.empty(shape, dtype=kind) for n, (shape, kind) in held_names(held).items()}
    restore_tensors(held, blank, ALONE)
    return {**blank, **read_facts(held)}


def assert_equal(a, b, where: str) -> None:
    """Equality of nested dictionaries with tensors."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
