"""Names, reading and the key audit: NVIDIA's released names map one to one, damage is told."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.complete import shapes
from cosmos_wds.model.names import from_released, released_name, to_released
from cosmos_wds.model.weight_files import read_state
from cosmos_wds.model.weights import load_state
from cosmos_wds.recipe import DiffusionSettings
from cosmos_wds.sizes import ModelSettings, model_settings

SMALL = {
    "width": 32,
    "heads": 2,
    "blocks": 2,
    "adaln_rank": 4,
    "text_width": 8,
    "max_frames": 4,
    "max_height": 4,
    "max_width": 4,
}


def denoiser(with_text=True, **changes):
    made = Denoiser(
        ModelSettings(**(SMALL | changes)), DiffusionSettings(), action_dims=7, with_text=with_text
    )
    made.initialise(0)
    return made


def names_of(size, preset):
    """Released names and shapes of a network of true size, without allocating it."""
    found = shapes(model_settings(size, preset), action_dims=7)
    return {released_name(name): tuple(shape) for name, shape in found.items()}


def parameters(shapes):
    return sum(torch.Size(shape).numel() for n, shape in shapes.items() if "logvar.0" not in n)


def test_the_7b_has_every_released_name_and_shape():
    golden = json.loads((Path(__file__).parent / "golden" / "manifest_7b_names.json").read_text())
    wanted = {name: tuple(shape) for name, shape in golden.items()}
    del wanted["net.pos_embedder.seq"]  # a range that is computed, not stored
    ours = names_of("cosmos-predict1-7b", "reference")
    assert ours == wanted
    assert parameters(ours) == 7_503_415_424


def test_the_14b_has_the_released_number_of_tensors_and_parameters():
    ours = names_of("cosmos-predict1-14b", "reference")
    assert len(ours) + 1 == 739  # and the range of positions
    assert parameters(ours) == 14_685_064_320


def test_the_base_has_574_tensors():
    golden = json.loads((Path(__file__).parent / "golden" / "manifest_7b_names.json").read_text())
    ours = names_of("cosmos-predict1-7b", "ours")
    base = {n: s for n, s in ours.items() if "action_embedder" not in n}
    assert len(base) + 1 == 574
    assert parameters(base) == 7_236_208_768
    assert set(golden) - set(base) - {"net.pos_embedder.seq"} == set(ours) - set(base)


def test_ours_has_the_three_position_tables_more():
    ours = names_of("cosmos-predict1-7b", "ours")
    assert parameters(ours) == 7_504_922_752
    tables = {n for n in ours if "extra_pos_embedder" in n}
    assert {ours[n] for n in tables} == {(128, 4096), (120, 4096)}
    assert len(tables) == 3


def test_names_there_and_back():
    state = denoiser().state_dict()
    back, unknown = from_released(to_released(state))
    assert not unknown
    assert back.keys() == state.keys()


def test_a_file_without_prefix_and_with_baggage_loads(tmp_path):
    source, target = denoiser(), denoiser()
    with torch.no_grad():
        for p in source.parameters():
            p.normal_()
    state = {k.removeprefix("net."): v for k, v in to_released(source.state_dict()).items()}
    state["blocks.block0.blocks.0.block.attn.attn_op._extra_state"] = torch.zeros(1)
    state["pos_embedder.seq"] = torch.arange(4.0)
    torch.save(state, tmp_path / "model.pt")
    audit = load_state(target, read_state(tmp_path / "model.pt"), origin="model.pt")
    assert (audit.loaded, audit.wanted, audit.baggage) == (61, 61, 2)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_a_base_without_actions_leaves_text_on_disk_and_actions_new(tmp_path):
    base = denoiser(actions="none")
    save_file(to_released(base.state_dict()), tmp_path / "base.safetensors")
    target = denoiser(with_text=False)
    audit = load_state(
        target,
        read_state(tmp_path / "base.safetensors"),
        origin="base",
        may_lack=("net.action_",),
    )
    assert "8 new (net.action_cond, net.action_shared)" in str(audit)
    assert "16 text tensors left on disk" in str(audit)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"width": 64}, "another model size"),
        ({"blocks": 3}, "unexpected"),
        ({"blocks": 1}, "missing"),
        ({"actions": "none"}, "8 tensors missing"),
    ],
)
def test_another_network_is_refused(change, said):
    state = to_released(denoiser(**change).state_dict())
    with pytest.raises(CheckpointError, match=said):
        load_state(denoiser(), state, origin="x.pt")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_damaged_and_hostile_files_are_refused(tmp_path):
    good = tmp_path / "good.pt"
    torch.save({"net.a": torch.zeros(1000)}, good)
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:1500])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump({"net.a": Evil(tmp_path / "owned")}, file)
    torch.save({"net.a": Evil(tmp_path / "owned")}, tmp_path / "evil_zip.pt")
    for name in ("cut.pt", "text.pt", "cut.safetensors", "evil.pt", "evil_zip.pt", "absent.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
    assert not (tmp_path / "owned").exists()
