"""What a run tells: the live line, metrics.jsonl, what it reached of the device, a slow loader."""

import json
import time
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from cosmos_wds import console
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.loader import Loader
from cosmos_wds.model.describe import describe
from cosmos_wds.train import watch as watch_module
from cosmos_wds.train.folder import METRICS
from cosmos_wds.train.loop import train
from cosmos_wds.train.rates import device_peak, held_bytes, peak_flops, window_flops
from cosmos_wds.train.watch import spell, watching
from tests.training import ALONE, metrics, small_recipe, small_shards

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"))


def standing(tmp_path, *, step=0, latents=None, **changes):
    """A run of 40 steps that a Watch can look at."""
    recipe = small_recipe(tmp_path, tmp_path, steps=40, log_every=5, **changes)
    sets = SimpleNamespace(contract=ActionContract(), latents=latents)
    recipe.run_folder.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        recipe=recipe, ranks=ALONE, step=step, folder=recipe.run_folder,
        latent_shape=(16, 2, 8, 12), inputs=SimpleNamespace(sets=sets),
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(watch_module.time, "perf_counter", lambda: now.seconds)
    return now


def steps(watch, clock, first, last, *, seconds, waited):
    """Let steps `first` to `last` go by; returns the last live line."""
    recent = []
    for done in range(first, last + 1):
        clock.seconds += seconds
        recent.append([0.5, 2.0])
        watch.step(done, recent, lr=1e-3, waited=waited)
    return watch.progress.tasks[0].fields["note"]


