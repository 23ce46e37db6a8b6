"""A checkpoint is whole or absent: kills, full disks, damage, retention."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.weight_files import load_pt
from cosmos_wds.train import checkpoint
from cosmos_wds.train.checkpoint import (
    LATEST,
    PARTS,
    checkpoint_file,
    complete_steps,
    latest_step,
    remove_leftovers,
    save_checkpoint,
    write_file,
)


def parts(value: float) -> dict:
    tensor = torch.full((100, 100), value)
    return {
        "_reg_model": {"net.a": tensor},
        "_ema_model": {"net.a": tensor},
        "_optim": {"a": {"exp_avg": tensor}},
        "": {"iteration": int(value), "loader": {"step": int(value)}},
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_are_named_as_the_reference_names_them(tmp_path):
    save_checkpoint(tmp_path, 2000, parts(1), keep=0)
    assert names(tmp_path) == {
        "iter_000002000.pt",
        "iter_000002000_reg_model.pt",
        "iter_000002000_ema_model.pt",
        "iter_000002000_optim.pt",
        "latest_checkpoint.txt",
    }
    assert (tmp_path / LATEST).read_text() == "iter_000002000.pt"
    assert load_pt(checkpoint_file(tmp_path, 2000, ""))["iteration"] == 1
    assert latest_step(tmp_path) == 2000


def test_no_checkpoint_yet(tmp_path):
    assert latest_step(tmp_path) is None
    assert latest_step(tmp_path / "nowhere") is None


def test_keep_counts_checkpoints_besides_the_last(tmp_path):
    for step in range(10, 60, 10):
        save_checkpoint(tmp_path, step, parts(step), keep=2)
    assert complete_steps(tmp_path) == [30, 40, 50]
    assert len(names(tmp_path)) == 3 * len(PARTS) + 1


def test_keep_zero_keeps_all(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, parts(step), keep=0)
    assert complete_steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("failing", [0, 1, 2, 3, 4])
def test_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, 10, parts(10), keep=1)
    before = names(tmp_path)
    calls = iter(range(100))

    def full(path: Path, write) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, write)

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(
        CheckpointError, match=r"step 20 could not be written: No space.*step 10 is"
    ):
        save_checkpoint(tmp_path, 20, parts(20), keep=1)
    assert names(tmp_path) == before
    assert latest_step(tmp_path) == 10
    monkeypatch.undo()
    save_checkpoint(tmp_path, 20, parts(20), keep=1)
    assert latest_step(tmp_path) == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device")
def test_torch_save_on_a_full_device_is_an_os_error(tmp_path):
    """torch.save hides ENOSPC behind a RuntimeError; write_file brings it back."""

    def write(file) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            torch.save(parts(1), full)

    with pytest.raises(OSError) as caught:
        write_file(tmp_path / "a.pt", write)
    assert caught.value.errno == errno.ENOSPC
    assert not names(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_really_full_file_system(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount here")
    try:
        save_checkpoint(tmp_path, 1, parts(1), keep=1)
        with pytest.raises(CheckpointError, match="No space left on device; that of step 1 is"):
            for step in range(2, 9):
                save_checkpoint(tmp_path, step, parts(step), keep=0)
        step = latest_step(tmp_path)
        assert load_pt(checkpoint_file(tmp_path, step, ""))["iteration"] == step
        assert len(names(tmp_path)) == len(PARTS) * len(complete_steps(tmp_path)) + 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, parts(1), keep=1)


def test_leftovers_go_and_whole_checkpoints_stay(tmp_path):
    save_checkpoint(tmp_path, 10, parts(10), keep=1)
    save_checkpoint(tmp_path, 20, parts(20), keep=1)
    checkpoint_file(tmp_path, 10, "_optim").unlink()  # the user's own saving of space
    before = names(tmp_path)
    (tmp_path / ".iter_000000030_reg_model.pt.77.tmp").write_bytes(b"half")
    checkpoint_file(tmp_path, 30, "_reg_model").write_bytes(b"whole, but alone")
    checkpoint_file(tmp_path, 30, "_ema_model").write_bytes(b"whole, but alone")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("text", ["", "iter_5.pt", "../../etc/passwd", "\x00\x01"])
def test_latest_that_names_nothing(tmp_path, text):
    save_checkpoint(tmp_path, 5, parts(5), keep=1)
    (tmp_path / LATEST).write_text(text)
    with pytest.raises(CheckpointError, match="not the name of a checkpoint"):
        latest_step(tmp_path)


def test_latest_whose_files_are_gone_names_the_way_back(tmp_path):
    save_checkpoint(tmp_path, 5, parts(5), keep=1)
    save_checkpoint(tmp_path, 9, parts(9), keep=1)
    checkpoint_file(tmp_path, 9, "_optim").unlink()
    with pytest.raises(CheckpointError, match=r"000009_optim.pt: missing.*iter_000000005.pt into"):
        latest_step(tmp_path)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_damaged_files_are_told_and_run_no_code(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(parts(1), path)
    whole = path.read_bytes()
    for broken in (b"", b"hello", whole[: len(whole) // 2], whole[:-100], b"\0" * 1000):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"a\.pt: not a checkpoint, or a damaged one"):
            load_pt(path)
    torch.save({"a": Evil(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError, match=r"holds more than tensors \(posix.system\)"):
        load_pt(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match="no such file"):
        load_pt(tmp_path / "b.pt")


SAVER = """
    import sys, torch
    from pathlib import Path
    from cosmos_wds.train.checkpoint import save_checkpoint
    folder, step = Path(sys.argv[1]), 0
    print("ready", flush=True)
    while True:
        step += 1
        t = torch.full((300, 300), float(step))
        save_checkpoint(folder, step, {"_reg_model": {"a": t}, "_ema_model": {"a": t},
            "_optim": {"a": {"exp_avg": t}}, "": {"iteration": step}}, keep=1)
"""


@pytest.mark.slow
def test_kill_at_any_moment_of_a_save(tmp_path):
    """SIGKILL during endless saving, eight times: what `latest` names loads, all parts alike."""
    seen = 0
    for attempt in range(8):
        saver = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path)], stdout=subprocess.PIPE
        )
        saver.stdout.readline()
        time.sleep(0.03 + 0.0193 * attempt)
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        step = latest_step(tmp_path)
        if step is None:
            continue
        seen += 1
        assert load_pt(checkpoint_file(tmp_path, step, ""))["iteration"] == step
        for part in ("_reg_model", "_ema_model"):
            assert (load_pt(checkpoint_file(tmp_path, step, part))["a"] == step).all()
        remove_leftovers(tmp_path)
        assert not list(tmp_path.glob(".*"))
    assert seen >= 4
