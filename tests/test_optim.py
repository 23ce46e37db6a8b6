"""Learning rate against the reference's, parameter groups, AdamW's rule and its state by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import CheckpointError
from cosmos_wds.recipe import DiffusionSettings, TrainSettings
from cosmos_wds.sizes import ModelSettings
from cosmos_wds.train.optim import (
    build_optimizer,
    is_decayed,
    load_optimizer_state,
    lr_factor,
    optimizer_state,
    parameter_groups,
    set_lr,
    trainable,
)

GOLDEN = load_file(Path(__file__).parent / "golden" / "lr_and_ema.safetensors")


def test_warmup_equals_the_reference():
    for step, factor in zip(GOLDEN["lr.steps"].tolist(), GOLDEN["lr.factor"].tolist(), strict=True):
        ours = lr_factor(step, steps=100_001, warmup=2500, decay_to=1.0)
        assert ours == pytest.approx(factor, rel=1e-12)
    for step, lr in enumerate(GOLDEN["lr.applied_first5_at_4e-4"].tolist()):
        ours = 4e-4 * lr_factor(step, steps=2000, warmup=2500, decay_to=1.0)
        assert ours == pytest.approx(lr, rel=1e-12)


def test_linear_decay_equals_the_reference():
    steps, factors = GOLDEN["lr2.steps"].tolist(), GOLDEN["lr2.factor"].tolist()
    for step, factor in zip(steps, factors, strict=True):
        if step >= 10:  # the small golden schedule warms up from 0.1, ours from 1e-6
            ours = lr_factor(step, steps=101, warmup=10, decay_to=0.2)
            assert ours == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (5, 0), (7, 3)])
def test_decay_ends_at_the_last_step_and_warmup_at_its_end(steps, warmup):
    factors = [lr_factor(s, steps=steps, warmup=warmup, decay_to=0.1) for s in range(steps)]
    assert factors[warmup] == 1.0
    assert all(0 < f <= 1 for f in factors)
    if steps > warmup + 1:
        assert factors[-1] == pytest.approx(0.1)


def small_denoiser(text_width: int = 8) -> Denoiser:
    settings = ModelSettings(
        width=16, heads=2, blocks=1, adaln_rank=4, text_width=text_width, latent_channels=4,
        max_frames=4, max_height=4, max_width=4,
    )  # fmt: skip
    model = Denoiser(settings, DiffusionSettings(), action_dims=7, with_text=text_width > 0)
    model.initialise(0)
    return model


def test_decay_acts_on_matrices_only():
    model = small_denoiser()
    decayed = {n for n, p in model.named_parameters() if is_decayed(n, p)}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or "position" in name or "logvar" in name or ".text" in name
        assert (name in decayed) != plain, name
    assert "net.blocks.0.attention.q.weight" in decayed
    assert "net.action_cond.fc1.weight" in decayed
    assert {n.split(".")[1] for n in decayed} >= {"patch", "noise", "blocks", "final"}


def test_groups_hold_every_parameter_once():
    named = dict(small_denoiser().named_parameters())
    for decay, expected in (("matrices", {0.1, 0.0}), ("all", {0.1})):
        groups = parameter_groups(named.items(), decay=decay, weight_decay=0.1)
        assert {g["weight_decay"] for g in groups} == expected
        ids = [id(p) for g in groups for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in named.values())


def test_update_is_the_references_rule():
    """One parameter, three steps, by hand (spec.md d.6)."""
    module = torch.nn.Linear(3, 2, bias=False)
    settings = TrainSettings(lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-10)
    optimizer = build_optimizer(module, settings)
    w = module.weight.detach().double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for k in range(3):
        lr = 1e-2 * (k + 1)
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(k))
        set_lr(optimizer, lr)
        module.weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        m_hat, v_hat = m / (1 - 0.9 ** (k + 1)), v / (1 - 0.99 ** (k + 1))
        w = w - lr * (m_hat / (v_hat.sqrt() + 1e-10) + 0.1 * w)
    torch.testing.assert_close(module.weight.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_state_goes_by_name_and_continues_bit_for_bit():
    first, second = (torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    second.load_state_dict(first.state_dict())
    settings = TrainSettings(lr=1e-2)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        for n, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + len(n)))
        optimizer.step()

    one = build_optimizer(first, settings)
    for seed in range(3):
        step(first, one, seed)
    saved = optimizer_state(one, trainable(first))
    assert set(saved) == {"weight", "bias"}
    second.load_state_dict(first.state_dict())
    two = build_optimizer(second, settings)
    load_optimizer_state(two, trainable(second), saved)
    for seed in range(3, 6):
        step(first, one, seed)
        step(second, two, seed)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_foreign_state_is_refused():
    model = torch.nn.Linear(4, 4)
    optimizer = build_optimizer(model, TrainSettings())
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="unknown parameters: scale"):
        load_optimizer_state(optimizer, trainable(model), {"scale": moments})
    with pytest.raises(CheckpointError, match=r"weight: \(2,\), but the parameter is \(4, 4\)"):
        load_optimizer_state(optimizer, trainable(model), {"weight": moments})
