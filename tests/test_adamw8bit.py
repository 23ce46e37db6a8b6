"""The step of 8-bit AdamW is torchao's: levels, moments and weights, as written and compiled."""

import shutil

import pytest
import torch
from torchao.optim.quant_utils import create_dynamic_map, quantize_8bit_with_qmap

from cosmos_wds.recipe import TrainSettings
from cosmos_wds.train.adamw8bit import move, nearest_level
from cosmos_wds.train.optim import build_optimizer, fill_state
from tests.test_optim import KINDS, generator, layers, step, tensors_of, torchaos


def test_the_step_is_torchaos():
    ours, theirs = layers(), layers()
    one, two = build_optimizer(ours, TrainSettings(**KINDS["adamw8bit"])), torchaos(theirs)
    fill_state(two, in_8_bits=True)
    for seed in range(4):
        step(ours, one, seed)
        step(theirs, two, seed)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        theirs.load_state_dict(ours.state_dict())
        mine, other = tensors_of(one, ours), tensors_of(two, theirs)
        for name, tensor in mine.items():
            apart = (tensor.float() - other[name].float()).abs()
            assert apart.max() <= (1 if tensor.dtype == torch.uint8 else 1e-7), name
            assert (apart > 1e-7).float().mean() < 1e-4, name
            other[name].copy_(tensor)


@pytest.mark.parametrize("is_signed", [True, False])
def test_the_nearest_level_is_the_one_that_torchao_finds(is_signed):
    """At random, at levels, half-way between them, at powers of ten and beyond the ends."""
    levels = torch.tensor(create_dynamic_map(signed=is_signed))
    wide = 10 ** (-9 * torch.rand(100_000, generator=generator(0)))
    ends = torch.tensor([0.0, 1.0, 0.1, 0.01, 1e-3, 1e-6, 1e-7, 1e-12])
    x = torch.cat([torch.rand(100_000, generator=generator(1)), wide, ends])
    x = torch.cat([x, -x] if is_signed else [x])
    x = torch.cat([x, levels, (levels[1:] + levels[:-1]) / 2])
    found = nearest_level(x, levels, is_signed=is_signed)
    assert torch.equal(found, quantize_8bit_with_qmap(x, levels).long())
    assert len(found.unique()) == 256


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles, with g++ on a CPU")
def test_the_compiled_step_is_the_same():
    """One function for all shapes, as a GPU runs it."""
    levels = [torch.tensor(create_dynamic_map(signed=signed)) for signed in (True, False)]
    rates = torch.tensor([0.999, 1e-2, 0.5])
    for rows in (3, 40, 7):
        both = []
        for run in (move, torch.compile(move, fullgraph=True)):
            random = generator(rows)
            p, grad = torch.randn(2, rows, 256, generator=random)
            codes = torch.randint(0, 256, (2, rows, 256), generator=random).to(torch.uint8)
            scales = torch.rand(2, rows, generator=random)
            run(p, grad, *codes, *scales, *levels, rates, 0.9, 0.99, 1e-8)
            both.append((p, codes, scales))
        (p, codes, scales), (q, others, sizes) = both
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(scales, sizes)
        assert (codes.int() - others.int()).abs().max() <= 1
        assert (codes != others).float().mean() < 1e-3
