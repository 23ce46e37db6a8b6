"""The command line: help with examples, exit codes, one message for a mistake, Ctrl-C, speed."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cosmos_wds import __version__, cli
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import load_recipe
from tests.commands import ROOT, check, environment, run
from tests.conftest import write_episode
from tests.forked import Process
from tests.killing import children, wait_for

COMMANDS = ("download", "shard", "train", "infer", "play", "demo")
TINY = [
    part
    for change in (
        *("model.size=cosmos-tiny", "model.width=48", "model.heads=2", "model.blocks=1"),
        *(
            "model.base=",
            "tokenizer.kind=patch",
            "tokenizer.path=",
            "window.height=32",
            "window.width=48",
        ),
        *("train.steps=2", "train.warmup=1", "train.batch=4", "data.workers=0", "infer.steps=2"),
        *("watch.validate_every=0", "infer.compile=false"),
    )
    for part in ("--set", change)
]
"""The bridge recipe, brought down to what trains in a second."""


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """A function (*words) -> (exit code, stdout, stderr), run in this process, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["cosmos-wds", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def fresh(*words, cwd):
    """What cosmos-wds prints in a Python that has imported nothing before."""
    line = [sys.executable, "-m", "cosmos_wds", *words]
    return subprocess.run(
        line, cwd=cwd, env=environment(), stdout=subprocess.PIPE, check=True, text=True
    ).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_work(command, tmp_path):
    told = run(command, "--help", cwd=tmp_path, COLUMNS="200")
    assert (told.returncode, told.stderr) == (0, "")
    lines = [line.strip() for line in told.stdout.splitlines()]
    begin = next(i for i, line in enumerate(lines) if line in ("Example:", "Examples:"))
    examples = [line for line in lines[begin + 1 :] if line]
    assert examples
    assert any(line.startswith(f"cosmos-wds {command}") for line in examples)
    for line in examples:
        assert len(line) <= 78, "does not fit a terminal of 80"
        check(line)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(command, tmp_path):
    told = run(command, "-h", cwd=tmp_path, COLUMNS="200").stdout
    for line in re.findall(r"^│ +(?:--|\w).*│$", told, re.MULTILINE):
        assert len(re.split(r" {2,}", line.strip("│ "))) >= 2, line


def test_the_first_help_names_every_command(tmp_path):
    told = run("--help", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert all(f"│ {command} " in told.stdout for command in COMMANDS)
    assert "cosmos-wds demo" in told.stdout


def test_help_is_there_at_once(tmp_path):
    """Under 0.3 s of this machine's time, the best of several.

    Time on the processor: --help waits for nothing, so it is what a clock shows on an idle machine.
    """
    best = float("inf")
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        fresh("--help", cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, sum(after[:2]) - sum(before[:2]))  # user and system
        if best < 0.3:
            return
    pytest.fail(f"--help took {best:.2f} s")


def test_version(call):
    assert call("--version") == (0, f"cosmos-wds {__version__}\n", "")


def test_misused_options_end_with_2(call):
    assert call("infer", "--nope")[0] == 2
    assert call("nope")[0] == 2
    assert call("infer", "--steps", "many")[0] == 2


def test_a_typo_is_told_before_torch_is_loaded(tmp_path):
    code = """
import sys
from cosmos_wds.cli import main
sys.argv = ["cosmos-wds", "train", "bridge", "--set", "train.stepz=1"]
try:
    main()
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert told.returncode == 1
    assert told.stderr.splitlines()[1:] == ["  [train] stepz: unknown key; did you mean steps?"]


MISTAKES = {
    "no such recipe": (["train", "bridg"], "did you mean bridge?"),
    "no such pipeline": (["download", "bridje"], "did you mean bridge?"),
    "a misspelt key": (["train", "--set", "train.stepz=1"], "did you mean steps?"),
    "a misspelt section": (["shard", "--set", "action.fps=4"], "did you mean actions?"),
    "a key without value": (["demo", "--set", "train.steps"], "write it as section.key=value"),
    "a value that cannot be": (["train", "--set", "window.height=250"], "nearest is 248"),
    "TOML that is none": (["train", "broken.toml"], "not valid TOML"),
    "a misspelt key in a file": (["train", "typo.toml"], "did you mean height?"),
    "a folder as recipe": (["train", "."], "no such file"),
    "no recordings": (["shard", "nowhere", "shards"], "nowhere: no such folder"),
    "one folder of two": (["shard", "nowhere"], "or neither of the two"),
    "no shards": (["train", "--set", "data.shards=nowhere"], "nowhere: no such folder"),
    "a file as source": (["shard", "typo.toml", "shards"], "typo.toml"),
    "nothing to fetch": (["download", "--set", "download.url="], "there is nothing to fetch"),
    "a strange address": (
        ["download", "--set", "download.url=ftp://x/y.tar", "--set", "download.weights=[]"],
        "not an http(s) address",
    ),
    "no checkpoint": (["infer", "nowhere", "--npy", "actions.npy"], "no such run"),
    "the default before download": (["infer"], "run `cosmos-wds download bridge`"),
    "no actions": (["infer", "nowhere"], "which actions?"),
    "actions twice": (["infer", "--npy", "a.npy", "--script", "x+1"], "give one of them"),
    "no number as seed": (["infer", "x", "--npy", "a.npy", "--seed", "many"], "whole numbers"),
    "shards without episodes": (["infer", "x", "--npy", "a.npy", "--shards", "s"], "of which"),
    "a log and a seed": (["infer", "--replay", "a.json", "--seed", "1"], "are the log's"),
    "a log and a picture": (["infer", "--replay", "a.json", "--image", "a.png"], "give one of"),
    "no log": (["infer", "--replay", "a.json"], "a.json: no such action log"),
    "first frame twice": (["infer", "--image", "a.png", "--video", "b.mp4"], "give one of them"),
    "an output that is no video": (
        ["infer", "nowhere", "--npy", "actions.npy", "--output", "x.gif"],
        "the output is an .mp4 file",
    ),
    "a size that no codec takes": (
        ["infer", "nowhere", "--npy", "actions.npy", "--height", "255"],
        "even sizes",
    ),
}


@pytest.mark.parametrize("words, told", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_message(call, tmp_path, words, told):
    (tmp_path / "broken.toml").write_text("[train\nsteps = 1")
    (tmp_path / "typo.toml").write_text("[window]\nheigth = 256")
    np.save(tmp_path / "actions.npy", np.zeros((3, 7)))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(*words)
    assert (code, out) == (1, "")
    assert told in err
    assert err.count("error: ") == 1 and "Traceback" not in err
    made = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    assert made <= {"outputs"}, "nothing may be left half-written"


@pytest.mark.parametrize("command", ["shard", "train", "infer", "demo", "download"])
def test_an_output_that_cannot_be_written(call, tmp_path, command):
    """A file stands where the folder should be; root, which CI is, may write everywhere else."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    write_episode(tmp_path / "raw", "train", 0)
    np.save(tmp_path / "actions.npy", np.zeros((3, 7)))
    if command == "train":
        assert call("shard", "raw", "shards", "--workers", 1)[0] == 0
    words = {
        "shard": ["shard", "raw", "file/shards"],
        "train": ["train", *TINY, "--set", "data.shards=shards", "--set", "output=file"],
        "infer": ["infer", "x", "--npy", "actions.npy", "--output", "file/x.mp4"],
        "demo": ["demo", "--output", "file/demo"],
        "download": ["download", "demo", "--set", "source.path=file/raw"],
    }[command]
    code, _, err = call(*words)
    assert code == 1 and err.count("error: ") == 1 and "file" in err
    assert blocked.read_text() == "in the way"


def test_bad_recordings(call, tmp_path):
    write_episode(tmp_path / "raw", "train", 0)
    write_episode(tmp_path / "raw", "train", 1).write_text("{not json")
    write_episode(tmp_path / "raw", "train", 2)
    cut = tmp_path / "raw" / "videos" / "train" / "2" / "rgb.mp4"
    cut.write_bytes(cut.read_bytes()[:-400])
    code, out, err = call("shard", "raw", "strict", "--strict", "--workers", 1)
    assert (code, out) == (1, "") and "not JSON" in err
    assert not (tmp_path / "strict" / "index.json").exists()
    code, out, err = call("shard", "raw", "shards", "--workers", 1)
    assert (code, out) == (0, "shards\n")
    rejected = (tmp_path / "shards" / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == 2 and "annotation/train/1.json" in rejected[0]
    assert json.loads(rejected[1])["reason"]


def test_shard_takes_folders_with_any_name(call, tmp_path):
    write_episode(tmp_path / "my [raw] = 7 ü", "train", 0)
    code, out, _ = call("shard", "my [raw] = 7 ü", "true", "--workers", 1)
    assert (code, out) == (0, "true\n")
    assert (tmp_path / "true" / "index.json").is_file()


def test_download_makes_the_demo_data_once(call, tmp_path):
    words = ["download", "demo", "--set", "generate.train=2", "--set", "generate.val=1"]
    assert call(*words)[:2] == (0, "data/demo/raw\n")
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "data" / "demo" / "raw").rglob("*")}
    assert call(*words)[0] == 0
    assert made == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "data" / "demo" / "raw").rglob("*")
    }


