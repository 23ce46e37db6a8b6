"""`train --plan`: memory as a process takes it, operations as counted elsewhere, fitting advice."""

import json
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from cosmos_wds import cli
from cosmos_wds.config import dump
from cosmos_wds.console import result
from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.diffusion.noise import draw
from cosmos_wds.errors import ConfigError
from cosmos_wds.model.describe import describe
from cosmos_wds.recipe import DiffusionSettings, load_recipe
from cosmos_wds.recipe_train import LoraSettings
from cosmos_wds.sizes import model_settings
from cosmos_wds.train.loop import train
from cosmos_wds.train.plan import plan
from cosmos_wds.train.plan_advice import advise
from cosmos_wds.train.plan_gpus import GPUS
from cosmos_wds.train.plan_ledger import Ledger
from cosmos_wds.train.plan_outline import Outline
from cosmos_wds.train.plan_step import StepRequest, estimate_step, measure_step, run_step
from tests import forked
from tests.commands import ROOT, run
from tests.training import small_recipe, small_shards
from tests.training_memory import measured_memory

LARGER = {
    **{"size": "", "width": 512, "heads": 8, "blocks": 10, "adaln_rank": 64, "text_width": 0},
    **{"max_frames": 16, "max_height": 16, "max_width": 16},
}
"""A network of more than 30 million parameters."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("plan"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ({}, {}),
        pytest.param({}, {"checkpointing": "full"}, marks=pytest.mark.slow),
        pytest.param({}, {"precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(LARGER, {"batch": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_process_takes_what_was_planned(shards, tmp_path, model, changes):
    demo = load_recipe("demo")
    table = {
        **{"data": {"shards": str(shards)}, "window": {"frames": 5, "height": 48, "width": 64}},
        "model": {**demo.model.model_dump(), "base": "", **model},
        **{"batch": 16, **changes},
    }
    recipe = small_recipe(shards, tmp_path, steps=2, name="measured", **table)
    warm = small_recipe(shards, tmp_path, steps=2, name="warm", **changes)
    measured = measured_memory(warm, recipe, tmp_path)
    memory = Outline(recipe, 1, 7, on_gpu=False).memory
    assert memory.total == pytest.approx(measured, rel=0.1), memory
    always = ("weights", "optimizer state", "running average")
    assert sum(memory.device[part] for part in always) < 0.9 * measured


REQUEST = StepRequest(
    model=model_settings("cosmos-tiny").model_copy(update={"blocks": 7}),
    diffusion=DiffusionSettings(),
    lora=LoraSettings(),
    action_dims=7,
    windows=3,
    latent=(3, 12, 16),
    precision=torch.bfloat16,
    on_gpu=True,
    checkpointing="none",
    gradients="made",
)


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("gradients", ["made", "held", "sharded"])
def test_few_blocks_say_what_many_need(on_gpu, checkpointing, gradients):
    request = replace(REQUEST, on_gpu=on_gpu, checkpointing=checkpointing, gradients=gradients)
    few, all_blocks = measure_step(request), run_step(request)
    assert +few.peak == +all_blocks.peak
    assert (few.forward, few.backward) == (all_blocks.forward, all_blocks.backward)


def test_sizes_of_micro_batches_are_estimated_from_two():
    for windows in (1, 2, 5, 8):
        request = replace(REQUEST, windows=windows)
        exact, estimate = measure_step(request), estimate_step(request, 8)
        assert 0.999 < estimate.peak.total() / exact.peak.total() < 1.05
        assert (estimate.forward, estimate.backward) == (exact.forward, exact.backward)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_saves(precision):
    """Counted another way: storages packed for backward by a real forward pass on the CPU."""
    request = replace(REQUEST, on_gpu=False, precision=precision, windows=2)
    denoiser = Denoiser(request.model, request.diffusion, action_dims=7)
    denoiser.initialise(0)
    weights = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    shape = (request.model.latent_channels, *request.latent)
    draws = draw(request.diffusion, seed=0, step=0, lanes=range(2), latent_shape=shape)
    given = [torch.zeros(2, *shape), torch.zeros(2, 2, 7), torch.full((2,), 5.0)]
    inputs = {t.untyped_storage().data_ptr() for t in (*given, *vars(draws).values())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        loss = denoiser(given[0], action=given[1], fps=given[2], draws=draws).mean()
    assert loss.requires_grad
    wanted = sum(size for place, size in saved.items() if place not in weights | inputs)
    peaks = run_step(request).peaks["last block"]
    assert peaks["activations"] + peaks["weight copies"] == pytest.approx(wanted, rel=0.03)


def test_operations_are_those_of_inspect_model():
    facts = describe(REQUEST.model, action_dims=7, frames=3, height=12, width=16)
    step = run_step(replace(REQUEST, windows=1))
    again = run_step(replace(REQUEST, windows=1, checkpointing="full"))
    cpu = run_step(replace(REQUEST, windows=1, on_gpu=False))
    assert step.forward == cpu.forward == pytest.approx(facts.cost.flops, rel=1e-6)
    assert 1.9 < step.backward / step.forward < 2.3
    assert 0.8 < (again.backward - step.backward) / step.forward <= 1


def test_a_ledger_counts_storages_from_birth_to_death():
    with Ledger() as ledger:
        ledger.begin("all")
        one = torch.zeros(1000)
        view = one[:10]
        two = one + 1
        del one, two
        three = view.repeat(10)
        ledger.end_forward()
    assert ledger.peaks["all"] == Counter(temporaries=4000, activations=4000)
    ledger.begin("end")
    assert ledger.peaks["end"] == Counter(activations=4000 + 400, temporaries=0)
    assert three.shape == (100,)


def outline(name="bridge", ranks=1, **changes):
    return Outline(load_recipe(name), ranks, 7).changed(**changes)


def test_each_part_follows_its_setting():
    alone = outline(parallel="single", accumulate=64)
    weights = alone.memory.device["weights"]
    assert weights == pytest.approx(4 * 6.213e9, rel=1e-3)
    sharded = outline(ranks=8, parallel="fsdp", accumulate=8)
    for part in ("weights", "optimizer state", "running average"):
        assert sharded.memory.device[part] == alone.memory.device[part] // 8
    in_8_bits = outline(parallel="single", accumulate=64, optimizer="adamw8bit").memory
    share = in_8_bits.device["optimizer state"] / alone.memory.device["optimizer state"]
    assert 0.25 < share < 0.26
    away = outline(parallel="single", accumulate=64, ema_device="cpu", offload=True).memory
    assert "running average" not in away.device and "optimizer state" not in away.device
    assert away.host["running average"] == alone.memory.device["running average"]
    none = outline(parallel="single", accumulate=64, ema="none").memory
    assert "running average" not in none.device
    replicas = outline(ranks=8, parallel="fsdp", accumulate=8, replicate=2).memory
    assert replicas.device["weights"] == weights // 4
    ddp = outline(ranks=8, parallel="ddp", accumulate=8).memory
    assert ddp.device["gradients"] == 4 * alone.parameters.trained


def test_adapters_take_little():
    pytest.importorskip("peft")
    changes = ("lora.rank=16", "train.parallel=single", "train.accumulate=64")
    lora = Outline(load_recipe("bridge", changes), 1, 7)
    assert lora.parameters.trained < 0.1 * lora.parameters.frozen
    whole = outline(parallel="single", accumulate=64)
    assert lora.memory.total < 0.4 * whole.memory.total
    assert lora.operations.backward < 0.8 * whole.operations.backward


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if gpu.memory < 100e9], ids=lambda g: g.name)
def test_advice_fits_when_it_is_planned_anew(gpu):
    before = outline()
    assert before.memory.total > gpu.memory
    advice = advise(before, gpu)
    changes = [f"train.{key}={str(value).lower()}" for key, value in advice.changes.items()]
    recipe = load_recipe("bridge", changes)  # a valid one
    after = Outline(recipe, advice.outline.ranks, 7)
    assert after.memory.total <= gpu.memory
    for key in advice.changes:  # none that is not needed
        less = after.changed(**{key: getattr(before.recipe.train, key)})
        assert key in ("eps", "parallel") or less.memory.total > gpu.memory, key


def test_nothing_is_advised_where_nothing_helps():
    largest = load_recipe("bridge", ["train.batch=1", "window.frames=100"])
    assert advise(Outline(largest, 1, 7), GPUS[0]) is None


def test_the_command_plans_the_7b(tmp_path, monkeypatch, capsys):
    """In this process, where other tests have counted the same steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cosmos-wds", "train", "bridge", "--plan"])
    monkeypatch.setattr(result, "width", 120)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert not ended.value.code
    for words in ("6,213,069,952 trained", "H100", "optimizer state", "--set train.", "55%"):
        assert words in said
    assert "no such folder" in said and not list(tmp_path.iterdir())


