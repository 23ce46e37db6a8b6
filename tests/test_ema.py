"""The power-function EMA against the reference's exponents, betas and a six-step trace."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_wds.errors import CheckpointError
from cosmos_wds.train.ema import Ema, beta, exponent

GOLDEN = load_file(Path(__file__).parent / "golden" / "lr_and_ema.safetensors")


@pytest.mark.parametrize("rate", [0.1, 0.05, 0.025])
def test_exponent_and_beta_equal_the_reference(rate):
    gamma = exponent(rate)
    assert gamma == pytest.approx(GOLDEN[f"ema.rate{rate}.exp"].item(), rel=1e-12)
    golden = GOLDEN[f"ema.rate{rate}.beta"].tolist()
    for step, value in zip(GOLDEN["ema.iterations"].tolist(), golden, strict=True):
        assert beta(step, gamma) == pytest.approx(value, rel=1e-9, abs=1e-300)


def test_trace_equals_the_reference():
    source = GOLDEN["ema.trace_src_bf16"].float()
    ema = Ema({"w": torch.full_like(source[0], 99.0)}, rate=0.1)
    for step, expected in enumerate(GOLDEN["ema.trace_ema_f32"]):
        ema.update({"w": source[step]}, step)
        torch.testing.assert_close(ema.average["w"], expected, rtol=2e-7, atol=2e-7)


def test_average_is_float32_and_leaves_the_weights_alone():
    model = torch.nn.BatchNorm1d(3).bfloat16()
    ema = Ema(dict(model.named_parameters()), rate=0.1)
    assert set(ema.average) == {"weight", "bias"}
    assert all(a.dtype == torch.float32 for a in ema.average.values())
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update(dict(model.named_parameters()), 5)
    assert 1 < ema.average["weight"][0] < 3
    assert model.weight[0] == 3


def test_load_refuses_what_does_not_fit():
    ema = Ema({"w": torch.zeros(2)}, rate=0.1)
    ema.load({"w": torch.ones(2)})
    assert ema.average["w"].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="w is missing or has another shape"):
        ema.load({"w": torch.ones(3)})
    with pytest.raises(CheckpointError, match="w is missing"):
        ema.load({})
