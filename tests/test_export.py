"""A run's weights as a folder that stands alone: complete, and loadable where they are to load."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model.complete import released
from cosmos_wds.model.names import TEXT, from_released
from cosmos_wds.model.weight_files import read_state
from cosmos_wds.recipe import DiffusionSettings, recipe_from_table
from cosmos_wds.sizes import ModelSettings
from cosmos_wds.train import export as exporting
from cosmos_wds.train.export import ExportRequest, export
from cosmos_wds.train.loop import train
from cosmos_wds.train.run import load_run
from tests.training import small_recipe, small_shards

TEXT_WIDTH = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("export") / "data")


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A run of a network without text, from nothing."""
    return train(small_recipe(shards, tmp_path_factory.mktemp("plain"), steps=2))


def with_base(shards, folder, blocks=28):
    """The 7B's 574 tensors at a reduced width, in the reference's form, and a recipe from them."""
    recipe = small_recipe(shards, folder, steps=2)
    table = recipe.model_dump(mode="json")
    base = str(folder / "base.pt")
    table["model"] |= {"text_width": TEXT_WIDTH, "blocks": blocks, "base": base}
    recipe = recipe_from_table(table, origin="test")
    settings = ModelSettings(**(recipe.model.model_dump() | {"actions": "none"}))
    made = Denoiser(settings, DiffusionSettings(), action_dims=7, with_text=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            tensor.normal_(std=1 if "logvar" in name else 0.2, generator=generator)
    state = released(made.state_dict(), settings)
    torch.save({n: t.to(torch.bfloat16) for n, t in state.items()}, folder / "base.pt")
    return recipe


@pytest.fixture(scope="module")
def post_trained(shards, tmp_path_factory):
    """The reference's way: a base with text in bfloat16, two steps with actions."""
    folder = tmp_path_factory.mktemp("post")
    return train(with_base(shards, folder)), folder / "base.pt"


@pytest.fixture(scope="module")
def small_post_trained(shards, tmp_path_factory):
    """The same of two blocks."""
    folder = tmp_path_factory.mktemp("small_post")
    return train(with_base(shards, folder, blocks=2)), folder / "base.pt"


@pytest.mark.parametrize("weights", ["ema", "reg"])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_the_folder_loads_as_the_run_does(run, form, weights, tmp_path):
    folder = export(ExportRequest(run=str(run), form=form, output=tmp_path / "a", weights=weights))
    there, here = load_run(run, weights=weights), load_run(folder)
    assert here.contract == there.contract
    assert here.tokenizer.digest == there.tokenizer.digest
    assert here.recipe == there.recipe
    for name, tensor in there.denoiser.state_dict().items():
        exported = here.denoiser.state_dict()[name].float()
        assert torch.equal(exported, tensor.to(torch.bfloat16).float()), name
    assert (folder / "README.md").read_text().count("digest") >= 3


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_the_text_path_is_written_back_from_the_base(post_trained, form, tmp_path):
    run, base = post_trained
    assert not any(TEXT.match(n) for n in load_run(run).denoiser.state_dict())
    folder = export(ExportRequest(run=str(run), form=form, output=tmp_path / "a"))
    state = read_state(next(p for p in folder.iterdir() if p.stem == "model"))
    wanted = torch.load(base, weights_only=True)
    actions = {n for n in state if "action_embedder" in n}
    assert state.keys() - actions == wanted.keys()
    assert len(actions) == 8
    assert {t.dtype for t in state.values()} == {torch.bfloat16}
    text = [n for n in wanted if ".blocks.1." in n]
    assert (len(wanted), len(text)) == (574, 28 * 8)
    for name in [*text, "net.pos_embedder.seq"]:
        assert torch.equal(state[name], wanted[name]), name
    load_run(folder)


def test_a_base_that_has_moved_is_asked_for(small_post_trained, tmp_path):
    run, base = small_post_trained
    moved = tmp_path / "moved.pt"
    base.rename(moved)
    try:
        with pytest.raises(CheckpointError, match=r"base\.pt, which cannot be read; name it with"):
            export(ExportRequest(run=str(run), output=tmp_path / "a"))
        assert not (tmp_path / "a").exists()
        export(ExportRequest(run=str(run), output=tmp_path / "a", base=str(moved)))
    finally:
        moved.rename(base)


def test_the_text_of_a_base_s_base_is_found(small_post_trained, shards, tmp_path):
    first, _ = small_post_trained
    table = small_recipe(shards, tmp_path, steps=2).model_dump(mode="json")
    table["model"] |= {"text_width": TEXT_WIDTH, "blocks": 2, "base": str(first)}
    second = train(recipe_from_table(table, origin="test"))
    one, two = (
        export(ExportRequest(run=str(r), output=tmp_path / n))
        for r, n in ((first, "one"), (second, "two"))
    )
    state, other = (load_file(f / "model.safetensors") for f in (one, two))
    text = [n for n in state if ".blocks.1." in n]
    assert len(text) == 2 * 8 and all(torch.equal(state[n], other[n]) for n in text)


def test_many_safetensors_are_split_and_read_again(small_post_trained, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "LARGEST", "20KB")
    run, _ = small_post_trained
    folder = export(ExportRequest(run=str(run), output=tmp_path / "a"))
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    whole = export(ExportRequest(run=str(run), form="pt", output=tmp_path / "b"))
    split = read_state(folder / "model.safetensors.index.json")
    for name, tensor in read_state(whole / "model.pt").items():
        assert torch.equal(split[name], tensor), name
    load_run(folder)


def test_what_cannot_be_exported_is_told(run, tmp_path):
    with pytest.raises(CheckpointError, match="no such run"):
        export(ExportRequest(run=str(tmp_path / "absent"), output=tmp_path / "alone"))
    bare = tmp_path / "bare.safetensors"
    save_file({"net.a": torch.zeros(1)}, bare)
    with pytest.raises(CheckpointError, match="name a run's folder"):
        export(ExportRequest(run=str(bare), output=tmp_path / "alone"))
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="--overwrite"):
        export(ExportRequest(run=str(run), output=tmp_path / "there"))
    export(ExportRequest(run=str(run), output=tmp_path / "there", overwrite=True))
    assert (tmp_path / "there" / "model.safetensors").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        export(ExportRequest(run=str(run), output=tmp_path / "file" / "alone"))


