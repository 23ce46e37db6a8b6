"""diffusers' class of the network, as an independent witness of ours."""

import pytest
import torch
import torch.nn.functional as F

diffusers = pytest.importorskip("diffusers")

from diffusers.models.transformers import transformer_cosmos  # noqa: E402


class Transforms:
    """The one function of torchvision that diffusers' class calls: resizing a mask to the latent.

    torchvision is built for one version of torch each, and none may be there for this one.
    """

    class functional:  # noqa: N801
        @staticmethod
        def resize(mask, size, interpolation):
            assert interpolation == "nearest"
            return F.interpolate(mask, size=size, mode="nearest")

    class InterpolationMode:
        NEAREST = "nearest"


@pytest.fixture(autouse=True)
def masks_without_torchvision(monkeypatch):
    monkeypatch.setattr(transformer_cosmos, "transforms", Transforms, raising=False)


def align_eps(model):
    """Normalise queries and keys with the original's epsilon: diffusers has 1e-5 for 1e-6."""
    for block in model.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = 1e-6


@torch.no_grad()
def run_diffusers(model, inputs, *, shared=None):
    """The output of diffusers' class for the inputs of ours.

    shared  (B, 3D) is added to the first value that `time_embed` returns, as actions are
    """

    def add(module, args, output):
        return (output[0] + shared, *output[1:])

    hook = model.time_embed.register_forward_hook(add) if shared is not None else None
    try:
        return model(
            inputs["x"],
            inputs["c_noise"],
            encoder_hidden_states=inputs["text"],
            fps=float(inputs["fps"][0]),
            condition_mask=inputs["given"],
            padding_mask=inputs["padding"],
            return_dict=False,
        )[0]
    finally:
        if hook:
            hook.remove()
