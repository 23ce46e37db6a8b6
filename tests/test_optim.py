"""Learning rate as the reference's, parameter groups, AdamW's rule and state, also in 8 bits."""

from contextlib import nullcontext
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cosmos_wds.diffusion.edm import Denoiser
from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe import DiffusionSettings, TrainSettings, recipe_from_table
from cosmos_wds.sizes import ModelSettings
from cosmos_wds.train import extras
from cosmos_wds.train.extras import check_extras
from cosmos_wds.train.optim import (
    Offloaded,
    build_optimizer,
    fill_state,
    has_8_bit_moments,
    is_decayed,
    lr_factor,
    optimizer_state,
    parameter_groups,
    set_lr,
    trainable,
)
from tests.one_rank import mesh_of_one

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


KINDS = {"adamw": {}, "adamw8bit": {"optimizer": "adamw8bit", "eps": 1e-8}}


class Layers(torch.nn.Module):
    """One matrix for 8 bits, one with too few rows, a bias and a vector."""

    def __init__(self):
        super().__init__()
        self.large = torch.nn.Linear(512, 320)
        self.low = torch.nn.Linear(256, 8, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(512))


def layers() -> Layers:
    model = Layers()
    for number, parameter in enumerate(model.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator(number))
    return model


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(model: torch.nn.Module, optimizer, seed: int, lr: float = 1e-2) -> None:
    for number, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=generator(100 * seed + number)).to(p.device)
    set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def tensors_of(optimizer, model):
    state = optimizer_state(optimizer, trainable(model))
    return {f"{name}.{key}": t for name, kept in state.items() for key, t in kept.items()}