@pytest.mark.parametrize(
    "error, told",
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b.tar"), "a/b.tar: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "c"), "c: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left"),
        (DataError("two\n  lines"), "error: two\n  lines\n"),
    ],
)
def test_what_escapes_from_below_is_one_message(call, monkeypatch, error, told):
    monkeypatch.setattr("cosmos_wds.prepare.shard", lambda *_, **__: (_ for _ in ()).throw(error))
    code, out, err = call("shard")
    assert (code, out) == (1, "")
    assert told in err and err.startswith("error: ")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyError("x"), AssertionError()])
def test_a_fault_of_ours_keeps_its_traceback(call, monkeypatch, error):
    monkeypatch.setattr("cosmos_wds.prepare.shard", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        call("shard")


def test_a_fault_of_ours_is_shown_plainly(tmp_path):
    """No boxes, no values of variables: a traceback that can be sent in a report."""
    code = """
import sys, cosmos_wds.prepare
from cosmos_wds.cli import main
def shard(*_, **__): raise KeyError("unheard of")
cosmos_wds.prepare.shard = shard
sys.argv = ["cosmos-wds", "shard"]
main()
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert told.returncode == 1
    assert told.stderr.startswith("Traceback (most recent call last):")
    assert told.stderr.rstrip().endswith("KeyError: 'unheard of'")
    assert "│" not in told.stderr


def test_under_torchrun_rank_zero_alone_speaks(tmp_path):
    loud = run("train", "bridg", cwd=tmp_path, RANK="0", WORLD_SIZE="2")
    quiet = run("train", "bridg", cwd=tmp_path, RANK="1", WORLD_SIZE="2")
    assert loud.returncode == quiet.returncode == 1
    assert "did you mean bridge?" in loud.stderr
    assert quiet.stdout == quiet.stderr == ""


def test_a_reader_that_goes_away_is_no_fault(tmp_path):
    line = f"'{sys.executable}' -m cosmos_wds --help | head -n 1"
    told = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert told.stderr == ""


@contextmanager
def started(*words, cwd):
    """A cosmos-wds in a process group of its own, as a terminal starts it."""
    words = [sys.executable, "-m", "cosmos_wds", *words]
    with Process(words, cwd=cwd, env=environment(), start_new_session=True) as process:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_ctrl_c_while_workers_are_born_is_answered_once(tmp_path, delay):
    """They hear it too, from the terminal, and have not yet been told to ignore it."""
    with started("download", "demo", "--set", "source.path=raw", cwd=tmp_path) as process:
        wait_for(lambda: len(children(process.pid)) > 1, process)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "interrupted")
    assert "Traceback" not in err


def test_ctrl_c_ends_a_download_with_130(tmp_path):
    sizes = ["--set", "generate.train=100000", "--set", "source.path=raw"]
    with started("download", "demo", *sizes, cwd=tmp_path) as process:
        wait_for(lambda: list(tmp_path.glob("raw/annotation/train/*.json")), process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "interrupted")
    assert "Traceback" not in err
    for path in (tmp_path / "raw" / "annotation" / "train").iterdir():
        episode = json.loads(path.read_text())
        assert (tmp_path / "raw" / episode["videos"][0]["video_path"]).is_file()


def test_ctrl_c_ends_a_training_with_130_and_the_same_command_goes_on(call, tmp_path):
    write_episode(tmp_path / "recordings", "train", 0)
    assert call("shard", "recordings", "shards", "--workers", 1)[0] == 0
    train = ["train", *TINY, "--set", "data.shards=shards", "--set", "train.save_every=1000000"]
    train += ["--set", "train.log_every=1", "--set", "train.warmup=1"]
    metrics = tmp_path / load_recipe("bridge").run_folder / "metrics.jsonl"
    with started(*train, "--set", "train.steps=1000000", cwd=tmp_path) as process:
        wait_for(lambda: metrics.is_file() and metrics.read_text(), process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "interrupted")
    assert "run the same command again" in err and "Traceback" not in err
    [done] = [int(n) for n in re.findall(r"stopped after step (\d+)", err)]
    with started(*train, "--set", "train.steps=1000000", cwd=tmp_path) as process:
        wait_for(lambda: len(metrics.read_text().splitlines()) > done, process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continuing after step {done}" in err


def test_python_m_is_the_same_program(tmp_path):
    assert fresh("--version", cwd=tmp_path) == f"cosmos-wds {__version__}\n"
    assert (ROOT / "cosmos_wds" / "__main__.py").is_file()


def test_the_four_commands_one_after_the_other(call, tmp_path):
    """Data are made, sharded, trained on, rolled out; then mistakes with what is there."""
    few = ["--set", "generate.train=3", "--set", "generate.val=1", "--set", "generate.height=32"]
    assert call("download", "demo", *few, "--set", "generate.width=48")[0] == 0
    assert call("shard", "--pipeline", "demo", "--workers", 1)[:2] == (0, "data/demo/shards\n")
    train = ["train", *TINY, "--set", "data.shards=data/demo/shards", "--set", "name=tiny"]
    code, out, _ = call(*train)
    run_folder = out.strip()
    assert code == 0
    assert run_folder == "checkpoints/posttraining/diffusion_video2world_action/tiny"
    assert call(*train)[:2] == (0, out), "a finished run has nothing to do, and says where it is"
    [annotation] = Path("data/demo/raw/annotation/val").iterdir()
    infer = ["infer", run_folder, "--annotation", annotation, "--compare"]
    code, out, err = call(*infer, "--height", 64, "--width", 96)
    assert (code, out) == (0, "outputs/infer.mp4\n") and "PSNR" in err
    assert Path("outputs/infer.mp4").stat().st_size > 0

    code, _, err = call(*infer)
    assert code == 1 and "exists" in err
    np.save("six.npy", np.zeros((3, 6)))
    frame = annotation.parents[2] / "videos" / "val" / annotation.stem / "rgb.mp4"
    six = ["infer", run_folder, "--video", frame, "--npy", "six.npy", "--output", "six.mp4"]
    code, _, err = call(*six)
    assert code == 1 and "six.npy" in err and not Path("six.mp4").exists()
    larger = ["--set", "model.width=64", "--set", f"model.base={run_folder}", "--set", "name=more"]
    code, _, err = call(*train, *larger)
    assert code == 1 and run_folder in err
    code, _, err = call(*train, "--set", "train.lr=1")
    assert code == 1 and "train.lr = 1" in err
