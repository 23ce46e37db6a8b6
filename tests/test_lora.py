"""LoRA: adapters beside frozen weights, merged where weights leave the run, exact on resume."""

import pytest
import torch

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model.names import from_released
from cosmos_wds.model.weight_files import read_state
from cosmos_wds.recipe import DiffusionSettings, recipe_from_table
from cosmos_wds.recipe_train import LoraSettings
from cosmos_wds.sizes import ModelSettings
from cosmos_wds.train import extras
from cosmos_wds.train.checkpoint import LATEST, checkpoint_folder, weights_file
from cosmos_wds.train.export import ExportRequest, export
from cosmos_wds.train.loop import train
from cosmos_wds.train.lora import (
    add_lora,
    frozen_digest,
    frozen_state,
    merged_state,
    trained_state,
)
from cosmos_wds.train.run import find_weights, load_run
from cosmos_wds.train.state import held_names
from tests import forked
from tests.training import command, metrics, same, small_recipe, small_shards, stop_after

LORA = LoraSettings(rank=4, alpha=8.0)
NAME = "net.blocks.0.attention.q"


pytestmark = pytest.mark.usefixtures("one_thread")


def fresh() -> Denoiser:
    settings = ModelSettings(
        width=32, heads=2, blocks=1, adaln_rank=4, text_width=0, latent_channels=4,
        max_frames=4, max_height=4, max_width=4,
    )  # fmt: skip
    denoiser = Denoiser(settings, DiffusionSettings(), action_dims=7)
    denoiser.initialise(0)
    return denoiser


def adapted(settings=LORA, *, seed=0, moved=True):
    """A denoiser with adapters; `moved` as if they had been trained."""
    denoiser = fresh()
    add_lora(denoiser, settings, seed=seed)
    if moved:
        draw = torch.Generator().manual_seed(1)
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=draw)
                parameter.data.add_(noise)
    return denoiser