def torchaos(model):
    """torchao's own AdamW8bit, which would be compiled, run as it is written."""
    from torchao.optim import AdamW8bit

    settings = TrainSettings(**KINDS["adamw8bit"])
    groups = parameter_groups(
        trainable(model).items(), decay=settings.decay, weight_decay=settings.weight_decay
    )
    optimizer = AdamW8bit(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_by_name_and_continues_bit_for_bit(kind, tmp_path):
    settings = TrainSettings(**KINDS[kind])
    first, second = layers(), layers()
    one = build_optimizer(first, settings)
    for seed in range(3):
        step(first, one, seed)
    held = tensors_of(one, first)
    assert all(type(tensor) is torch.Tensor for tensor in held.values())
    save_file(held, tmp_path / "state.safetensors")
    second.load_state_dict(first.state_dict())
    two = build_optimizer(second, settings)
    targets, saved = tensors_of(two, second), load_file(tmp_path / "state.safetensors")
    assert targets.keys() == saved.keys()
    for name, tensor in targets.items():
        assert not tensor.any(), name
        tensor.copy_(saved[name])
    for seed in range(3, 6):
        step(first, one, seed)
        step(second, two, seed)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    for name, tensor in tensors_of(one, first).items():
        assert torch.equal(tensor, tensors_of(two, second)[name]), name


def test_which_moments_are_in_8_bits_and_how_they_are_kept():
    model = layers()
    optimizer = build_optimizer(model, TrainSettings(**KINDS["adamw8bit"]))
    step(model, optimizer, 0)
    state = optimizer_state(optimizer, trainable(model))
    assert {name for name, p in model.named_parameters() if has_8_bit_moments(p)} == {
        "large.weight"
    }
    large = state.pop("large.weight")
    assert {k: (tuple(t.shape), t.dtype) for k, t in large.items()} == {
        "step": ((), torch.float32),
        "exp_avg": ((320, 512), torch.uint8),
        "exp_avg_scale": ((320, 2), torch.float32),
        "exp_avg_sq": ((320, 512), torch.uint8),
        "exp_avg_sq_scale": ((320, 2), torch.float32),
    }
    for name, kept in state.items():
        assert set(kept) == {"step", "exp_avg", "exp_avg_sq"}, name
        assert kept["exp_avg"].dtype == torch.float32


def test_the_optimizer_finds_its_state_and_does_not_make_another():
    """torch and torchao make what is missing at the first step: the keys must be theirs."""
    for kind, theirs in (("adamw", None), ("adamw8bit", torchaos)):
        model = layers()
        optimizer = build_optimizer(model, TrainSettings(**KINDS[kind]))
        before = {name: id(p_state) for name, p_state in optimizer.state.items()}
        ours = {key: type(t) for key, t in optimizer.state[model.large.weight].items()}
        step(model, optimizer, 0)
        assert {name: id(p_state) for name, p_state in optimizer.state.items()} == before, kind
        optimizer.state.clear()
        optimizer = theirs(model) if theirs else optimizer
        step(model, optimizer, 1)
        made = {key: type(t) for key, t in optimizer.state[model.large.weight].items()}
        assert ours == made, kind


def test_8_bits_step_as_float32_does_to_their_precision():
    models = {kind: layers() for kind in KINDS}
    optimizers = {
        kind: build_optimizer(model, TrainSettings(**{**KINDS[kind], "eps": 1e-8}))
        for kind, model in models.items()
    }
    for seed in range(10):
        for kind, model in models.items():
            step(model, optimizers[kind], seed)
    moved = models["adamw"].large.weight - layers().large.weight
    apart = models["adamw8bit"].large.weight - models["adamw"].large.weight
    assert 0 < apart.norm() / moved.norm() < 0.03
    torch.testing.assert_close(models["adamw8bit"].scale, models["adamw"].scale)


@pytest.mark.parametrize("kind", KINDS)
def test_the_learning_rate_is_taken_over(kind):
    model = layers()
    optimizer = build_optimizer(model, TrainSettings(**KINDS[kind], weight_decay=0.5))
    step(model, optimizer, 0, lr=0.0)
    for one, two in zip(model.parameters(), layers().parameters(), strict=True):
        assert torch.equal(one, two)
    step(model, optimizer, 1, lr=1e-3)
    moved = (model.scale - layers().scale).abs().max().item()
    assert moved == pytest.approx(1e-3, rel=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_parameters_have_sharded_state(kind):
    """As FSDP2 shards them: the same steps, and state in DTensors split as the parameters are."""
    settings = TrainSettings(**KINDS[kind])
    plain, model = layers(), layers()
    with mesh_of_one() as mesh:
        fully_shard(model, mesh=mesh)
        one, two = build_optimizer(plain, settings), build_optimizer(model, settings)
        for seed in range(3):
            step(plain, one, seed)
            for number, p in enumerate(model.parameters()):
                whole = torch.randn(p.shape, generator=generator(100 * seed + number))
                p.grad = distribute_tensor(whole, p.device_mesh, p.placements)
            set_lr(two, 1e-2)
            two.step()
        for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b.full_tensor()), name
        for name, kept in optimizer_state(two, trainable(model)).items():
            parameter = model.get_parameter(name)
            for key, tensor in kept.items():
                if key != "step":
                    assert isinstance(tensor, DTensor) and tensor.placements == parameter.placements
        whole, sharded = tensors_of(one, plain), tensors_of(two, model)
        for name, tensor in sharded.items():
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            assert torch.equal(tensor, whole[name]), name


class FakeCuda:
    """Of torch.cuda, what torchao's CPUOffloadOptimizer calls, for parameters on the CPU."""

    Stream = staticmethod(lambda: FakeCuda)
    current_stream = record_event = Stream
    stream = staticmethod(lambda _: nullcontext())
    wait_stream = staticmethod(lambda _: None)
    synchronize = staticmethod(lambda: None)


@pytest.fixture
def offloading(monkeypatch):
    """torchao's offloading with the CPU in the part of the GPU."""
    from torchao.optim import cpu_offload

    def empty_like(tensor, *, device=None, pin_memory):
        return torch.full_like(tensor, torch.nan, device=device, requires_grad=False)

    pretended = SimpleNamespace(
        cuda=FakeCuda, empty_like=empty_like, optim=torch.optim, no_grad=torch.no_grad
    )
    monkeypatch.setattr(cpu_offload, "torch", pretended)
    monkeypatch.setattr(cpu_offload, "get_available_devices", lambda: ["cpu", "cuda"])


@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_steps_are_the_same_after_clipping_and_a_resume(kind, offloading):
    """Clipped gradients count, and weights that are filled in after the optimizer was built."""
    settings = TrainSettings(**KINDS[kind])
    plain, model = layers(), layers()
    one = torchaos(plain) if kind == "adamw8bit" else build_optimizer(plain, settings)
    fill_state(one, in_8_bits=kind == "adamw8bit")
    two = offloaded(model, kind)
    for parameter in model.parameters():
        parameter.data.mul_(2)  # what a checkpoint has not filled yet
    for seed in range(6):
        if seed == 3:  # goes on in new ones
            held, state = tensors_of(two, model), model.state_dict()
            model = layers()
            two = offloaded(model, kind)
            for name, tensor in tensors_of(two, model).items():
                tensor.copy_(held[name])
        if seed in (0, 3):
            model.load_state_dict(plain.state_dict() if seed == 0 else state)
        for network, optimizer in ((plain, one), (model, two)):
            x = torch.randn(16, 512, generator=generator(seed))
            y = network.large(x * network.scale).square().sum()
            (y + network.low(x[:, :256]).sum()).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1e-2)
            set_lr(optimizer, 1e-2)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert tensors_of(one, plain).keys() == tensors_of(two, model).keys()


