"""Validation while training: what it measures, that it repeats, and that training feels nothing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare.latents import write_latents
from cosmos_wds.recipe import DiffusionSettings
from cosmos_wds.rollout.episodes import held_out
from cosmos_wds.rollout.rollout import rollout
from cosmos_wds.train.folder import VALIDATION
from cosmos_wds.train.loop import train
from cosmos_wds.train.pictures import film_strip
from cosmos_wds.train.run import load_run
from cosmos_wds.train.validate import Validation, averages_in_place, summary
from cosmos_wds.train.validation_set import (
    ValidationSet,
    noise_levels,
)
from tests import forked
from tests.tiny_run import with_eval
from tests.training import ALONE, command, metrics, same, small_recipe, small_shards, stop_after

WATCH = {"validate_every": 2, "windows": 9, "rollouts": 2, "rollout_frames": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"), val=4)


def recipe_of(shards, output, *, steps=4, watch=WATCH, **changes):
    changes = {"infer": {"steps": 2}, **changes}
    return small_recipe(shards, output, steps=steps, watch=watch, **changes)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A run of 4 steps that validates after 2 and 4."""
    return train(recipe_of(shards, tmp_path_factory.mktemp("whole"), lr=3e-3))


def lines(folder):
    """What validations found, without what differs from run to run."""
    read = map(json.loads, (folder / VALIDATION).read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read]


def strips(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.glob("validation/*/*.png")}


def picture(path):
    with Image.open(path) as image:
        return np.array(image).astype(int)


def test_training_feels_nothing_of_it(shards, whole, tmp_path):
    same(whole, train(recipe_of(shards, tmp_path, lr=3e-3, watch={})), step=4)
    assert not (tmp_path / VALIDATION).exists()


