"""Training runs end to end: resume bit for bit, kills, refusals, broken input, what is written."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmos_wds.errors import CheckpointError, ConfigError, DataError, UserError
from cosmos_wds.model.weight_files import read_state
from cosmos_wds.train import loop, state, step
from cosmos_wds.train import run as run_module
from cosmos_wds.train.checkpoint import checkpoint_folder, latest_step, weights_file
from cosmos_wds.train.folder import BAD_BATCH, METRICS, flat, locked
from cosmos_wds.train.loop import train
from cosmos_wds.train.parallel import Interrupted
from cosmos_wds.train.run import find_weights, load_run
from tests import forked
from tests.training import TIMES, command, metrics, same, small_recipe, small_shards, stop_after

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A run of 4 steps without a stop."""
    return train(small_recipe(shards, tmp_path_factory.mktemp("whole"), steps=4))


def test_four_steps_equal_two_and_two(shards, whole, tmp_path, monkeypatch, capsys):
    recipe = small_recipe(shards, tmp_path, steps=4)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    said = capsys.readouterr().err
    assert "stopped after step 2; run the same command again to continue" in said
    assert latest_step(recipe.run_folder / "checkpoints") == 2
    monkeypatch.undo()
    train(recipe)
    assert "continuing after step 2 of 4" in capsys.readouterr().err
    same(whole, recipe.run_folder, step=4)


def test_a_line_that_spans_a_stop(shards, tmp_path, monkeypatch):
    """log_every = 3 with a stop after step 2: the first line still averages steps 1 to 3."""
    one, two = (small_recipe(shards, tmp_path / n, steps=4, log_every=3) for n in "ab")
    train(one)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(two)
    monkeypatch.undo()
    train(two)
    same(one.run_folder, two.run_folder, step=4)
    each = small_recipe(shards, tmp_path / "c", steps=4)
    lines, averaged = metrics(train(each)), metrics(one.run_folder)
    assert [line["step"] for line in averaged] == [3, 4]
    assert averaged[0]["loss"] == pytest.approx(sum(x["loss"] for x in lines[:3]) / 3)


def test_sigterm_saves_and_ends_well(shards, tmp_path, monkeypatch):
    recipe = small_recipe(shards, tmp_path, steps=4)
    stop_after(monkeypatch, 3, signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        train(recipe)
    assert left.value.code == 0
    assert latest_step(recipe.run_folder / "checkpoints") == 3
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_finished_run_does_nothing(whole, shards, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.*") if p.name != ".lock"}
    recipe = small_recipe(shards, whole.parents[2], steps=4)
    assert train(recipe) == whole
    assert "all 4 steps are done; nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_what_a_run_leaves(whole):
    assert {p.name for p in whole.iterdir()} == {
        *("recipe.toml", "contract.json", "tokenizer.safetensors", METRICS),
        *("checkpoints", ".lock"),
    }
    lines = metrics(whole, times=True)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]) == {"step", "loss", "grad_norm", "lr", *TIMES}
    assert lines[0]["lr"] == pytest.approx(1e-3 * 1e-6) and lines[1]["lr"] == 1e-3
    reg = read_state(weights_file(whole / "checkpoints", 4, "reg"))
    ema = read_state(weights_file(whole / "checkpoints", 4, "ema"))
    assert reg.keys() == ema.keys() and "logvar.0.freqs" in reg
    assert all(t.dtype == torch.float32 for t in [*reg.values(), *ema.values()])
    assert all(name.startswith(("net.", "logvar.")) for name in reg)
    assert torch.equal(reg["logvar.0.freqs"], ema["logvar.0.freqs"])
    assert not torch.equal(reg["net.x_embedder.proj.1.weight"], ema["net.x_embedder.proj.1.weight"])


def test_settings_that_do_not_change_the_result(shards, whole, tmp_path, monkeypatch):
    """Stopped, then continued with other workers, log and save settings and a moved shard set."""
    recipe = small_recipe(shards, tmp_path, steps=4)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    moved = tmp_path / "moved"
    moved.symlink_to(shards)
    changed = small_recipe(
        moved, tmp_path, steps=4, log_every=2, save_every=3, data={"workers": 2}, infer={"steps": 7}
    )
    train(changed)
    same(whole, recipe.run_folder, step=4, with_metrics=False)


def test_another_recipe_is_refused_with_its_keys(shards, whole):
    recipe = small_recipe(shards, whole.parents[2], steps=9, lr=0.5, window={"interval": 2})
    with pytest.raises(ConfigError) as refused:
        train(recipe)
    told = str(refused.value)
    assert "train.steps = 9, but the run was started with 4" in told
    assert "train.lr = 0.5, but the run was started with 0.001" in told
    assert "window.interval = 2, but the run was started with 1" in told
    assert len(told.splitlines()) == 4


