"""Who trains: this process, one of several that were started, or several that it starts."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe_train import TrainSettings
from cosmos_wds.train import launch
from cosmos_wds.train.checkpoint import latest_step
from cosmos_wds.train.launch import Start, plan_start, run_processes
from tests import forked
from tests.killing import wait_for
from tests.training import command, metrics, small_recipe, small_shards

ONE = {"processes": 0, "nodes": 1, "node_rank": 0, "rendezvous": ""}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No other starter's variables, and no GPU."""
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_without_gpus_this_process_trains():
    assert plan_start(TrainSettings(), **ONE) is None
    assert plan_start(TrainSettings(), **{**ONE, "processes": 1}) is None
    assert plan_start(TrainSettings(), **{**ONE, "processes": 3}) == Start(3)


def test_a_process_for_each_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert plan_start(TrainSettings(), **ONE) == Start(8)
    assert plan_start(TrainSettings(device="cpu"), **ONE) is None
    assert plan_start(TrainSettings(parallel="single"), **ONE) is None
    monkeypatch.setenv("RANK", "0")
    assert plan_start(TrainSettings(), **ONE) is None, "torchrun has started this one"


def test_several_machines(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    two = {**ONE, "nodes": 2, "node_rank": 1, "rendezvous": "node0:29500"}
    assert plan_start(TrainSettings(), **two) == Start(8, 2, 1, "node0:29500")
    for wrong in ("", "node0", "node0:port", "http://node0:1/x"):
        with pytest.raises(ConfigError, match="give each the same HOST:PORT"):
            plan_start(TrainSettings(), **{**two, "rendezvous": wrong})
    for wrong in ({"nodes": 0}, {"node_rank": 2}, {"node_rank": -1}, {"processes": -1}):
        with pytest.raises(ConfigError, match="nodes are counted from 1"):
            plan_start(TrainSettings(), **{**two, **wrong})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-08]", "gpu07"),
        ("gpu[7,12-13],other", "gpu7"),
        ("a-b,c-d", "a-b"),
        ("rack[1-2]-ib", "rack1-ib"),
        ("single", "single"),
    ],
)
def test_slurm_tasks_join_each_other(monkeypatch, nodes, first):
    tasks = {
        **{"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "9"},
        **{"SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456", "SLURM_STEP_NODELIST": nodes},
    }
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    assert plan_start(TrainSettings(), **ONE) is None
    found = {n: os.environ[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    assert found == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": first}
    assert 1024 < int(os.environ["MASTER_PORT"]) < 65536


def test_a_slurm_task_for_each_node_starts_its_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    tasks = {
        **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "1"},
        **{"SLURM_NODEID": "1", "SLURM_JOB_ID": "5", "SLURM_STEP_NODELIST": "n[1-2]"},
    }
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    assert plan_start(TrainSettings(), **ONE) == Start(4, 2, 1, "n1:20005")


def test_a_shell_inside_a_slurm_allocation_is_no_task(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert plan_start(TrainSettings(), **ONE) is None


def children(monkeypatch, script, count=2) -> int:
    """Exit code of `count` processes that each run a script in place of the command."""
    plain = subprocess.Popen

    def start(words, **options):
        return plain([sys.executable, "-c", textwrap.dedent(script)], **options)

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    monkeypatch.setattr(launch, "GRACE", 1.0)
    return run_processes(Start(count))


def test_places_and_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("SEEN", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
    script = f"""
        import os
        seen = " ".join(os.environ[n] for n in "{names}".split())
        open(os.path.join(os.environ["SEEN"], os.environ["RANK"]), "w").write(seen)
    """
    assert children(monkeypatch, script) == 0
    seen = [(tmp_path / rank).read_text().split() for rank in "01"]
    threads = str(max(1, os.cpu_count() // 2))
    assert [one[:5] + one[6:] for one in seen] == [
        [str(rank), "2", str(rank), "2", "127.0.0.1", threads] for rank in (0, 1)
    ]
    assert seen[0][5] == seen[1][5]


def test_a_failure_is_the_exit_code_and_ends_the_others(monkeypatch):
    script = """
        import os, sys, time
        if os.environ["RANK"] == "1":
            sys.exit(3)
        time.sleep(60)
    """
    assert children(monkeypatch, script) == 3


def test_a_killed_rank_is_named(monkeypatch, capfd):
    script = """
        import os, signal, time
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    """
    assert children(monkeypatch, script) == 1
    assert "error: rank 1 was ended by SIGKILL" in capfd.readouterr().err


DRILLED = """
    import os, signal
    from cosmos_wds.cli import main
    from cosmos_wds.train import loop, state

    what = os.environ["DRILL"]
    if os.environ["RANK"] == "1":
        train_step, write = loop.train_step, state.HuggingFaceStorageWriter.write_data

        def step(run, batch):
            if run.step == 5 and what == "rank":
                os.kill(os.getpid(), signal.SIGKILL)
            return train_step(run, batch)

        def write_data(self, plan, planner):
            if "000000004" in str(self.path):
                if what == "write":
                    os.kill(os.getpid(), signal.SIGKILL)
                if what == "full":
                    raise OSError(28, "No space left on device")
            return write(self, plan, planner)

        loop.train_step, state.HuggingFaceStorageWriter.write_data = step, write_data
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rank", "write", "full"])
def test_fault_drills(tmp_path, what):
    """A rank killed in a step, or while it writes a checkpoint, or whose disk is full.

    The run ends with one line, no checkpoint is lost, and the same command goes on to the end.
    """
    shards = small_shards(tmp_path / "data")
    changes = {"steps": 8, "save_every": 2, "parallel": "fsdp", "keep": 0}
    recipe = small_recipe(shards, tmp_path, **changes)
    words = [*command(recipe, tmp_path / "r.toml"), "--processes", "2"]
    drilled = forked.forking(words, textwrap.dedent(DRILLED))
    ended = forked.run(drilled, env={**os.environ, "DRILL": what})
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 1, ended.stderr
    folder = recipe.run_folder / "checkpoints"
    if what == "full":
        (error,) = errors
        assert "the checkpoint of step 4 could not be written" in error
        assert "that of step 2 is intact" in error
    else:
        assert "error: rank 1 was ended by SIGKILL" in errors[-1]
    assert latest_step(folder) in ((2, 4) if what == "rank" else (2,))
    again = forked.run(forked.forking(words))
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in metrics(recipe.run_folder)] == list(range(1, 9))
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_sigterm_reaches_all_processes_and_ends_with_0(tmp_path):
    recipe = small_recipe(small_shards(tmp_path / "data"), tmp_path, steps=100_000)
    words = [*command(recipe, tmp_path / "r.toml"), "--processes", "2"]
    log = recipe.run_folder / "metrics.jsonl"
    with forked.Process(forked.forking(words)) as run:
        wait_for(lambda: log.is_file() and log.read_bytes(), run)
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert "run the same command again to continue" in err and "Traceback" not in err
    assert latest_step(recipe.run_folder / "checkpoints") is not None