def prediction(denoiser):
    """What the network makes of some input; its zeroed output layers give way first."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=draw)

    latent = noise(2, 4, 2, 8, 8)
    with torch.no_grad():
        return denoiser.denoise(
            *(latent, torch.tensor([0.5, 2.0])),
            given=latent[:, :, 0],
            action=noise(2, 1, 7),
            fps=torch.tensor([5.0, 5.0]),
            augment_sigma=0.001,
            augment_noise=noise(2, 4, 8, 8),
        )


def with_gates(denoiser):
    """Make every part of a fresh network matter."""
    draw = torch.Generator().manual_seed(2)
    for parameter in denoiser.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return denoiser


def test_at_first_it_is_the_base_and_torchs_generators_stay():
    base = with_gates(fresh())
    before, state = prediction(base), torch.random.get_rng_state()
    add_lora(base, LORA, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(prediction(base), before)


def test_what_is_trained():
    denoiser = adapted()
    trained = {n for n, p in denoiser.named_parameters() if p.requires_grad}
    adapters = {n for n in trained if ".lora_" in n}
    parts = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.up", "mlp.down")
    mods = [f"{mod}.{end}" for mod in ("attention_mod", "mlp_mod") for end in ("up", "down")]
    assert adapters == {
        f"net.blocks.0.{part}.lora_{ab}.default.weight" for part in (*parts, *mods) for ab in "AB"
    }
    whole = {f"net.action_{m}.{fc}" for m in ("cond", "shared") for fc in ("fc1", "fc2")}
    assert trained - adapters == {
        *(f"{fc}.{end}" for fc in whole for end in ("weight", "bias")),
        "logvar.linear.weight",
    }
    assert trained_state(denoiser).keys() == trained | {"logvar.freqs", "logvar.phases"}
    original = dict(fresh().named_parameters())
    assert frozen_state(denoiser).keys() | (trained - adapters) == original.keys()


def test_targets_choose_the_layers():
    denoiser = adapted(LoraSettings(rank=2, targets=("v", "out")))
    adapters = {n.partition(".lora_")[0] for n in trained_state(denoiser) if ".lora_" in n}
    assert adapters == {"net.blocks.0.attention.v", "net.blocks.0.attention.out"}
    with pytest.raises(ConfigError, match="'qq'"):
        recipe_from_table({"lora": {"rank": 2, "targets": ["qq"]}}, origin="test")


def test_the_seed_decides_the_adapters():
    one, two, other = (trained_state(adapted(seed=s, moved=False)) for s in (0, 0, 1))
    a, b = f"{NAME}.lora_A.default.weight", f"{NAME}.lora_B.default.weight"
    assert torch.equal(one[a], two[a]) and not torch.equal(one[a], other[a])
    assert not torch.equal(one[a], one[a.replace(".q.", ".k.")])
    assert not one[b].any() and one[a].abs().max() <= 1 / 32**0.5


def test_merged_it_computes_the_same_under_the_old_names():
    denoiser = with_gates(adapted())
    merged = merged_state(trained_state(denoiser), frozen_state(denoiser), LORA)
    plain = fresh()
    plain.load_state_dict(merged, strict=True)
    torch.testing.assert_close(prediction(plain), prediction(denoiser), rtol=1e-4, atol=1e-5)
    assert all(tensor.dtype == torch.float32 for tensor in merged.values())
    trained, base = trained_state(denoiser), frozen_state(denoiser)
    b, a = (trained[f"{NAME}.lora_{x}.default.weight"] for x in "BA")
    expected = base[f"{NAME}.weight"] + 8.0 / 4 * (b @ a)
    torch.testing.assert_close(merged[f"{NAME}.weight"], expected)


def test_an_adapter_without_its_layer_is_refused():
    denoiser = adapted()
    base = frozen_state(denoiser)
    del base[f"{NAME}.weight"]
    with pytest.raises(CheckpointError, match=f"the base has no {NAME}.weight"):
        merged_state(trained_state(denoiser), base, LORA)


def test_frozen_matrices_of_blocks_take_half_the_memory():
    denoiser, whole = fresh(), fresh()
    add_lora(denoiser, LORA, seed=0, frozen=torch.bfloat16)
    add_lora(whole, LORA, seed=0)
    halved = {n for n, p in denoiser.named_parameters() if p.dtype == torch.bfloat16}
    assert halved == {n for n, _ in denoiser.named_parameters() if n.endswith("base_layer.weight")}
    assert frozen_digest(denoiser) == frozen_digest(whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prediction(denoiser), prediction(whole))
    next(whole.net.blocks.parameters()).data.add_(1.0)
    assert frozen_digest(denoiser) != frozen_digest(whole)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"lora": {"rank": 4}}, r"\[lora\] rank = 4: adapters need a base"),
        (
            {"lora": {"rank": 4}, "model": {"base": "b"}, "train": {"parallel": "fsdp"}},
            r"\[lora\] rank = 4: frozen weights are not sharded",
        ),
        ({"lora": {"rank": 4, "targets": []}}, "targets = "),
        ({"lora": {"rank": 4, "alpha": 0.0}}, "alpha = 0.0: must be above 0"),
    ],
)
def test_combinations_that_make_no_sense(table, told):
    with pytest.raises(ConfigError, match=told):
        recipe_from_table(table, origin="test")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(shards, tmp_path_factory):
    """A base without actions."""
    output = tmp_path_factory.mktemp("base")
    return train(small_recipe(shards, output, steps=3, lr=1e-2, model={"actions": "none"}))


def lora_recipe(shards, base, output, *, steps=4, **changes):
    changes = {"lora": {"rank": 4, "alpha": 8.0}, **changes}
    return small_recipe(shards, output, steps=steps, model={"base": str(base)}, **changes)


@pytest.fixture(scope="module")
def whole(shards, base, tmp_path_factory):
    """A run of 4 steps without a stop."""
    return train(lora_recipe(shards, base, tmp_path_factory.mktemp("whole")))


SAVINGS = {
    "8 bits": {"optimizer": "adamw8bit", "eps": 1e-8},
    "average on the CPU": {"ema": "plain", "ema_decay": 0.5, "ema_device": "cpu"},
    "no average": {"ema": "none"},
}


WIDE = {"width": 256, "heads": 2}
"""So that 8 bits take hold of some matrices."""


@pytest.fixture(scope="module")
def wide(shards, tmp_path_factory):
    """A wider base without actions."""
    model = {**WIDE, "actions": "none"}
    return train(small_recipe(shards, tmp_path_factory.mktemp("wide"), steps=2, model=model))


@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8.0}, {}], ids=["lora", "all"])
@pytest.mark.parametrize("saving", SAVINGS)
def test_four_steps_equal_two_and_two(shards, wide, tmp_path, monkeypatch, lora, saving):
    """Through the checkpoint in between."""
    model = {**WIDE, "base": str(wide)}
    one, two = (
        small_recipe(shards, tmp_path / n, steps=4, model=model, lora=lora, **SAVINGS[saving])
        for n in "ab"
    )
    train(one)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(two)
    monkeypatch.undo()
    train(two)
    same(one.run_folder, two.run_folder, step=4)
    held = held_names(checkpoint_folder(one.run_folder / "checkpoints", 4))
    in_8_bits = {name for name, (_, kind) in held.items() if kind == torch.uint8}
    assert bool(in_8_bits) == (saving == "8 bits")
    assert any(name.startswith("ema.") for name in held) == (saving != "no average")
    assert load_run(one.run_folder).audit.loaded


def test_a_checkpoint_holds_what_is_trained_and_no_more(whole):
    held = held_names(checkpoint_folder(whole / "checkpoints", 4))
    kept = {name.removeprefix("reg.") for name in held if name.startswith("reg.")}
    assert kept == trained_state(adapted()).keys()
    averaged = {name.removeprefix("ema.") for name in held if name.startswith("ema.")}
    assert averaged == kept - {"logvar.freqs", "logvar.phases"}


def test_the_first_loss_is_the_bases(shards, base, whole, tmp_path):
    recipe = small_recipe(shards, tmp_path, steps=4, model={"base": str(base)})
    assert metrics(train(recipe))[0]["loss"] == metrics(whole)[0]["loss"]


@pytest.mark.parametrize("kind", ["reg", "ema"])
def test_weights_leave_a_run_merged(whole, base, kind):
    """As the reference's files, in rollouts and from a checkpoint on the way, the same."""
    file = weights_file(whole / "checkpoints", 4, kind)
    merged, unknown = from_released(read_state(file))
    assert not unknown
    direct = find_weights(checkpoint_folder(whole / "checkpoints", 4), kind).read()
    for name, tensor in from_released(direct)[0].items():
        assert torch.equal(merged[name], tensor), name
    start, _ = from_released(find_weights(base).read())
    reg, _ = from_released(find_weights(base, "reg").read())
    moved = {n for n in start if not torch.equal(merged[n], start[n])}
    assert f"{NAME}.weight" in moved
    assert "net.patch.weight" not in moved and "net.patch.weight" in reg
    run = load_run(whole, weights=kind)
    assert torch.equal(run.denoiser.state_dict()[f"{NAME}.weight"], merged[f"{NAME}.weight"])