def test_numbers_that_do_not_fit_are_told(shards, tmp_path):
    run = train(small_recipe(shards, tmp_path, steps=2))
    checkpoint = next((run / "checkpoints").glob("*_ema_model.pt"))
    state = torch.load(checkpoint, weights_only=True)
    name = next(iter(state))
    torch.save({**state, name: torch.full_like(state[name], 1e6)}, checkpoint)
    with pytest.raises(CheckpointError, match="does not fit torch.float16"):
        export(ExportRequest(run=str(run), dtype="float16", output=tmp_path / "alone"))
    assert not (tmp_path / "alone").exists()
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize("which", ["run", "post_trained"])
def test_diffusers_loads_the_folder_and_gives_the_same_output(which, request, tmp_path):
    """The reduced network's whole way: reference's form -> 2 steps -> export -> diffusers."""
    from tests import diffusers_network as theirs

    given = request.getfixturevalue(which)
    run = given if which == "run" else given[0]
    folder = export(
        ExportRequest(run=str(run), form="diffusers", dtype="float32", output=tmp_path / "a")
    )
    model = theirs.transformer_cosmos.CosmosTransformer3DModel.from_pretrained(folder).eval()
    loaded = load_run(run)
    net = loaded.denoiser.net.float()
    inputs = {
        "x": torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        "c_noise": torch.tensor([0.1, -0.4]),
        "given": torch.zeros(2, 1, 3, 8, 8),
        "fps": torch.tensor([5.0, 5.0]),
        "padding": torch.zeros(1, 1, 8, 8),
    }
    width = model.config.text_embed_dim
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(theirs.transformer_cosmos, "transforms", theirs.Transforms, raising=False)
        out = theirs.run_diffusers(model, {**inputs, "text": torch.zeros(2, 5, width)})
        ours = net(**{**inputs, "padding": None})
    assert ((out - ours).abs().max() / ours.std()).item() <= 1e-5
    actions = load_file(folder / "action_embedder.safetensors")
    named, unknown = from_released(actions)
    assert len(named) == 8 and not unknown
    for name, tensor in named.items():
        assert torch.equal(tensor, loaded.denoiser.state_dict()[name].float()), name
    config = json.loads((folder / "config.json").read_text())
    assert config["in_channels"] == 17