def test_other_shards_are_refused(shards, tmp_path, monkeypatch):
    recipe = small_recipe(shards, tmp_path, steps=4)
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    others = small_shards(tmp_path / "others", episodes=5)
    with pytest.raises(CheckpointError, match="another order of data: index = "):
        train(small_recipe(others, tmp_path, steps=4))


def test_a_changed_tokenizer_is_refused(shards, whole, tmp_path, monkeypatch):
    recipe = small_recipe(shards, tmp_path, steps=4)
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    path = recipe.run_folder / "tokenizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the tokenizer changed since"):
        train(recipe)


def test_two_trainings_at_once(shards, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=2)
    with (
        locked(recipe.run_folder),
        pytest.raises(
            CheckpointError, match=f"another training is writing here .process {os.getpid()}"
        ),
    ):
        train(recipe)
    train(recipe)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"shards": "nowhere"}}, DataError, "nowhere: no such folder"),
        ({"data": {"split": "test"}}, DataError, "no split 'test'; there is train, val"),
        ({"batch": 64}, DataError, "batch = 64, but 4 episodes hold only 28 windows"),
        ({"device": "cuda"}, ConfigError, "torch sees no GPU"),
        ({"parallel": "ddp"}, ConfigError, "--processes N"),
        ({"model": {"base": "nothing-of-the-kind"}}, CheckpointError, "no such run, checkpoint"),
    ],
)
def test_wrong_input_writes_nothing(shards, tmp_path, changes, error, message):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    recipe = small_recipe(shards, tmp_path / "out", steps=2, **changes)
    with pytest.raises(error, match=message):
        train(recipe)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="the run's folder cannot be written"):
        train(small_recipe(shards, tmp_path / "file", steps=2))


def test_a_loss_that_is_not_finite(shards, tmp_path, monkeypatch):
    recipe = small_recipe(shards, tmp_path, steps=6, save_every=2)
    original = step.backward

    def poisoned(run, batch) -> Tensor:
        return original(run, batch) * (math.nan if run.step == 3 else 1)

    monkeypatch.setattr(step, "backward", poisoned)
    with pytest.raises(
        UserError, match=r"step 4: the loss is nan.*bad_batch.json.*step 2 are saved"
    ):
        train(recipe)
    bad = json.loads((recipe.run_folder / BAD_BATCH).read_text())
    assert bad["step"] == 4 and bad["batch"][0]["loss"] == "nan"
    assert len(bad["batch"][0]["key"]) == len(bad["batch"][0]["start"]) == recipe.train.batch
    assert all(key.startswith("train_") for key in bad["batch"][0]["key"])
    assert latest_step(recipe.run_folder / "checkpoints") == 2
    state = find_weights(recipe.run_folder, "reg").read()
    assert all(t.isfinite().all() for t in state.values())


@pytest.mark.parametrize("rank", ["0", "3"])
def test_a_gpu_that_is_too_small_is_told_by_the_rank_it_happens_to(
    shards, tmp_path, monkeypatch, capfd, rank
):
    def too_much(run, batch):
        monkeypatch.setenv("RANK", rank)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(step, "backward", too_much)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"too small for run: CUDA out of memory.* 2 GiB. `cos"):
        train(small_recipe(shards, tmp_path, steps=2))
    assert ("error: the GPU's memory" in capfd.readouterr().err) == (rank != "0")


def test_full_disk_keeps_the_last_checkpoint(shards, whole, tmp_path, monkeypatch):
    """The second save meets a full disk; with room again, the same command ends as ever."""
    recipe = small_recipe(shards, tmp_path, steps=4, save_every=2)
    original = state.write_file

    def full(path, write):
        if path.parent.name.startswith(".iter_000000004"):
            raise OSError(28, "No space left on device")
        original(path, write)

    monkeypatch.setattr(state, "write_file", full)
    with pytest.raises(CheckpointError, match=r"step 4 could not be written: No space.*step 2 is"):
        train(recipe)
    monkeypatch.undo()
    assert {p.name for p in (recipe.run_folder / "checkpoints").glob("*4*")} == set()
    train(recipe)
    same(whole, recipe.run_folder, step=4)


def test_damaged_checkpoint_is_told(shards, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=4, save_every=1)
    train(recipe)
    folder = recipe.run_folder / "checkpoints"
    longer = small_recipe(shards, tmp_path, steps=4, save_every=1)
    (folder / "latest_checkpoint.txt").write_text("iter_000000002")
    (path,) = checkpoint_folder(folder, 2).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"iter_000000002: a damaged checkpoint.*"):
        train(longer)
    (folder / "latest_checkpoint.txt").write_text("iter_000000003")
    train(longer)
    assert latest_step(folder) == 4