def test_generators_gradients_and_mode_stay(shards, tmp_path, monkeypatch):
    found = []

    def looked_at(self, run, watch, after_step=Validation.after_step):
        numpy, state = np.random.get_state()[1].copy(), torch.get_rng_state()
        weights = {name: p.detach().clone() for name, p in run.parameters.items()}
        average = {name: t.clone() for name, t in run.ema.average.items()}
        after_step(self, run, watch)
        assert np.array_equal(np.random.get_state()[1], numpy)
        assert torch.equal(torch.get_rng_state(), state)
        assert run.denoiser.training
        for name, parameter in run.parameters.items():
            assert parameter.grad is None and parameter.requires_grad
            assert torch.equal(parameter, weights[name])
            assert torch.equal(run.ema.average[name], average[name])
        found.append(run.step)

    monkeypatch.setattr(Validation, "after_step", looked_at)
    folder = train(recipe_of(shards, tmp_path))
    assert found == [1, 2, 3, 4]
    assert [line["step"] for line in lines(folder)] == [2, 4]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_stopped_run_finds_the_same(shards, whole, tmp_path, monkeypatch, step):
    recipe = recipe_of(shards, tmp_path, lr=3e-3)
    stop_after(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    train(recipe)
    same(whole, recipe.run_folder, step=4)
    assert lines(recipe.run_folder) == lines(whole)
    assert strips(recipe.run_folder) == strips(whole)


def test_a_validation_that_a_kill_took_is_made_up(shards, whole, tmp_path, monkeypatch):
    """And lines of steps that will come again leave the file."""
    recipe = recipe_of(shards, tmp_path, lr=3e-3)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    path = recipe.run_folder / VALIDATION
    assert len(lines(recipe.run_folder)) == 1
    path.write_text('{"step": 3, "loss": 9.0}\n{"step": 4, "lo')
    train(recipe)
    assert lines(recipe.run_folder) == lines(whole)


def test_validation_can_begin_later(shards, whole, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_of(shards, tmp_path, lr=3e-3, watch={}))
    monkeypatch.undo()
    assert lines(train(recipe_of(shards, tmp_path, lr=3e-3))) == lines(whole)


def test_a_line(whole):
    first, last = lines(whole)
    assert set(last) == {
        *("step", "windows", "loss", "loss_ema", "loss_by_sigma"),
        *("listening_gap", "listening_gap_low", "listening_gap_high", "gap_by_sigma"),
    }
    assert last["windows"] == 9 and last["loss"] != first["loss"]
    levels = noise_levels(DiffusionSettings())
    assert list(last["loss_by_sigma"]) == [f"{level:.3g}" for level in levels]
    weights = [2, *[1] * 7]  # 9 windows at 8 levels
    for total, parts in (("loss", "loss_by_sigma"), ("listening_gap", "gap_by_sigma")):
        mean = np.average(list(last[parts].values()), weights=weights)
        assert last[total] == pytest.approx(mean, abs=1e-9)
    assert last["listening_gap_low"] < last["listening_gap"] < last["listening_gap_high"]


def test_time_of_validation_is_not_that_of_steps(shards, tmp_path, monkeypatch):
    def slow(self, run, windows, action, losses=Validation._losses):
        import time

        time.sleep(0.4)
        return losses(self, run, windows, action)

    monkeypatch.setattr(Validation, "_losses", slow)
    recipe = recipe_of(shards, tmp_path, steps=3, log_every=3, watch={**WATCH, "rollouts": 0})
    folder = train(recipe)
    assert json.loads((folder / VALIDATION).read_text().splitlines()[0])["seconds"] > 1.2
    (line,) = metrics(folder, times=True)
    assert line["data_seconds"] + line["compute_seconds"] < 1.2


def planted(shards, tmp_path, monkeypatch, forward, **changes):
    """The line of a run whose loss is planted, and what was said of it."""
    told = []
    monkeypatch.setattr("cosmos_wds.train.validate.say", told.append)
    original = Denoiser.forward

    def either(self, latent, **named):
        if torch.is_grad_enabled():
            return original(self, latent, **named)
        return forward(self, latent, **named)

    monkeypatch.setattr(Denoiser, "forward", either)
    watch = {"validate_every": 9, "windows": 20, "rollouts": 0}
    (line,) = lines(train(recipe_of(shards, tmp_path, steps=2, watch=watch, **changes)))
    return line, told


def test_a_model_that_listens(shards, tmp_path, monkeypatch):
    """Loss 1 for the window's own action, which the first pass shows, and more for another's."""
    own: dict[bytes, Tensor] = {}

    def forward(self, latent, *, action, fps, draws):
        assert draws.is_given.all() and draws.is_visible.all() and draws.has_action.all()
        losses = []
        for x, a, epsilon in zip(latent, action, draws.epsilon, strict=True):
            key = x.numpy().tobytes() + epsilon.numpy().tobytes()
            true = own.setdefault(key, a)
            losses.append(1.0 if torch.equal(true, a) else 1.5 + 0.1 * float(x.mean()))
        return torch.tensor(losses)

    line, told = planted(shards, tmp_path, monkeypatch, forward)
    assert len(own) == 20, "every window has noise of its own"
    assert line["loss"] == line["loss_ema"] == 1.0
    assert 0.4 < line["listening_gap"] < 0.6, "every window must get another one's actions"
    assert told == [
        f"step 2: validation loss 1.0000 (1.0000 with averaged weights); shuffled actions cost "
        f"+{line['listening_gap']:.4f} ± "
        f"{line['listening_gap_high'] - line['listening_gap']:.4f}: the model listens"
    ]


def test_a_model_that_does_not_listen(shards, tmp_path, monkeypatch):
    def forward(self, latent, *, action, fps, draws):
        return latent.mean((1, 2, 3, 4)) + draws.sigma

    line, told = planted(shards, tmp_path, monkeypatch, forward)
    assert line["listening_gap"] == 0.0
    assert told[0].endswith("shuffled actions cost +0.0000 ± 0.0000: the model does not listen yet")


def test_what_the_interval_says():
    gap = {"listening_gap": 0.045, "listening_gap_low": 0.039, "listening_gap_high": 0.051}
    line = {"loss": 0.123, **gap}
    assert summary(line) == (
        "validation loss 0.1230; shuffled actions cost +0.0450 ± 0.0060: the model listens"
    )
    unsure = {**line, "listening_gap_low": -0.001, "listening_gap_high": 0.091}
    assert summary(unsure).endswith("+0.0450 ± 0.0460: the model does not listen yet")


def test_a_model_without_actions(shards, tmp_path, capsys):
    folder = train(recipe_of(shards, tmp_path, model={"actions": "none"}))
    assert set(lines(folder)[0]) == {"step", "windows", "loss", "loss_ema", "loss_by_sigma"}
    assert "shuffled" not in capsys.readouterr().err
    heights = {picture(p).shape[0] for p in folder.glob("validation/*/*.png")}
    assert heights == {film_strip([np.zeros((5, 32, 48, 3), np.uint8)] * 2).shape[0]}


def test_weights_and_their_average(shards, whole):
    """What was measured in passing is what the finished files give."""
    recipe = load_run(whole).recipe
    run = SimpleNamespace(
        ranks=ALONE, recipe=recipe, latent_shape=(16, 2, 8, 12), lanes=range(4),
        tokenizer=load_run(whole).tokenizer,
    )  # fmt: skip
    held = ValidationSet(recipe).read_windows(run)
    last = lines(whole)[-1]
    for kind, key in (("reg", "loss"), ("ema", "loss_ema")):
        denoiser = load_run(whole, weights=kind).denoiser
        with torch.no_grad():
            true, other = (
                denoiser(held.latent, action=a, fps=held.fps, draws=held.draws).double()
                for a in (held.action, held.other)
            )
        assert last[key] == pytest.approx(float(true.mean()), rel=1e-6)
        if kind == "reg":
            gap = float((other - true).mean())
            assert last["listening_gap"] == pytest.approx(gap, abs=1e-6)
    assert last["loss"] != pytest.approx(last["loss_ema"], rel=1e-6)


@pytest.mark.parametrize("weights", ["ema", "reg"])
def test_strips_show_what_infer_renders(shards, tmp_path, weights):
    """The recording; the rollout; the rollout under actions of the episode half the list away."""
    recipe = recipe_of(shards, tmp_path, lr=3e-2, infer={"steps": 2, "weights": weights})
    folder = train(recipe)
    run = load_run(folder, weights=weights)
    held = held_out(with_eval(recipe, actions=4), run.contract)
    rows = [0, 2]
    for place, row in enumerate(rows):
        actions = held.actions[[row, (row + 2) % 4]]
        # Rollout numbers are places in the list: give the second episode the same one.
        first = held.frames[[rows[0]] * place + [row], 0]
        true, other = (
            rollout(run, first, np.stack([a] * (place + 1)), seed=0)[place] for a in actions
        )
        wanted = film_strip([held.frames[row], true, other])
        written = picture(folder / f"validation/step_000000004/{held.keys[row]}.png")
        difference = np.abs(written - wanted)
        assert difference.max() <= 1 and not np.array_equal(true, other)


@pytest.mark.parametrize(
    ("watch", "changes", "error", "message"),
    [
        ({"split": "test"}, {}, DataError, r"no split 'test'.*choose \[watch\] split, or validate"),
        ({"rollout_frames": 8}, {}, DataError, r"takes episodes of 9 frames, .* val has 8; lower"),
        ({}, {"infer": {"guardrail": "nowhere:found"}}, ConfigError, "nowhere"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_written(
    shards, tmp_path, watch, changes, error, message
):
    recipe = recipe_of(shards, tmp_path / "out", watch={**WATCH, **watch}, **changes)
    with pytest.raises(error, match=message) as refused:
        train(recipe)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_rollout_takes_whole_windows(shards, tmp_path):
    recipe = recipe_of(shards, tmp_path, window={"frames": 4})
    assert ValidationSet(recipe).actions == 6
    folder = train(recipe)
    width = film_strip([np.zeros((7, 32, 48, 3), np.uint8)]).shape[1]
    assert {picture(p).shape[1] for p in folder.glob("validation/*/*.png")} == {width}


def test_one_episode_has_no_other_one(tmp_path):
    alone = small_shards(tmp_path, val=1)
    folder = train(recipe_of(alone, tmp_path))
    (strip,) = (folder / "validation" / "step_000000004").iterdir()
    height = film_strip([np.zeros((5, 32, 48, 3), np.uint8)] * 2).shape[0]
    assert picture(strip).shape[0] == height


def test_a_bad_episode(shards, tmp_path, capsys):
    """An error that names it; or, when the recipe skips them, a warning and another one."""
    bad = small_shards(tmp_path, val=4)
    row = SplitIndex.load(bad, "val").rows[2]
    content, (offset, size) = bytearray((bad / row.shard).read_bytes()), row.members["mp4"]
    content[offset : offset + size] = bytes(size)
    (bad / row.shard).write_bytes(content)
    with pytest.raises(DataError, match="val_2"):
        train(recipe_of(bad, tmp_path, name="strict"))
    folder = train(recipe_of(bad, tmp_path, name="skip", data={"on_bad": "skip"}))
    assert "validation: bad episode replaced" in capsys.readouterr().err
    assert len(lines(folder)) == 2 and len(strips(folder)) >= 2


def test_latents_give_what_videos_give(shards, whole, tmp_path):
    """Latents of the run's own tokenizer; float16 is all that differs."""
    table = {"path": str(tmp_path / "latents"), "tokenizer": str(whole / "tokenizer.safetensors")}
    table |= {"height": 32, "width": 48, "device": "cpu"}
    write_latents(
        Pipeline.model_validate({"shards": {"path": str(shards), "workers": 1}, "latents": table})
    )
    assert ShardIndex.read(tmp_path / "latents").latents
    tokenizer = {"path": str(whole / "tokenizer.safetensors")}
    folder = train(recipe_of(tmp_path / "latents", tmp_path, lr=3e-3, tokenizer=tokenizer))
    for one, two in zip(lines(whole), lines(folder), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=2e-3)
        assert one["loss_ema"] == pytest.approx(two["loss_ema"], rel=2e-3)
    assert strips(folder).keys() == strips(whole).keys()


GUARDRAIL = """
from cosmos_wds.diffusion.guardrail import Blocked
def invert(frames): return 255 - frames
def refuse(frames): raise Blocked("not these")
"""


def test_frames_pass_the_guardrail(shards, whole, tmp_path, monkeypatch, capsys):
    (tmp_path / "rail.py").write_text(GUARDRAIL)
    monkeypatch.chdir(tmp_path)
    inverted, refused = (
        train(recipe_of(shards, tmp_path, lr=3e-3, name=n, infer={"steps": 2, "guardrail": g}))
        for n, g in (("a", "rail:invert"), ("b", "rail:refuse"))
    )
    for name in strips(whole):
        plain, other = (picture(f / name) for f in (whole, inverted))
        rows = slice(plain.shape[0] // 3 + 4, None)  # below the recording
        is_line = (plain[rows] == 128).all(-1)
        assert (plain[rows] + other[rows] == 255)[~is_line].all()
    assert not strips(refused)
    assert "guardrail 'rail:refuse' refuses rollout 0, nothing is shown: not these" in (
        capsys.readouterr().err
    )
    assert lines(refused) == lines(whole)


def test_a_full_disk_is_one_line(shards, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cosmos_wds.train.pictures.write_bytes", full)
    with pytest.raises(DataError, match=r"val_0\.png: cannot be written: No space left"):
        train(recipe_of(shards, tmp_path))


def test_weights_come_back_also_after_an_error():
    weight, average = torch.nn.Parameter(torch.randn(3)), torch.randn(3)
    kept = weight.detach().clone(), average.clone()
    run = SimpleNamespace(parameters={"w": weight}, ema=SimpleNamespace(average={"w": average}))
    with pytest.raises(DataError), averages_in_place(run):
        assert torch.equal(weight, kept[1]) and torch.equal(average, kept[0])
        raise DataError("bad")
    assert torch.equal(weight, kept[0]) and torch.equal(average, kept[1])


@pytest.mark.parametrize("ema", ["none", "plain"])
def test_other_averages(shards, tmp_path, ema):
    folder = train(recipe_of(shards, tmp_path, ema=ema))
    assert all(("loss_ema" in line) == (ema == "plain") for line in lines(folder))
    assert strips(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": "ddp"},
        {"parallel": "fsdp", "checkpointing": "full", "ema_device": "cpu"},
    ],
)
def test_ranks_find_what_one_finds(shards, whole, tmp_path, changes):
    """Two ranks, with and without validation: equal training, and the one's numbers."""
    recipe = recipe_of(shards, tmp_path, lr=3e-3, **changes)
    blind = recipe_of(shards, tmp_path, lr=3e-3, name="blind", watch={}, **changes)
    for one in (recipe, blind):
        ended = forked.run_ranks(command(one, tmp_path / f"{one.name}.toml"), 2)
        assert ended.returncode == 0, ended.stderr
    same(recipe.run_folder, blind.run_folder, step=4)
    for a, b in zip(lines(whole), lines(recipe.run_folder), strict=True):
        for key in ("loss", "loss_ema", "listening_gap"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key
    for name in strips(whole):
        difference = np.abs(picture(whole / name) - picture(recipe.run_folder / name))
        assert difference.max() <= 2, name


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, compiling
def test_compiled_blocks_are_left_alone(shards, tmp_path, monkeypatch):
    """Other sizes than training's would have them compiled anew, up to torch's limit."""
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, compile=torch.nn.Module.compile: compile(
            self, backend=count
        ),
    )  # fmt: skip
    made = []
    for name, watch in (("blind", {}), ("seeing", {**WATCH, "windows": 11, "rollouts": 3})):
        torch._dynamo.reset()
        train(recipe_of(shards, tmp_path, compile=True, name=name, watch=watch))
        made.append(len(graphs))
        graphs.clear()
    assert made[0] == made[1] > 0
    same(*(recipe_of(shards, tmp_path, name=n).run_folder for n in ("blind", "seeing")), step=4)
