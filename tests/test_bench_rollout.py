"""`bench rollout`: ours and the reference's way from the same weights, counted and compared."""

import json

import numpy as np
import pytest
import torch

from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.rollout import bench_ways
from cosmos_wds.rollout.bench_rollout import RolloutBenchRequest, bench_rollout
from cosmos_wds.rollout.bench_steps import bench_steps, steps_table
from cosmos_wds.rollout.bench_subject import inputs_of, open_subject
from cosmos_wds.rollout.bench_ways import candidates, timed, whole_calls
from cosmos_wds.rollout.ready import ready
from cosmos_wds.train.bench_model import fill_randomly
from tests.test_infer import save_run
from tests.tiny_run import random_run
from tests.training import small_shards

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def request_for(**changes):
    small = {"name": "cosmos-tiny", "frames": 2, "steps": 2, "batch": 3, "repeats": 1}
    return RolloutBenchRequest(**{**small, "height": 16, "width": 32, "device": "cpu", **changes})


def test_ways_are_counted_and_their_outputs_equal():
    found = bench_rollout(request_for())
    assert [(way.name, way.batch, way.network_runs) for way in found.ways] == [
        ("reference", 1, 6),
        ("ours, equal output", 1, 3),
        ("ours", 1, 3),
        ("ours", 3, 3),
    ]
    assert found.largest_latent_difference <= 1e-4 and found.largest_level_difference <= 1
    assert found.ratio == pytest.approx(found.ways[0].seconds / found.ways[1].seconds)
    assert all(way.seconds * way.frames_per_second == pytest.approx(1) for way in found.ways)
    assert all(0 < way.share < 1.5 for way in found.ways) and found.inputs == "random"
    assert (found.steps, found.latent, found.device) == (2, (4, 8), "cpu")
    told = json.loads(found.to_json())
    assert told["ways"][3]["batch"] == 3 and found.table().row_count == 4
    assert len(bench_rollout(request_for(batch=1)).ways) == 3


@pytest.mark.parametrize(("text_width", "precision"), [(0, "bfloat16"), (24, "float32")])
def test_a_model_of_several_frames_a_call_is_compared_frame_by_frame(text_width, precision):
    """The reference knows one frame a call, and runs its text where the network has any."""
    infer = {"steps": 2, "precision": precision}
    run = random_run(window={"frames": 4}, model={"text_width": text_width}, infer=infer)
    model, inputs = ready(run), inputs_of(run, 6)
    ways = candidates(model, inputs, frames=4, batch=2)
    assert [way.frames for way in ways] == [4, 4, 6, 3]
    times, made = timed(model, ways, repeats=2, matrix_rate=1e12)
    assert [way.network_runs for way in times] == [6, 3, 1, 1]
    assert [one.frames.shape[:2] for one in made] == [(1, 5), (1, 5), (1, 7), (2, 4)]
    assert np.abs(made[0].latents - made[1].latents).max() <= 1e-4
    extra = times[0].share * times[0].seconds / (times[1].share * times[1].seconds)
    assert extra > 2.05 if text_width else extra == pytest.approx(2)


def test_outputs_that_differ_are_told(monkeypatch):
    monkeypatch.setattr("cosmos_wds.rollout.bench_ways.AS_REFERENCE", {})
    found = bench_rollout(request_for())
    assert found.largest_latent_difference > 0.01 and 5 < found.psnr < 60


def test_the_fastest_number_at_once_is_found_as_far_as_memory_allows(monkeypatch):
    tried = []

    def roll(run, inputs, batch):
        def once(frames, steps):
            tried.append((batch, frames, steps))
            if batch > 8:
                raise torch.cuda.OutOfMemoryError

        return once

    slow = {2: 2.0, 4: 1.0, 8: 3.0}
    monkeypatch.setattr(bench_ways, "rolled_by", roll)
    monkeypatch.setattr(
        bench_ways, "seconds_of", lambda call, device: (call(), slow[tried[-1][0]])[1]
    )
    model = ready(random_run(window={"frames": 4}))
    assert bench_ways.fastest_batch(model, None) == 4
    assert [batch for batch, _, steps in tried if steps == 1] == [2, 4, 8, 16]
    assert {frames for _, frames, _ in tried} == {3}


def test_rounding_up_to_whole_calls():
    assert [whole_calls(n, 8) for n in (1, 8, 9)] == [8, 8, 16]


def test_a_trained_run_with_its_shards_is_held_against_the_truth(tmp_path):
    shards = small_shards(tmp_path / "data", episodes=1, val=2)
    folder = save_run(tmp_path / "run", data={"shards": str(shards)}, infer={"steps": 1})
    rows = bench_steps(request_for(name=str(folder), height=None, width=None, steps=5))
    assert [row.steps for row in rows] == [1, 2, 3, 5]
    assert rows[-1].psnr is None and all(row.psnr > 5 for row in rows[:-1])
    assert all(row.psnr_truth > 5 and row.seconds > 0 for row in rows)
    assert steps_table(rows, as_json=False).row_count == 4
    lines = steps_table(rows, as_json=True).splitlines()
    assert json.loads(lines[0])["steps"] == 1
    found = bench_rollout(request_for(name=str(folder), height=None, width=None))
    assert found.inputs == "held-out" and found.largest_latent_difference <= 1e-4


def test_inputs_are_random_where_there_are_no_shards(tmp_path, capsys):
    folder = save_run(tmp_path / "run")
    rows = bench_steps(request_for(name=str(folder), height=None, width=None, steps=1))
    assert rows[0].psnr_truth is None and "random inputs" in capsys.readouterr().err


def test_pictures_of_another_size():
    run = open_subject("cosmos-tiny", size=(32, None), device=CPU, compiled=False)
    assert run.recipe.latent_size == (2, 8, 16)
    first, actions = inputs_of(run, 5).of(10, 3)
    assert first.shape == (10, 32, 64, 3) and actions.shape == (10, 3, 7)
    assert np.array_equal(first[0], first[8])


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"name": "nobody"}, "nobody: no such run, checkpoint or weights"),
        ({"height": 20}, r"\[window\] height = 20"),
        ({"height": 512}, "height = 512: the model's position tables end at 128"),
        ({"device": "cuda"}, "torch sees no GPU"),
    ],
)
def test_what_cannot_be_asked(changes, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises((ConfigError, CheckpointError), match=told):
        bench_rollout(request_for(**changes))


def test_random_weights_pass_on_what_they_are_given():
    """Else rollouts of random weights would be equal whatever their inputs."""
    run = open_subject("cosmos-tiny", size=(16, 32), device=CPU, compiled=False)
    fill_randomly(run.denoiser)
    x, action = torch.randn(2, 16, 2, 4, 8), torch.zeros(2, 1, 7)
    action[1] = 1
    x[1] = x[0]
    told = {"given": torch.zeros_like(x[:, :1]), "fps": torch.full((2,), 5.0)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = run.denoiser.net(x, torch.zeros(2), action=action, **told).float()
    assert 0.1 < out.std() < 10 and (out[0] - out[1]).abs().max() > 0.1