def test_it_plans_on_a_laptop():
    """The largest network that is shipped: in little memory and time, in a process of its own."""
    began = time.monotonic()
    code = (
        "from cosmos_wds.recipe import load_recipe; from cosmos_wds.train.meter import peak_bytes; "
    )
    code += "from cosmos_wds.train.plan import plan; "
    code += "plan(load_recipe('bridge', ['model.size=cosmos-predict1-14b']), 8); "
    code += "print(peak_bytes())"
    done = forked.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1e9
    assert time.monotonic() - began < 100


def test_the_command_answers_in_json_and_knows_the_shards(shards, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=10)
    (tmp_path / "r.toml").write_text(dump(recipe))
    done = run("train", "r.toml", "--plan", "--gpus", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gpus"] == 2 and found["micro_batch"] == 2 and found["parallel"] == "ddp"
    assert found["steps_per_epoch"] == 7  # 4 episodes of 7 windows in batches of 4
    assert found["needed"] == sum(found["parts"].values())
    assert all(row["fits"] for row in found["on_gpus"]) and not found["advice"]
    assert not recipe.run_folder.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--plan", "--gpus", "3"), "3 ranks with accumulate = 1 need a multiple of 3"),
        (("--plan", "--gpus", "-1"), "1 or more"),
        (("--plan", "--gpus", "2", "--set", "train.parallel=single"), 'parallel = "single"'),
        (("--gpus", "2"), "go with --plan"),
    ],
)
def test_what_cannot_be_planned_is_told_in_a_line(tmp_path, words, said):
    done = run("train", "demo", *words, cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_has_the_size_that_was_said(shards, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=2)
    said = plan(recipe)
    folder = train(recipe) / "checkpoints"
    held = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    assert held == pytest.approx(said.checkpoint, rel=0.1)
    for name, size in said.weights_files.items():
        [file] = folder.glob(f"*{name}")
        assert file.stat().st_size == pytest.approx(size, rel=0.1)


def test_batches_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ConfigError, match="replicate = 3"):
        _ = outline(ranks=4, parallel="fsdp", replicate=3).memory
