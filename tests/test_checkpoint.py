"""A checkpoint is whole or absent: kills, full disks, damage, retention, what it gives back."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.weight_files import load_pt
from cosmos_wds.train import state
from cosmos_wds.train.checkpoint import (
    LATEST,
    checkpoint_folder,
    complete_steps,
    latest_step,
    remove_leftovers,
    weights_file,
    write_file,
)
from cosmos_wds.train.parallel import Ranks
from cosmos_wds.train.state import (
    FACTS,
    Saver,
    held_names,
    read_facts,
    read_weights,
    restore_tensors,
    write_weights,
)
from tests import forked
from tests.killing import wait_for

ALONE = Ranks(0, 1, torch.device("cpu"))


def tensors(value: float, *, size: int = 100) -> dict:
    weight, name = torch.full((size, size), value), "net.patch.weight"
    return {
        f"reg.{name}": weight,
        "reg.logvar.freqs": torch.full((3,), value),
        f"ema.{name}": weight + 0.5,
        f"optim.exp_avg.{name}": -weight,
        f"optim.step.{name}": torch.tensor(value),
    }


def facts(step: int) -> dict:
    return {"iteration": step, "loader": {"step": step}, "digests": {}, "recent": [[0.1, 1.0]]}


def save(folder: Path, *steps: int, keep: int = 0, size: int = 100) -> None:
    with Saver(folder, ALONE, keep=keep) as saver:
        for step in steps:
            saver.start(step, tensors(float(step), size=size), facts(step))
        saver.wait()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_comes_back(tmp_path):
    save(tmp_path, 2000)
    assert names(tmp_path) == {"iter_000002000", LATEST}
    assert (tmp_path / LATEST).read_text() == "iter_000002000"
    folder = checkpoint_folder(tmp_path, latest_step(tmp_path))
    assert read_facts(folder) == facts(2000)
    blank = {name: torch.zeros_like(tensor) for name, tensor in tensors(1.0).items()}
    restore_tensors(folder, blank, ALONE)
    for name, tensor in tensors(2000.0).items():
        assert torch.equal(blank[name], tensor), name
    assert held_names(folder)["optim.step.net.patch.weight"] == ((1,), torch.float32)


def test_files_of_weights_are_named_as_the_reference_names_them(tmp_path):
    save(tmp_path, 7)
    write_weights(tmp_path, 7)
    assert names(tmp_path) == {
        *("iter_000000007", LATEST, "iter_000000007_reg_model.pt", "iter_000000007_ema_model.pt")
    }
    reg, ema = (load_pt(weights_file(tmp_path, 7, kind)) for kind in ("reg", "ema"))
    assert reg.keys() == ema.keys() == {"net.x_embedder.proj.1.weight", "logvar.0.freqs"}
    assert (reg["net.x_embedder.proj.1.weight"] == 7).all()
    assert (ema["net.x_embedder.proj.1.weight"] == 7.5).all()
    assert (ema["logvar.0.freqs"] == 7).all(), "what has no average stays as trained"


def test_what_changes_after_a_save_has_begun_is_not_in_it(tmp_path, monkeypatch):
    """Writing waits until training has overwritten all tensors."""
    go = threading.Event()
    plain = state.dcp.save
    monkeypatch.setattr(state.dcp, "save", lambda *a, **n: (go.wait(), plain(*a, **n)))
    moving = tensors(5.0)
    with Saver(tmp_path, ALONE, keep=0) as saver:
        saver.start(5, moving, facts(5))
        for tensor in moving.values():
            tensor.fill_(-1.0)
        assert latest_step(tmp_path) is None and saver.published == 0
        saver.check()
        go.set()
        saver.wait()
        assert saver.published == saver.step == 5
    held = read_weights(checkpoint_folder(tmp_path, 5), "reg")
    assert (held["net.x_embedder.proj.1.weight"] == 5).all()


def test_large_states_are_spread_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "FILE_BYTES", 40_000)
    save(tmp_path, 3)
    files = list(checkpoint_folder(tmp_path, 3).glob("*.safetensors"))
    assert len(files) == 3 and all(path.stat().st_size < 90_000 for path in files)
    assert (read_weights(checkpoint_folder(tmp_path, 3), "ema")["logvar.0.freqs"] == 3).all()


def test_no_checkpoint_yet(tmp_path):
    assert latest_step(tmp_path) is None
    assert latest_step(tmp_path / "nowhere") is None


def test_keep_counts_checkpoints_besides_the_last(tmp_path):
    save(tmp_path, 10, 20, 30, 40, 50, keep=2)
    assert complete_steps(tmp_path) == [30, 40, 50]
    assert len(names(tmp_path)) == 3 + 1


def test_keep_zero_keeps_all(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    assert complete_steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("failing", ["tensors", FACTS, LATEST])
def test_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch, failing):
    save(tmp_path, 10)
    before = names(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(path, write):
        if path.name == failing:
            raise full
        write_file(path, write)

    def no_room(self, plan, planner):
        raise full

    if failing == "tensors":
        monkeypatch.setattr(state.HuggingFaceStorageWriter, "write_data", no_room)
    monkeypatch.setattr(state, "write_file", refuse)
    monkeypatch.setattr("cosmos_wds.train.checkpoint.write_file", refuse)
    with pytest.raises(
        CheckpointError, match=r"step 20 could not be written: No space.*step 10 is"
    ):
        save(tmp_path, 20)
    assert names(tmp_path) == before
    assert latest_step(tmp_path) == 10
    monkeypatch.undo()
    save(tmp_path, 20)
    assert latest_step(tmp_path) == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device")
def test_torch_save_on_a_full_device_is_an_os_error(tmp_path):
    """torch.save hides ENOSPC behind a RuntimeError; write_file brings it back."""

    def write(file) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            torch.save(tensors(1), full)

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
        save(tmp_path, 1)
        with pytest.raises(CheckpointError, match="No space left on device; that of step"):
            save(tmp_path, *range(2, 9))
        step = latest_step(tmp_path)
        assert read_facts(checkpoint_folder(tmp_path, step)) == facts(step)
        weights = read_weights(checkpoint_folder(tmp_path, step), "reg")
        assert (weights["net.x_embedder.proj.1.weight"] == step).all()
        assert len(names(tmp_path)) == len(complete_steps(tmp_path)) + 1
        with pytest.raises(CheckpointError, match=r"_model\.pt: could not be written: No space"):
            write_weights(tmp_path, step)
        assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_leftovers_go_and_whole_checkpoints_stay(tmp_path):
    save(tmp_path, 10, 20)
    (tmp_path / LATEST).write_text("iter_000000010")  # the user went back
    before = names(tmp_path)
    (tmp_path / ".iter_000000030_reg_model.pt.77.tmp").write_bytes(b"half")
    shutil.copytree(checkpoint_folder(tmp_path, 20), tmp_path / ".iter_000000030.tmp")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("text", ["", "iter_5", "iter_000000005.pt", "../../etc", "\x00\x01"])
def test_latest_that_names_nothing(tmp_path, text):
    save(tmp_path, 5)
    (tmp_path / LATEST).write_text(text)
    with pytest.raises(CheckpointError, match="not the name of a checkpoint"):
        latest_step(tmp_path)


def test_latest_that_is_gone_names_the_way_back(tmp_path):
    save(tmp_path, 5, 9)
    shutil.rmtree(checkpoint_folder(tmp_path, 9))
    with pytest.raises(CheckpointError, match=r"iter_000000009: missing.*iter_000000005 into"):
        latest_step(tmp_path)


def test_damage_is_told_with_the_way_back(tmp_path):
    save(tmp_path, 5, 9)
    folder = checkpoint_folder(tmp_path, 9)
    blank = tensors(0.0)
    (file,) = folder.glob("*.safetensors")
    whole = file.read_bytes()
    for broken in (b"", b"hello", whole[:200], whole[: len(whole) // 2]):
        file.write_bytes(broken)
        for read in (lambda: restore_tensors(folder, blank, ALONE), lambda: held_names(folder)):
            with pytest.raises(
                CheckpointError, match=r"iter_000000009: a damaged.*iter_000000005 into"
            ):
                read()
    file.unlink()
    with pytest.raises(CheckpointError, match="holds another state than this run's"):
        restore_tensors(folder, blank, ALONE)
    assert all((tensor.abs() <= 0.5).all() for tensor in blank.values()), "nothing is half restored"
    for text in ("", "{}", "[1]", "\x00"):
        (folder / FACTS).write_text(text)
        with pytest.raises(CheckpointError, match=r"run\.json: not the state of a run"):
            read_facts(folder)


def test_another_models_state_is_refused(tmp_path):
    save(tmp_path, 5)
    wrong = tensors(0.0, size=99)
    with pytest.raises(CheckpointError, match=r"reg\.net\.patch\.weight \(100, 100\)"):
        restore_tensors(checkpoint_folder(tmp_path, 5), wrong, ALONE)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_damaged_files_are_told_and_run_no_code(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(tensors(1), path)
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
    import sys
    from pathlib import Path
    from cosmos_wds.train.state import Saver
    from tests.test_checkpoint import ALONE, facts, tensors
    with Saver(Path(sys.argv[1]), ALONE, keep=1) as saver:
        print("ready", flush=True)
        for step in range(1, 10**9):
            saver.start(step, tensors(float(step), size=300), facts(step))
"""


@pytest.mark.slow
def test_kill_at_any_moment_of_a_save(tmp_path):
    """SIGKILL during endless saving, five times: what `latest` names loads, all parts alike."""
    seen = 0
    for attempt in range(5):
        words = [sys.executable, "-c", textwrap.dedent(SAVER), tmp_path]
        with forked.Process(words, cwd=Path(__file__).parent.parent) as saver:
            wait_for(lambda saver=saver: saver.said()[0], saver)
            time.sleep(0.05 + 0.0193 * attempt)
            saver.kill()
        step = latest_step(tmp_path)
        if step is None:
            continue
        seen += 1
        folder = checkpoint_folder(tmp_path, step)
        assert read_facts(folder)["iteration"] == step
        for kind, value in (("reg", step), ("ema", step + 0.5)):
            assert (read_weights(folder, kind)["net.x_embedder.proj.1.weight"] == value).all()
        remove_leftovers(tmp_path)
        assert not list(tmp_path.glob(".*"))
    assert seen >= 2