def offloaded(model, kind):
    settings = TrainSettings(**KINDS[kind])
    groups = parameter_groups(
        trainable(model).items(), decay=settings.decay, weight_decay=settings.weight_decay
    )
    options = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if kind == "adamw":
        return Offloaded(groups, torch.optim.AdamW, options, in_8_bits=False)
    from torchao.optim import AdamW8bit

    optimizer = Offloaded(groups, AdamW8bit, options, in_8_bits=True)
    optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)
    return optimizer


def test_on_a_cpu_nothing_is_offloaded(capsys):
    settings = TrainSettings(offload=True, parallel="single")
    optimizer = build_optimizer(layers(), settings)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert "offload changes nothing on a CPU" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_from_a_gpu(kind):
    settings = TrainSettings(**KINDS[kind], offload=True, parallel="single")
    plain, model = layers(), layers().cuda()
    one, two = build_optimizer(plain, settings), build_optimizer(model, settings)
    for seed in range(3):
        step(plain, one, seed)
        step(model, two, seed)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("package", "changes", "told"),
    [
        ("torchao", {"train": KINDS["adamw8bit"]}, '[train] optimizer = "adamw8bit" needs'),
        ("torchao", {"train": {"offload": True, "parallel": "single"}}, "[train] offload = true"),
        ("peft", {"lora": {"rank": 4}, "model": {"base": "b"}}, "[lora] rank = 4 needs"),
    ],
)
def test_a_library_that_is_not_installed(monkeypatch, package, changes, told):
    recipe = recipe_from_table(changes, origin="test")
    check_extras(recipe)
    monkeypatch.setattr(extras, "distribution", lambda name: distribution(f"no-{name}"))
    with pytest.raises(ConfigError) as refused:
        check_extras(recipe)
    assert str(refused.value).startswith(told)
    assert str(refused.value).endswith(f"pip install 'cosmos-wds[{package}]'")
    check_extras(recipe_from_table({}, origin="test"))


def largest_step(eps: float) -> float:
    """In learning rates, with gradients of a large network's size, which differ within a block."""
    model = torch.nn.Linear(512, 256, bias=False)
    settings = TrainSettings.model_construct(**{**dict(TrainSettings()), **KINDS["adamw8bit"]})
    settings = settings.model_copy(update={"eps": eps, "weight_decay": 0.0})
    optimizer = build_optimizer(model, settings)
    spread = 1e-5 * 10 ** torch.empty(256, 512).uniform_(-4, 0, generator=generator(0))
    largest = 0.0
    for seed in range(12):
        before = model.weight.detach().clone()
        model.weight.grad = spread * torch.randn(256, 512, generator=generator(seed))
        set_lr(optimizer, 1e-3)
        optimizer.step()
        if seed > 5:
            largest = max(largest, (model.weight.detach() - before).abs().max().item() / 1e-3)
    return largest


def test_why_8_bits_need_a_larger_eps():
    """In 8 bits small second moments become 0, and what divides the first ones is eps alone."""
    assert largest_step(1e-8) < 2
    assert largest_step(1e-10) > 10
    table = {"train": {"optimizer": "adamw8bit", "eps": 1e-10}}
    with pytest.raises(ConfigError, match="eps = 1e-10: too small for adamw8bit"):
        recipe_from_table(table, origin="test")
