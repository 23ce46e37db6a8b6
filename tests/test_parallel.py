"""Ranks: shares of the batch, devices, agreement; real processes give equal numbers."""

import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import cosmos_wds
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.recipe import TrainSettings
from cosmos_wds.train.checkpoint import latest_step
from cosmos_wds.train.distribute import distributed, gradients_stay
from cosmos_wds.train.loop import train
from cosmos_wds.train.parallel import (
    Ranks,
    choose_device,
    choose_precision,
    cpu_computes_bfloat16,
    join_ranks,
    lanes_of,
)
from tests import forked
from tests.conftest import single_thread
from tests.training import command, metrics, small_recipe, small_shards

CPU = torch.device("cpu")


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_lanes_are_shared_out_in_order(world):
    settings = TrainSettings(batch=16, accumulate=2)
    lanes = [lanes_of(Ranks(rank, world, CPU), settings) for rank in range(world)]
    assert [lane for share in lanes for lane in share] == list(range(16))
    assert len({len(share) for share in lanes}) == 1


def test_a_batch_that_cannot_be_shared_out():
    with pytest.raises(ConfigError, match=r"batch = 16: 3 ranks .* multiple of 3; nearest is 15"):
        lanes_of(Ranks(0, 3, CPU), TrainSettings(batch=16))
    with pytest.raises(ConfigError, match=r"accumulate = 4 need a multiple of 8; nearest is 8"):
        lanes_of(Ranks(0, 2, CPU), TrainSettings(batch=4, accumulate=4))


def test_device_and_precision():
    assert choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            choose_device("cuda")
    able = cpu_computes_bfloat16()
    assert choose_precision("auto", CPU) == (torch.bfloat16 if able else torch.float32)
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


def test_a_cpu_that_cannot_tell_takes_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", CPU) == torch.float32


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU: 2 visible"):
        choose_device("auto", 2)


def test_alone_nothing_is_sent():
    with join_ranks(TrainSettings(device="cpu")) as ranks:
        assert (ranks.rank, ranks.world) == (0, 1)
        assert ranks.together(lambda: 5) == 5
        assert ranks.total(1.5) == 1.5
        assert ranks.gather("a") == ["a"]
        with pytest.raises(DataError):
            ranks.on_first(lambda: (_ for _ in ()).throw(DataError("bad")))
        model = torch.nn.Linear(2, 2)
        with distributed(model, ranks) as wrapped, gradients_stay(wrapped):
            assert wrapped is model


def test_start_and_recipe_disagree(monkeypatch):
    with (
        pytest.raises(ConfigError, match="--processes N"),
        join_ranks(TrainSettings(parallel="ddp")),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match="but 2 processes were started"),
        join_ranks(TrainSettings(parallel="single")),
    ):
        pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    with single_thread():
        folder = train(small_recipe(shards, tmp_path_factory.mktemp("alone"), steps=20))
    return folder


def torchrun(*arguments, ranks=2):
    """Start `ranks` processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(ranks)]
    paths = [str(Path(cosmos_wds.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return forked.run([*launcher, *arguments], env={**environment, "OMP_NUM_THREADS": "1"})


def train_arguments(recipe, path) -> list[str]:
    return command(recipe, path)[1:]


def close(one, two) -> None:
    """The first loss to 1e-6, every number to 1e-5."""
    assert [a["step"] for a in one] == [b["step"] for b in two]
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-6)
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_accumulation_and_another_world_size(shards, alone, tmp_path):
    """Two ranks with two micro-batches each, ended by SIGTERM; one process does the rest."""
    recipe = small_recipe(shards, tmp_path, steps=20, accumulate=2)
    script = tmp_path / "stopped.py"
    script.write_text(textwrap.dedent(STOPPED))
    arguments = train_arguments(recipe, tmp_path / "r.toml")[2:]
    ended = torchrun(script, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("stopped after step 7; run the same command again") == 1
    assert latest_step(recipe.run_folder / "checkpoints") == 7
    train(small_recipe(shards, tmp_path, steps=20))
    close(metrics(alone), metrics(recipe.run_folder))


STOPPED = """
    import os, signal
    from cosmos_wds.cli import main
    from cosmos_wds.train import loop

    train_step = loop.train_step

    def step(run, batch):
        lr = train_step(run, batch)
        if run.step == 7 and run.ranks.rank == 1:  # one rank alone is told; all stop there
            os.kill(os.getpid(), signal.SIGTERM)
        return lr

    loop.train_step = step
    main()
"""

BROKEN = """
    import os, signal, sys
    from cosmos_wds.cli import main
    from cosmos_wds.data.loader import Loader
    from cosmos_wds.errors import DataError

    following = Loader._next

    def broken(self):
        if self.step == 3 and os.environ["RANK"] == "1":
            raise DataError("train-000000.tar: train_7.mp4: does not decode")
        return following(self)

    Loader._next = broken
    main()
"""


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all_with_one_line(shards, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=20, save_every=2)
    script = tmp_path / "broken.py"
    script.write_text(textwrap.dedent(BROKEN))
    ended = torchrun(script, *train_arguments(recipe, tmp_path / "r.toml")[2:])
    assert ended.returncode == 1
    assert ended.stderr.count("error: train-000000.tar: train_7.mp4: does not decode") == 1
    ours = ended.stderr.split("ChildFailedError")[0]
    assert "loop.py" not in ours, ours
    assert "exitcode  : 1 " in ended.stderr and "SIGABRT" not in ended.stderr
    assert latest_step(recipe.run_folder / "checkpoints") == 2


@pytest.mark.slow
def test_wrong_input_under_torchrun_is_told_once(shards, tmp_path):
    recipe = small_recipe(shards, tmp_path / "out", steps=4, batch=3)
    ended = torchrun(*train_arguments(recipe, tmp_path / "r.toml"))
    assert ended.returncode == 1
    assert ended.stderr.count("[train] batch = 3: 2 ranks") == 1
    assert not (tmp_path / "out").exists()
