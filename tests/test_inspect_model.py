"""What `inspect model` says of a network: released numbers, and operations counted by hand."""

import json

import pytest

from cosmos_wds.errors import ConfigError
from cosmos_wds.model.describe import describe
from cosmos_wds.model.show import find_subject
from cosmos_wds.sizes import model_settings
from tests.commands import run

WINDOW = {"action_dims": 7, "frames": 2, "height": 32, "width": 40}


@pytest.fixture(scope="module")
def reference():
    return describe(model_settings("cosmos-predict1-7b", "reference"), **WINDOW)


def test_parameters_are_those_of_the_release(reference):
    assert reference.total == 7_503_415_424
    assert reference.total - reference.on_device == 1_291_852_800  # spec.md c
    assert sum(reference.groups.values()) == reference.total


def test_operations_are_those_of_the_blocks(reference):
    """spec.md c, per block at 640 tokens and 512 text tokens: 92.6 + 56.9 + 171.8 GFLOP."""
    with_text, without = reference.cost.flops_with_text, reference.cost.flops
    assert reference.cost.tokens == 640
    assert with_text / 28 / 1e9 == pytest.approx(321.3, abs=0.2)
    assert (with_text - without) / 28 / 1e9 == pytest.approx(56.9, abs=0.1)


def test_a_small_network_fits_by_hand():
    """Width 64, 1 block, no text: count every matrix product."""
    size = {"width": 64, "heads": 2, "blocks": 1, "adaln_rank": 4, "text_width": 0}
    settings = model_settings("cosmos-tiny").model_copy(update=size)
    facts = describe(settings, action_dims=7, frames=2, height=4, width=4)
    tokens, w, frames = 8, 64, 2
    linear = tokens * (72 * w + 4 * w * w + 8 * w * w + w * 64)
    attention = 2 * tokens * tokens * w
    noise = w * w + 3 * w * w
    modulation = frames * (2 * (w * 4 + 4 * 3 * w) + (w * 4 + 4 * 2 * w))
    action = (7 * 4 * w + 4 * w * w) + (7 * 4 * w + 4 * w * 3 * w)
    assert facts.cost.flops == 2 * (linear + attention + noise + modulation + action)
    assert facts.on_device == facts.total


def test_the_command_prints_the_released_number(tmp_path):
    words = ("inspect", "model", "cosmos-predict1-7b", "--preset", "reference")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for number in ("7,503,415,424", "6,211,562,624", "17.2%", "17.7%"):
        assert number in done.stdout


def test_recipes_bring_their_own_window():
    assert find_subject("bridge", "ours").latent == (2, 32, 40)
    assert find_subject("demo", "ours").settings.width == 256


@pytest.mark.parametrize(
    "name, preset, said",
    [("cosmos-predict1-8b", "ours", "sizes: cosmos-predict1-14b"), ("demo", "reference", "leave")],
)
def test_what_is_neither_is_told(name, preset, said):
    with pytest.raises(ConfigError, match=said):
        find_subject(name, preset)


@pytest.mark.slow
def test_bench_measures_the_small_network(tmp_path):
    words = ("bench", "model", "cosmos-tiny", "--json", "--backward", "--repeats", "1")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["seconds"] > 0 and 0 < measured["share"] < 1.5
    assert measured["backward"] and measured["batch"] == 1
