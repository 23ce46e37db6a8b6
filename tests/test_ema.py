"""The power-function EMA against the reference's exponents, betas and a six-step trace; others."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe import TrainSettings, recipe_from_table
from cosmos_wds.train import ema as ema_module
from cosmos_wds.train.ema import Ema, beta, build_ema, exponent
from tests.one_rank import mesh_of_one

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


def weights(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


SHAPES = {"a": (4, 3), "b": (7,), "c": (2, 2, 2)}
KINDS = {"power": {}, "plain": {"ema": "plain", "ema_decay": 0.9}}


def test_plain_keeps_a_constant_share():
    ema = build_ema(weights(0), TrainSettings(**KINDS["plain"]))
    expected = weights(0)
    for step in range(5):
        ema.update(weights(step + 1), step)
        expected = {n: 0.9 * e + 0.1 * weights(step + 1)[n] for n, e in expected.items()}
        for name, average in ema.average.items():
            torch.testing.assert_close(average, expected[name])


def test_none_averages_nothing():
    ema = build_ema(weights(0), TrainSettings(ema="none"))
    ema.update(weights(1), 0)
    ema.wait()
    assert ema.average == {}


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_cpus_memory_it_is_the_same_bit_for_bit(kind):
    settings = TrainSettings(**KINDS[kind])
    beside = build_ema(weights(0), settings)
    apart = build_ema(weights(0), settings.model_copy(update={"ema_device": "cpu"}))
    for step in range(6):
        beside.update(weights(step + 1), step)
        apart.update(weights(step + 1), step)
    for name, average in beside.average.items():
        assert torch.equal(average, apart.average[name]), name


def test_an_update_goes_on_in_the_background_until_it_is_waited_for(monkeypatch):
    go, took = threading.Event(), ema_module._Ferry._take
    monkeypatch.setattr(ema_module._Ferry, "_take", lambda *a: (go.wait(60), took(*a))[1])
    ema = build_ema(weights(0), TrainSettings(**KINDS["plain"], ema_device="cpu"))
    ema.update(weights(1), 0)
    assert torch.equal(ema._average["a"], weights(0)["a"])
    go.set()
    ema.wait()
    torch.testing.assert_close(ema._average["a"], 0.9 * weights(0)["a"] + 0.1 * weights(1)["a"])


def test_what_fails_in_the_background_is_told():
    ema = build_ema(weights(0), TrainSettings(ema_device="cpu"))
    ema.update({**weights(1), "b": torch.ones(5)}, 1)
    with pytest.raises(RuntimeError):
        ema.wait()


@pytest.mark.parametrize("device", ["same", "cpu"])
def test_of_shards_the_average_is_sharded(device):
    settings = TrainSettings(**KINDS["plain"], ema_device=device)
    plain, model = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)
    model.load_state_dict(plain.state_dict())
    with mesh_of_one() as mesh:
        fully_shard(model, mesh=mesh)
        one = build_ema(dict(plain.named_parameters()), settings)
        two = build_ema(dict(model.named_parameters()), settings)
        for step in range(3):
            for network, ema in ((plain, one), (model, two)):
                ema.wait()
                for parameter in network.parameters():
                    parameter.data.mul_(1.5)
                ema.update(dict(network.named_parameters()), step)
        for name, average in two.average.items():
            assert isinstance(average, DTensor)
            assert average.placements == model.get_parameter(name).placements
            assert torch.equal(average.full_tensor(), one.average[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_a_gpu_to_the_cpus_memory():
    settings = TrainSettings(**KINDS["plain"])
    beside = build_ema(weights(0), settings)
    on_gpu = {name: tensor.cuda() for name, tensor in weights(0).items()}
    apart = build_ema(on_gpu, settings.model_copy(update={"ema_device": "cpu"}))
    for step in range(6):
        beside.update(weights(step + 1), step)
        apart.wait()
        for name, tensor in on_gpu.items():
            tensor.copy_(weights(step + 1)[name])
        apart.update(on_gpu, step)
    for name, average in beside.average.items():
        assert apart.average[name].device.type == "cpu"
        assert torch.equal(average, apart.average[name]), name


def test_an_average_that_is_not_there_lies_nowhere():
    with pytest.raises(ConfigError, match='ema_device = "cpu": with ema = "none" there is no'):
        recipe_from_table({"train": {"ema": "none", "ema_device": "cpu"}}, origin="test")