def test_the_live_line_and_the_file(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(watch_module, "held_bytes", lambda device: 3_210_000_000)
    run = standing(tmp_path)
    flops = window_flops(run.recipe, (2, 8, 12), 7)
    with watching(run) as watch:
        note = steps(watch, clock, 1, 5, seconds=0.5, waited=0.125)
    told = "loss 0.5000  grad 2.00  lr 1.00e-03  8.0 windows/s  data 125 ms  compute 375 ms  3.2 GB"
    assert note == f"{told}  {8 * flops / 1e12:.3g} TFLOP/s"
    (line,) = map(json.loads, (run.folder / METRICS).read_text().splitlines())
    assert line == {
        "step": 5, "loss": 0.5, "grad_norm": 2.0, "lr": 1e-3, "samples_per_second": 8.0,
        "data_seconds": 0.625, "compute_seconds": 1.875, "memory_bytes": 3_210_000_000,
        "flops_per_second": 8.0 * flops, "mfu": None,
    }  # fmt: skip


def test_mfu_where_the_peak_is_known(tmp_path, clock, monkeypatch):
    run = standing(tmp_path)
    run.ranks = SimpleNamespace(rank=0, world=4, device=ALONE.device, together=lambda call: call())
    flops = window_flops(run.recipe, (2, 8, 12), 7)
    monkeypatch.setattr(watch_module, "device_peak", lambda device: 10 * flops)
    with watching(run) as watch:
        note = steps(watch, clock, 1, 5, seconds=0.5, waited=0.0)
    assert note.endswith("  MFU 20.0%")  # 8 windows/s of 10 that each of four ranks could do
    assert metrics(run.folder, times=True)[0]["mfu"] == pytest.approx(0.2)


def test_a_line_where_no_live_line_can_be_drawn(tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setattr(watch_module, "SPEAK_EVERY", 0.0)
    with watching(standing(tmp_path)) as watch:
        steps(watch, clock, 1, 5, seconds=60.0, waited=0.0)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step 5")]
    assert line.startswith("step 5/40  loss 0.5000") and line.endswith("TFLOP/s  35 min left")


def test_time_left_in_words():
    spans = {5.4: "5 s", 99: "99 s", 100: "2 min", 3600: "60 min", 12_000: "3 h 20 min"}
    spans |= {187_200: "2 d 4 h"}
    assert {seconds: spell(seconds) for seconds in spans} == spans


def test_a_narrow_terminal_shows_all_of_it(monkeypatch, tmp_path, clock):
    screen = Console(width=40, soft_wrap=True, record=True, force_terminal=True, file=StringIO())
    monkeypatch.setattr(console, "console", screen)
    with watching(standing(tmp_path)) as watch:
        note = steps(watch, clock, 1, 5, seconds=0.5, waited=0.0)
    shown = screen.export_text()
    assert all(word in shown for word in note.split()) and "5/40" in shown


def test_lines_of_later_steps_leave(tmp_path, clock):
    run = standing(tmp_path, step=5)
    kept = '{"step": 5, "loss": 1.0}\n'
    (run.folder / METRICS).write_text(kept + '{"step": 10, "loss": 2.0}\n{"step": 1')
    with watching(run) as watch:
        assert watch.validated == 0
    assert (run.folder / METRICS).read_text() == kept


def warnings_of(watch_steps, capsys):
    watch_steps()
    return [line for line in capsys.readouterr().err.splitlines() if "holds up" in line]


def test_a_slow_loader_is_told_once(tmp_path, clock, capsys):
    def go():
        with watching(standing(tmp_path, data={"workers": 3})) as watch:
            steps(watch, clock, 1, 10, seconds=0.4, waited=0.3)  # the first line warms up
            assert not watch.loader.is_told
            steps(watch, clock, 11, 40, seconds=0.4, waited=0.1)

    assert warnings_of(go, capsys) == [
        "warning: the loader holds up training: 50% of the last 10 steps was waiting for data "
        "(200 of 400 ms a step); what helps: [data] workers above 3, latents made once "
        "(cosmos-wds shard --latents), smaller videos (shard with [video] height and width)"
    ]


def test_latents_are_not_advised_where_they_are(tmp_path, clock, capsys):
    def go():
        with watching(standing(tmp_path, latents=object())) as watch:
            steps(watch, clock, 1, 40, seconds=0.4, waited=0.3)

    (line,) = warnings_of(go, capsys)
    assert line.endswith("what helps: [data] workers above 0")


@pytest.mark.parametrize("waited", [0.0, 0.08])
def test_a_fast_loader_is_not(tmp_path, clock, capsys, waited):
    def go():
        with watching(standing(tmp_path)) as watch:
            steps(watch, clock, 1, 5, seconds=9.0, waited=8.0)
            steps(watch, clock, 6, 40, seconds=0.4, waited=waited)

    assert not warnings_of(go, capsys)


def test_a_run_whose_loader_is_slow(shards, tmp_path, monkeypatch, capsys):
    def slow(self, next_batch=Loader._next):
        time.sleep(0.05)
        return next_batch(self)

    monkeypatch.setattr(Loader, "_next", slow)
    lines = warnings_of(lambda: train(small_recipe(shards, tmp_path, steps=15)), capsys)
    assert len(lines) == 1 and "of the last 10 steps was waiting" in lines[0]


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_name(name, teraflops):
    assert peak_flops(name) == (teraflops and pytest.approx(teraflops * 1e12))


def test_a_cpu_has_no_known_peak():
    assert device_peak(torch.device("cpu")) is None


def test_operations_of_a_window(tmp_path):
    recipe = small_recipe(tmp_path, tmp_path, steps=2)
    forward = describe(recipe.model, action_dims=7, frames=2, height=8, width=12).cost.flops
    assert window_flops(recipe, (2, 8, 12), 7) == 3 * forward
    lora = small_recipe(tmp_path, tmp_path, steps=2, lora={"rank": 4}, model={"base": "x"})
    assert window_flops(lora, (2, 8, 12), 7) == 2 * forward


def test_memory_that_this_process_has_held():
    before = held_bytes(torch.device("cpu"))
    block = bytearray(b"1") * 400_000_000
    after = held_bytes(torch.device("cpu"))
    assert len(block) // 2 < after and after >= before