def test_post_training_starts_from_the_base(shards, tmp_path, capsys):
    """A base without actions; with output layers at zero, step 1 has the base's loss."""
    plain = {"model": {"actions": "none"}}
    base = train(small_recipe(shards, tmp_path, steps=4, name="base", **plain))
    tuned = small_recipe(shards, tmp_path, steps=2, name="tuned", model={"base": str(base)})
    again = small_recipe(
        shards, tmp_path, steps=2, name="again", model={"base": str(base), "actions": "none"}
    )
    train(tuned)
    said = capsys.readouterr().err
    assert "8 new (net.action_cond, net.action_shared)" in said
    train(again)
    assert metrics(tuned.run_folder)[0]["loss"] == metrics(again.run_folder)[0]["loss"]
    assert metrics(tuned.run_folder)[0]["loss"] != metrics(base)[0]["loss"]
    tokenizers = [(f / "tokenizer.safetensors").read_bytes() for f in (base, tuned.run_folder)]
    assert tokenizers[0] == tokenizers[1]


def test_a_base_of_another_size(shards, whole, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=2, model={"base": str(whole), "width": 48})
    with pytest.raises(CheckpointError) as refused:
        train(recipe)
    assert "another model size" in str(refused.value)
    assert "(32, 72) in the file, (48, 72) in the model" in str(refused.value)


def test_a_base_of_another_contract(shards, whole, tmp_path):
    others = small_shards(tmp_path / "others", scale=(10.0,) * 7)
    recipe = small_recipe(others, tmp_path, steps=2, model={"base": str(whole)})
    with pytest.raises(CheckpointError, match=r"actions mean something else(?s:.*)scale: \(20"):
        train(recipe)
    assert not recipe.run_folder.exists()


def test_a_base_with_another_tokenizer(shards, whole, tmp_path):
    recipe = small_recipe(
        shards, tmp_path, steps=2, model={"base": str(whole)}, tokenizer={"patch": 8}
    )
    with pytest.raises(ConfigError, match="its tokenizer has patch = 4 and 16 channels"):
        train(recipe)


def test_reference_preset_trains(shards, tmp_path):
    recipe = small_recipe(
        shards, tmp_path, steps=3, decay="all",
        model={"actions": "reference", "position_tables": False},
        diffusion={"conditioning": "reference", "loss_frames": "all"},
    )  # fmt: skip
    assert len(metrics(train(recipe))) == 3


