"""Whole checkpoints: the 574 tensors of the base, number types, memory, and FSDP shards."""

import json
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.complete import released
from cosmos_wds.model.names import to_released
from cosmos_wds.model.weight_files import read_state
from cosmos_wds.model.weights import load_state
from cosmos_wds.recipe import DiffusionSettings
from cosmos_wds.sizes import ModelSettings
from tests import forked

LIKE_7B = {
    "width": 16,
    "heads": 2,
    "blocks": 28,
    "adaln_rank": 2,
    "text_width": 8,
    "max_frames": 128,
    "max_height": 120,
    "max_width": 120,
}
"""The 7B's number of tensors at a reduced width."""


def denoiser(*, with_text=False, device="cpu", **changes):
    with torch.device("meta"):
        made = Denoiser(
            ModelSettings(**(LIKE_7B | changes)),
            DiffusionSettings(),
            action_dims=7,
            with_text=with_text,
        )
    return made if device == "meta" else made.to_empty(device=device)


def randomised(**changes):
    made = denoiser(**changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.normal_(generator=generator)
    return made


@pytest.fixture(scope="module")
def base():
    """The base as NVIDIA releases it: bfloat16, 574 tensors, no actions."""
    made = randomised(with_text=True, actions="none")
    state = released(made.state_dict(), made.net.settings)
    return {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}


def same(loaded, state):
    theirs = to_released(loaded.state_dict())
    for name, tensor in theirs.items():
        if name in state:
            assert torch.equal(tensor, state[name].float()), name


def test_the_base_loads_whole_and_lacks_exactly_the_eight_action_tensors(base, tmp_path):
    assert len(base) == 574
    torch.save(base, tmp_path / "model.pt")
    target = denoiser(device="meta")
    audit = load_state(
        target, read_state(tmp_path / "model.pt"), origin="model.pt", may_lack=("net.action_",)
    )
    assert len(audit.new) == 8
    assert audit.loaded + len(audit.text) + audit.baggage == 574
    assert (audit.baggage, len(audit.text)) == (1, 28 * 8)
    same(target, base)
    for name, tensor in target.state_dict().items():
        assert tensor.isnan().any() == (name in audit.new), name


def test_the_reference_s_network_refuses_the_base_s_tables_by_name(base):
    with pytest.raises(CheckpointError, match="3 unexpected.*position_tables"):
        load_state(
            denoiser(device="meta", position_tables=False),
            base,
            origin="model.pt",
            may_lack=("net.action_",),
        )


@pytest.mark.parametrize("form", ["prefix", "bare", "nested", "legacy", "baggage", "safetensors"])
def test_every_form_of_a_file_loads(base, tmp_path, form):
    state, path = base, tmp_path / "model.pt"
    if form == "bare":
        state = {n.removeprefix("net."): t for n, t in base.items()}
    if form == "baggage":
        import io

        extra = "net.blocks.block0.blocks.0.block.attn.attn_op._extra_state"
        state = {**base, extra: io.BytesIO(b"x"), f"{extra[:-12]}1._extra_state": None}
    if form == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(base, path)
    else:
        saved = {"model": state, "ema": {}} if form == "nested" else state
        torch.save(saved, path, _use_new_zipfile_serialization=form != "legacy")
    target = denoiser(device="meta", actions="none")
    audit = load_state(target, read_state(path), origin="x")
    assert audit.loaded == audit.wanted
    same(target, base)


def test_split_safetensors_load_and_a_missing_or_short_one_is_named(base, tmp_path):
    names = list(base)
    halves = {"a.safetensors": names[:300], "b.safetensors": names[300:]}
    for file, share in halves.items():
        save_file({n: base[n] for n in share}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    where = {n: file for file, share in halves.items() for n in share}
    index.write_text(json.dumps({"weight_map": where}))
    assert read_state(index).keys() == base.keys()
    save_file({n: base[n] for n in names[300:-1]}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: lacks 1 tensors"):
        read_state(index)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors: missing.* 274 of 574"):
        read_state(index)
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        read_state(index)


def test_mixed_number_types_are_told_and_others_refused(base):
    mixed = {n: t.float() if "final_layer" in n else t for n, t in base.items()}
    audit = load_state(denoiser(device="meta", actions="none"), mixed, origin="x")
    assert "mixes number types: 346 bfloat16, 3 float32" in str(audit)


def test_quantised_weights_are_refused(base, tmp_path):
    name = "net.final_layer.linear.weight"
    torch.save({**base, name: base[name].to(torch.int8)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="final_layer.linear.weight holds int8"):
        read_state(tmp_path / "model.pt")


def test_nothing_is_changed_by_a_file_that_does_not_fit(base):
    target = randomised(actions="none")
    before = {n: t.clone() for n, t in target.state_dict().items()}
    name = "net.final_layer.linear.weight"
    with pytest.raises(CheckpointError, match="another model size"):
        load_state(target, {**base, name: base[name][:, :3]}, origin="x")
    for n, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[n])


LOADER = """
    import os, resource, sys, torch
    from pathlib import Path
    from cosmos_wds.diffusion.edm import Denoiser
    from cosmos_wds.model.weight_files import read_state
    from cosmos_wds.model.weights import load_state
    from cosmos_wds.recipe import DiffusionSettings
    from cosmos_wds.sizes import ModelSettings

    path, kept = Path(sys.argv[1]), getattr(torch, sys.argv[2])
    settings = ModelSettings(width=1088, heads=17, actions="none")
    with torch.device("meta"):
        made = Denoiser(settings, DiffusionSettings(), action_dims=7, with_text=True).to(kept)
    if not path.exists():
        state = made.to_empty(device="cpu").state_dict()
        from cosmos_wds.model.names import to_released
        torch.save({n: t.fill_(1) for n, t in to_released(state).items()}, path)
        sys.exit()

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before = peak()
    audit = load_state(made, read_state(path), origin="x")
    held = sum(t.nbytes for t in made.state_dict().values())
    assert all(bool((t == 1).all()) for t in made.state_dict().values())
    print(os.path.getsize(path), held, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of memory")
def test_two_gigabytes_load_in_little_more_memory_than_they_take(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(LOADER), tmp_path / "model.pt"]
    assert forked.run([*command, "float32"]).returncode == 0
    for kept in ("float32", "bfloat16"):
        done = forked.run([*command, kept])
        assert done.returncode == 0, done.stderr
        size, held, peak = map(int, done.stdout.split())
        assert size > 2e9
        assert peak <= 1.15 * held, f"{kept}: {peak / held:.2f}"


RANK = """
    import sys, torch, torch.distributed as dist
    from pathlib import Path
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from tests.test_loading import denoiser
    from cosmos_wds.model.weight_files import read_state
    from cosmos_wds.model.weights import load_state
    from cosmos_wds.model.names import to_released

    dist.init_process_group("gloo")
    made = denoiser(device="meta", actions="none")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in made.net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(made, mesh=mesh)
    made.to_empty(device="cpu")
    audit = load_state(made, read_state(Path(sys.argv[1])), origin="x")
    assert audit.loaded == audit.wanted
    wanted = read_state(Path(sys.argv[1]))
    for name, tensor in to_released(made.state_dict()).items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert torch.equal(whole, wanted[name].float()), name
    patch = made.net.patch.weight
    assert patch.to_local().shape[0] * 2 == patch.shape[0]
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_file_loads_straight_into_fsdp_shards(base, tmp_path):
    torch.save(base, tmp_path / "model.pt")
    script = [sys.executable, "-c", textwrap.dedent(RANK)]
    done = forked.run_ranks([*script, tmp_path / "model.pt"], 2)
    assert done.returncode == 0, done.stderr[-2000:]
