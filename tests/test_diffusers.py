"""The network against diffusers' CosmosTransformer3DModel, with every parameter random."""

import pytest
import torch

from cosmos_wds.model.complete import diffusers as to_diffusers
from cosmos_wds.model.complete import diffusers_config
from cosmos_wds.model.dit import CosmosDiT
from cosmos_wds.sizes import ModelSettings
from tests.diffusers_network import (  # noqa: F401 (a fixture)
    align_eps,
    masks_without_torchvision,
    run_diffusers,
    transformer_cosmos,
)

NETWORKS = {
    "two frames": {"width": 64, "heads": 2, "frames": 2},
    "no tables": {"width": 72, "heads": 3, "frames": 2, "position_tables": False},
    "ratios": {"width": 64, "heads": 4, "frames": 4, "ratios": (2.0, 3.0, 2.0)},
    "many frames": {"width": 64, "heads": 2, "frames": 6},
}


def make(numbers):
    ratios = numbers.get("ratios", (2.0, 1.0, 1.0))
    settings = ModelSettings(
        width=numbers["width"],
        heads=numbers["heads"],
        blocks=3,
        adaln_rank=8,
        text_width=24,
        actions="reference",
        position_tables=numbers.get("position_tables", True),
        max_frames=6,
        max_height=8,
        max_width=8,
        rope_ratio_t=ratios[0],
        rope_ratio_h=ratios[1],
        rope_ratio_w=ratios[2],
    )
    net = CosmosDiT(settings, action_dims=7, with_text=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            spread = 0.5 if parameter.ndim == 1 else 1.5 / parameter.shape[1] ** 0.5
            parameter.normal_(std=spread, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1)
            assert parameter.abs().min() > 0
    return net.eval()


def make_inputs(frames, text_width=24, batch=2):
    g = torch.Generator().manual_seed(1)
    shape = (batch, 1, frames, 8, 12)
    return {
        "x": torch.randn(batch, 16, *shape[2:], generator=g),
        "c_noise": torch.randn(batch, generator=g),
        "given": (torch.rand(shape, generator=g) > 0.5).float(),
        "fps": torch.full((batch,), 10.0),
        "padding": (torch.rand(1, 1, 11, 13, generator=g) > 0.3).float(),
        "text": torch.randn(batch, 5, text_width, generator=g),
    }


def error(ours, theirs):
    """Largest difference, relative to the output's spread."""
    return ((ours - theirs).abs().max() / theirs.std()).item()


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def pair(request):
    net = make(request.param)
    model = transformer_cosmos.CosmosTransformer3DModel.from_config(
        {k: v for k, v in diffusers_config(net.settings).items() if k != "_class_name"}
    )
    weights, actions = to_diffusers({f"net.{n}": t for n, t in net.state_dict().items()})
    model.load_state_dict(weights, strict=True)
    assert len(actions) == 8
    return net, model.eval(), make_inputs(request.param["frames"])


@torch.no_grad()
def test_outputs_agree(pair):
    net, model, inputs = pair
    ours = net(**{**inputs, "padding": inputs["padding"].expand(2, -1, -1, -1)})
    assert error(ours, run_diffusers(model, inputs)) <= 1e-5  # though its epsilon is 1e-5
    align_eps(model)
    assert error(ours, run_diffusers(model, inputs)) <= 1e-5


@torch.no_grad()
def test_outputs_agree_under_actions(pair):
    net, model, inputs = pair
    frames = inputs["x"].shape[2]
    action = torch.randn(2, frames - 1, 7, generator=torch.Generator().manual_seed(2))
    padding = inputs["padding"].expand(2, -1, -1, -1)
    ours = net(**{**inputs, "padding": padding}, action=action)
    align_eps(model)
    theirs = run_diffusers(model, inputs, shared=net.action_shared(action[:, 0]))
    assert error(ours, theirs) <= 1e-5
    assert error(ours, run_diffusers(model, inputs)) > 0.01