def test_accumulation_and_precision(shards, whole, tmp_path):
    """Micro-batches change nothing but rounding; bfloat16 stays close, with float32 weights."""
    plain = metrics(whole)
    split = metrics(train(small_recipe(shards, tmp_path, steps=4, name="split", accumulate=4)))
    for a, b in zip(plain, split, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    half = train(small_recipe(shards, tmp_path, steps=4, name="half", precision="bfloat16"))
    assert metrics(half)[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=0.05)
    state = read_state(find_weights(half, "reg").file)
    assert all(t.dtype == torch.float32 for t in state.values())


def test_loading_a_run(whole, shards, tmp_path):
    run = load_run(whole)
    assert run.place.step == 4 and run.contract is not None
    assert not run.denoiser.training
    assert not any(p.requires_grad for p in run.denoiser.parameters())
    assert "loaded" in str(run.audit)
    ema = read_state(weights_file(whole / "checkpoints", 4, "ema"))
    assert torch.equal(run.denoiser.net.patch.weight, ema["net.x_embedder.proj.1.weight"])
    reg_file = weights_file(whole / "checkpoints", 4, "reg")
    reg = load_run(reg_file)
    assert reg.place.step == 4 and reg.recipe == run.recipe
    assert torch.equal(
        reg.denoiser.net.patch.weight, load_run(whole, weights="reg").denoiser.net.patch.weight
    )
    assert load_run(whole / "checkpoints").place.file == run.place.file


def test_weights_by_name_and_nvidias_bare_file(whole, shards, tmp_path, monkeypatch, capsys):
    """float16 weights that ship with the package; a base file that has no recipe beside it."""
    folder = tmp_path / "weights" / "cosmos-test"
    folder.mkdir(parents=True)
    for name in ("recipe.toml", "contract.json", "tokenizer.safetensors"):
        (folder / name).write_bytes((whole / name).read_bytes())
    state = read_state(find_weights(whole).file)
    save_file({k: v.half() for k, v in state.items()}, folder / "model.safetensors")
    monkeypatch.setattr(run_module, "SHIPPED", folder.parent)
    loaded = load_run("cosmos-test")
    assert loaded.place.step is None
    assert all(p.dtype == torch.float32 for p in loaded.denoiser.parameters())
    with pytest.raises(CheckpointError, match="shipped with the package: cosmos-test"):
        load_run("cosmos-text")
    bare = tmp_path / "Cosmos-Predict1" / "model.pt"
    bare.parent.mkdir()
    torch.save({k: v for k, v in state.items() if "action" not in k}, bare)
    for number, base in enumerate(("cosmos-test", str(bare), str(bare.parent))):
        changes = {"name": f"r{number}", "model": {"base": base}}
        train(small_recipe(shards, tmp_path, steps=1, warmup=0, **changes))
    said = capsys.readouterr().err
    assert said.count("model.pt: loaded") == 2 and said.count("8 new") == 2


def test_loading_what_is_no_run(whole, tmp_path):
    with pytest.raises(CheckpointError, match="no such run, checkpoint or weights"):
        load_run(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_run(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_run(tmp_path / "a.txt")
    bare = tmp_path / "iter_000000004_ema_model.pt"
    bare.write_bytes(weights_file(whole / "checkpoints", 4, "ema").read_bytes())
    with pytest.raises(CheckpointError, match="no recipe.toml beside it"):
        load_run(bare)
    recipe = (whole / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(CheckpointError, match="contract.json: missing"):
        load_run(bare)
    (tmp_path / "contract.json").write_text((whole / "contract.json").read_text())
    with pytest.raises(CheckpointError, match="no readable patch tokenizer"):
        load_run(bare)
    tokenizer = (whole / "tokenizer.safetensors").read_bytes()
    (tmp_path / "tokenizer.safetensors").write_bytes(tokenizer)
    load_run(bare)
    (tmp_path / "recipe.toml").write_text(recipe.replace("width = 32", "width = 48"))
    with pytest.raises(CheckpointError, match="another model size"):
        load_run(bare)
    (tmp_path / "contract.json").write_text("{")
    with pytest.raises(CheckpointError, match="no readable action contract"):
        load_run(bare)


def test_flat():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}


def test_signals_ask_politely_once(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    with loop.stop_requests() as check:
        check()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's copy of the same key press
        with pytest.raises(Interrupted):
            check()
        clock[0] += 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


KILLED = """
    import os, signal, sys
    from cosmos_wds.cli import main
    from cosmos_wds.train import loop

    steps, file = int(sys.argv.pop()), sys.argv.pop()
    train_step, replace = loop.train_step, os.replace

    def step(run, batch):
        if run.step == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(run, batch)

    def publish(source, target):
        if str(target).endswith(file):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    loop.train_step, os.replace = step, publish
    main()
"""


@pytest.mark.slow
def test_kill_nine_then_the_same_command(shards, tmp_path):
    """SIGKILL between steps and in the middle of saves: all equals an uninterrupted run's."""
    one, two = (small_recipe(shards, tmp_path / n, steps=12, save_every=4) for n in "ab")
    train(one)
    same_command = command(two, tmp_path / "two.toml")[3:]
    script = textwrap.dedent(KILLED)
    for steps, file in (
        (6, "-"),
        (99, "iter_000000008"),
        (99, "run.json"),
        (99, "latest_checkpoint.txt"),
    ):
        ended = forked.run([sys.executable, "-c", script, *same_command, file, steps])
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    done = forked.run(command(two, tmp_path / "two.toml"))
    assert done.returncode == 0, done.stderr
    assert "continuing after step 4 of 12" in done.stderr
    same(one.run_folder, two.run_folder, step=12)
    assert not list(two.run_folder.rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_from_outside_is_130_and_no_traceback(shards, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=100_000, data={"workers": 2})
    process = subprocess.Popen(
        command(recipe, tmp_path / "r.toml"), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    log = recipe.run_folder / METRICS
    while time.monotonic() < deadline and not (log.is_file() and log.read_bytes()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again to continue" in err and "Traceback" not in err
    assert latest_step(recipe.run_folder / "checkpoints") is not None


def test_plain_lines_where_no_live_line_can_be_drawn(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cosmos_wds.train.watch.SPEAK_EVERY", 0.0)
    train(small_recipe(shards, tmp_path, steps=3))
    said = capsys.readouterr().err
    assert "step 2/3  loss " in said and "windows/s" in said


def test_the_module_runs_without_a_main_thread(shards, tmp_path):
    """Signals can only be caught in the main thread; elsewhere training runs without."""
    from threading import Thread

    recipe = small_recipe(shards, tmp_path, steps=2)
    thread = Thread(target=train, args=(recipe,))
    thread.start()
    thread.join()
    assert len(metrics(recipe.run_folder)) == 2
