"""One run, however it is spread: single, DDP, FSDP2, a mesh; real processes over gloo."""

import json
import signal
import subprocess
import sys

import pytest
import torch

from cosmos_wds.errors import ConfigError
from cosmos_wds.train.checkpoint import checkpoint_folder, latest_step, weights_file
from cosmos_wds.train.folder import METRICS
from cosmos_wds.train.loop import train
from cosmos_wds.train.run import load_run
from cosmos_wds.train.state import read_weights
from tests import forked
from tests.conftest import single_thread
from tests.killing import wait_for
from tests.training import command, metrics, small_recipe, small_shards

MODEL = {"blocks": 2, "width": 48, "heads": 3}
"""Sizes that neither two nor four ranks share out evenly."""

STEPS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(shards, tmp_path_factory):
    """Weights to start from, so that also loading into shards is in every comparison."""
    recipe = small_recipe(
        *(shards, tmp_path_factory.mktemp("base")), steps=3, model={**MODEL, "actions": "none"}
    )
    return one_thread(recipe)


def one_thread(recipe):
    with single_thread():
        return train(recipe)


def recipe_of(shards, base, output, *, steps=STEPS, **changes):
    model = {**MODEL, "base": str(base)}
    changes = {"batch": 8, "log_every": 1, **changes}
    return small_recipe(shards, output, steps=steps, model=model, **changes)


@pytest.fixture(scope="module")
def alone(shards, base, tmp_path_factory):
    return one_thread(recipe_of(shards, base, tmp_path_factory.mktemp("alone")))


def start(recipe, path, processes):
    """The command itself, in so many processes of this machine."""
    words = command(recipe, path)
    return forked.run(words) if processes == 1 else forked.run_ranks(words, processes)


def same_course(one, two, *, rel=1e-5):
    """The first step's loss bit for bit, all others to `rel`."""
    one, two = metrics(one), metrics(two)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert one[0]["loss"] == two[0]["loss"]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {"parallel": "ddp"}),
        (2, {"parallel": "ddp", "checkpointing": "selective", "accumulate": 2}),
        (2, {"parallel": "fsdp"}),
        (2, {"parallel": "fsdp", "checkpointing": "full", "accumulate": 2}),
        (4, {"parallel": "fsdp", "replicate": 2}),
        (4, {"parallel": "fsdp", "replicate": 2, "checkpointing": "full", "accumulate": 2}),
    ],
)
def test_however_it_is_spread(shards, base, alone, tmp_path, processes, changes):
    recipe = recipe_of(shards, base, tmp_path, **changes)
    ended = start(recipe, tmp_path / "r.toml", processes)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{recipe.run_folder}\n"
    same_course(alone, recipe.run_folder)
    same_weights(alone, recipe.run_folder)


def same_weights(one, two):
    for kind in ("reg", "ema"):
        mine, theirs = (
            read_weights(checkpoint_folder(f / "checkpoints", STEPS), kind) for f in (one, two)
        )
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"checkpointing": "full"}, {"checkpointing": "selective", "accumulate": 2}]
)
def test_checkpointing_alone(shards, base, alone, tmp_path, changes):
    folder = one_thread(recipe_of(shards, base, tmp_path, **changes))
    same_course(alone, folder)
    same_weights(alone, folder)


@pytest.mark.parametrize(
    ("processes", "changes"), [(1, {}), (2, {"parallel": "fsdp", "checkpointing": "full"})]
)
def test_compiled_blocks(shards, base, alone, tmp_path, processes, changes):
    recipe = recipe_of(shards, base, tmp_path, compile=True, **changes)
    ended = start(recipe, tmp_path / "r.toml", processes)
    assert ended.returncode == 0, ended.stderr
    one, two = metrics(alone), metrics(recipe.run_folder)
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


KILLED = """
import os, signal
from cosmos_wds.cli import main
from cosmos_wds.train import loop

train_step = loop.train_step

def step(run, batch):
    if run.step == 7 and run.ranks.rank == run.ranks.world - 1:
        run.saver.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(run, batch)

loop.train_step = step
main()
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [((2, {"parallel": "fsdp"}), (1, {})), ((1, {}), (4, {"parallel": "fsdp", "replicate": 2}))],
)
def test_a_killed_run_goes_on_on_another_number_of_ranks(shards, base, tmp_path, first, second):
    """10 steps == 4, kill -9 after the seventh, and 6 on another world."""
    whole = one_thread(recipe_of(shards, base, tmp_path / "whole", steps=10))
    processes, changes = first
    recipe = recipe_of(shards, base, tmp_path / "parts", steps=10, save_every=4, **changes)
    ended = start_killed(recipe, tmp_path / "r.toml", processes)
    assert ended.returncode != 0
    assert latest_step(recipe.run_folder / "checkpoints") == 4
    processes, changes = second
    recipe = recipe_of(shards, base, tmp_path / "parts", steps=10, save_every=4, **changes)
    ended = start(recipe, tmp_path / "r.toml", processes)
    assert ended.returncode == 0, ended.stderr
    assert "continuing after step 4 of 10" in ended.stderr
    same_course(whole, recipe.run_folder, rel=1e-6)


def start_killed(recipe, path, processes):
    """As `start`; the last rank kills itself after seven steps."""
    words = [sys.executable, "-c", KILLED, *command(recipe, path)[3:]]
    return forked.run_ranks(words, processes)


def test_a_sharded_run_is_rolled_out_like_any_other(shards, base, tmp_path):
    recipe = recipe_of(shards, base, tmp_path, steps=2, parallel="fsdp")
    ended = start(recipe, tmp_path / "r.toml", 2)
    assert ended.returncode == 0, ended.stderr
    folder = recipe.run_folder / "checkpoints"
    files = {path.name for path in folder.iterdir()}
    assert {weights_file(folder, 2, kind).name for kind in ("reg", "ema")} <= files
    shards_of_state = {path.name for path in checkpoint_folder(folder, 2).glob("*.safetensors")}
    assert len(shards_of_state) == 2, "each rank writes its part"
    run, direct = load_run(recipe.run_folder), load_run(checkpoint_folder(folder, 2))
    for (name, one), two in zip(
        run.denoiser.state_dict().items(), direct.denoiser.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_ranks_that_form_no_mesh(shards, base, tmp_path):
    recipe = recipe_of(shards, base, tmp_path, steps=2, parallel="fsdp", replicate=3)
    ended = start(recipe, tmp_path / "r.toml", 2)
    assert ended.returncode == 1
    assert ended.stderr.count("replicate = 3: 2 ranks cannot form so many equal groups") == 1
    assert "Traceback" not in ended.stderr


def test_ctrl_c_reaches_all_processes_and_saves(shards, base, tmp_path):
    recipe = recipe_of(shards, base, tmp_path, steps=100_000, parallel="fsdp")
    words = [*command(recipe, tmp_path / "r.toml"), "--processes", "2"]
    log = recipe.run_folder / METRICS
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        wait_for(lambda: log.is_file() and log.read_bytes(), run)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, ""), err
    assert err.count("run the same command again to continue") == 1 and "Traceback" not in err
    step = latest_step(recipe.run_folder / "checkpoints")
    assert step == json.loads(log.read_text().splitlines()[-1])["step"]


def test_a_mesh_needs_fsdp(shards, tmp_path):
    with pytest.raises(ConfigError, match='replicate = 2: is for parallel = "fsdp"'):
        small_recipe(shards, tmp_path, steps=2, replicate=2)
