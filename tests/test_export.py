"""A run's weights as a folder that stands alone: what is in it loads as the run does."""

import pytest
import torch
from safetensors.torch import load_file

from cosmos_wds.errors import CheckpointError
from cosmos_wds.train.export import export
from cosmos_wds.train.loop import train
from cosmos_wds.train.run import load_run
from tests.training import small_recipe, small_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return train(small_recipe(small_shards(folder / "data"), folder, steps=2))


@pytest.mark.parametrize("weights", ["ema", "reg"])
def test_the_folder_loads_as_the_run_does(run, weights, tmp_path):
    path = export(run, tmp_path / "alone", weights=weights)
    there, here = load_run(run, weights=weights), load_run(path.parent)
    assert here.contract == there.contract
    assert here.tokenizer.digest == there.tokenizer.digest
    assert here.recipe == there.recipe
    for name, tensor in there.denoiser.state_dict().items():
        exported = here.denoiser.state_dict()[name]
        assert torch.equal(exported, tensor.half().float()), name
    assert {t.dtype for t in load_file(path).values()} == {torch.float16}


def test_what_cannot_be_exported_is_told(run, tmp_path):
    with pytest.raises(CheckpointError, match="no such run"):
        export(tmp_path / "absent", tmp_path / "alone")
    checkpoint = next((run / "checkpoints").glob("*_ema_model.pt"))
    state = torch.load(checkpoint, weights_only=True)
    name = next(iter(state))
    torch.save({**state, name: torch.full_like(state[name], 1e6)}, checkpoint)
    with pytest.raises(CheckpointError, match="does not fit float16"):
        export(run, tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