def test_the_average_is_of_adapters(whole):
    reg, ema = (
        from_released(read_state(weights_file(whole / "checkpoints", 4, kind)))[0]
        for kind in ("reg", "ema")
    )
    assert not torch.equal(reg[f"{NAME}.weight"], ema[f"{NAME}.weight"])
    assert torch.equal(reg["net.final.linear.weight"], ema["net.final.linear.weight"])


def test_it_is_exported_like_any_other(whole, tmp_path):
    folder = export(ExportRequest(run=str(whole), output=tmp_path / "out", dtype="float32"))
    run, exported = load_run(whole), load_run(folder)
    for (name, one), two in zip(
        run.denoiser.state_dict().items(), exported.denoiser.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_another_base_is_refused(shards, base, tmp_path, monkeypatch):
    """A run that goes on reads its base again, and looks whether it is the one."""
    mine = tmp_path / "mine"
    mine.symlink_to(base)
    recipe = lora_recipe(shards, mine, tmp_path)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.undo()
    mine.unlink()
    other = small_recipe(shards, tmp_path / "o", steps=2, model={"actions": "none"})
    mine.symlink_to(train(other).resolve())
    with pytest.raises(CheckpointError, match="the base changed since"):
        train(recipe)
    mine.unlink()
    with pytest.raises(CheckpointError, match="adapters need their base"):
        load_run(recipe.run_folder)


def test_a_missing_library_is_told_before_anything_is_written(shards, base, tmp_path, monkeypatch):
    found = extras.distribution
    monkeypatch.setattr(extras, "distribution", lambda name: found(f"no-{name}"))
    for changes in ({}, {"lora": {}, "optimizer": "adamw8bit", "eps": 1e-8}):
        recipe = lora_recipe(shards, base, tmp_path, **changes)
        with pytest.raises(ConfigError, match=r"pip install 'cosmos-wds\[(peft|torchao)\]'"):
            train(recipe)
        assert not recipe.run_folder.exists()


def on_two_ranks(recipe, path):
    """Train in two processes; fails with what they said."""
    ended = forked.run_ranks(command(recipe, path), 2)
    assert ended.returncode == 0, ended.stderr
    return recipe.run_folder


@pytest.mark.slow
def test_adapters_on_two_ranks(shards, base, whole, tmp_path):
    recipe = lora_recipe(shards, base, tmp_path, parallel="ddp")
    folder = on_two_ranks(recipe, tmp_path / "r.toml")
    one, two = metrics(whole), metrics(folder)
    assert [x["loss"] for x in two] == pytest.approx([x["loss"] for x in one], rel=1e-5)


@pytest.mark.slow
def test_8_bits_in_shards_and_from_there_on_alone(shards, wide, tmp_path):
    """FSDP over two ranks, and from its second step on a single process."""
    model = {**WIDE, "base": str(wide)}
    changes = {**SAVINGS["8 bits"], **SAVINGS["average on the CPU"], "save_every": 2, "keep": 0}
    alone, two, on = (
        small_recipe(shards, tmp_path / n, steps=4, model=model, **changes, parallel=parallel)
        for n, parallel in (("a", "auto"), ("b", "fsdp"), ("b", "single"))
    )
    train(alone)
    folder = on_two_ranks(two, tmp_path / "r.toml")
    expected = [line["loss"] for line in metrics(alone.run_folder)]
    assert [line["loss"] for line in metrics(folder)] == pytest.approx(expected, rel=1e-4)
    checkpoints = folder / "checkpoints"
    held = held_names(checkpoint_folder(checkpoints, 4))
    assert held == held_names(checkpoint_folder(alone.run_folder / "checkpoints", 4))
    (checkpoints / LATEST).write_text(checkpoint_folder(checkpoints, 2).name)
    train(on)
    assert [line["loss"] for line in metrics(folder)] == pytest.approx(expected, rel=1e-4)
