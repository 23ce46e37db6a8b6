"""`bench train`: figures of a step without shards or weights; the grid; what cannot be asked."""

import json

import pytest

from cosmos_wds.errors import ConfigError
from cosmos_wds.train.bench_grid import bench_grid, grid_table
from cosmos_wds.train.bench_train import TrainBenchRequest, bench_train
from tests.training import small_recipe


def recipe_of(tmp_path, **changes):
    return small_recipe(tmp_path / "no shards", tmp_path / "nothing written", steps=4, **changes)


def test_a_step_is_timed_without_shards_or_weights(tmp_path):
    recipe = recipe_of(tmp_path, model={"base": "no weights"}, batch=6, accumulate=2)
    found = bench_train(TrainBenchRequest(recipe=recipe, steps=2))
    assert (found.device, found.ranks, found.batch, found.micro_batch) == ("cpu", 1, 6, 3)
    assert found.seconds > 0 and found.windows_per_second == pytest.approx(6 / found.seconds)
    assert found.tflops == pytest.approx(found.tflop / found.seconds)
    assert found.peak_gb > 0 and found.plain_seconds is None and found.overhead is None
    assert json.loads(found.to_json())["parameters"] == found.parameters > 1000
    assert not list(tmp_path.iterdir())


def test_against_a_plain_loop(tmp_path):
    found = bench_train(TrainBenchRequest(recipe=recipe_of(tmp_path), steps=3, against_plain=True))
    assert found.overhead == pytest.approx(found.seconds / found.plain_seconds - 1)
    assert "overhead" in [str(cell) for cell in found.table().columns[0].cells]
    with pytest.raises(ConfigError, match="for one process and accumulate = 1"):
        bench_train(
            TrainBenchRequest(recipe=recipe_of(tmp_path, accumulate=2), steps=1, against_plain=True)
        )


@pytest.mark.slow
def test_a_grid_goes_on_after_what_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("cosmos_wds.train.bench_grid.CHECKPOINTING", ("full",))
    monkeypatch.setattr("cosmos_wds.train.bench_grid.COMPILED", (False,))
    rows = bench_grid(recipe_of(tmp_path, batch=2), steps=1)
    assert [(row["micro_batch"], row["checkpointing"]) for row in rows] == [
        (1, "full"),
        (2, "full"),
    ]
    assert all(row["seconds"] > 0 and "problem" not in row for row in rows)
    assert grid_table(rows).row_count == 2
    broken = recipe_of(tmp_path, batch=2, device="cuda")
    (row,) = bench_grid(broken, steps=1)
    assert "torch sees no GPU" in row["problem"]
