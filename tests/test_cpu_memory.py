"""What `--plan` says of a process on a CPU is what one takes: resident, under glibc as it is."""

import json
import subprocess
import sys

import pytest

from cosmos_wds.config import dump
from cosmos_wds.recipe import load_recipe
from tests.commands import ROOT, environment
from tests.training import small_recipe, small_shards

LARGER = {
    **{"size": "", "width": 768, "heads": 12, "blocks": 12, "adaln_rank": 64, "text_width": 0},
    **{"max_frames": 16, "max_height": 16, "max_width": 16},
}
"""A network of about 100 million parameters."""

STEPS = 6
"""Until then the pieces of freed memory grow."""

TRAIN = """
import json, sys
from pathlib import Path
from cosmos_wds.recipe import load_recipe
from cosmos_wds.train import loop
from cosmos_wds.train.meter import peak_bytes

save, found = loop.save, []
def measuring(*arguments):
    found.append(peak_bytes())
    save(*arguments)
loop.save = measuring
loop.train(load_recipe(sys.argv[1]))
print(json.dumps({"steps": found[0], "all": peak_bytes()}))
"""
"""Memory at its most until a checkpoint is begun, and until the end."""


@pytest.mark.skipif(sys.platform != "linux", reason="counts what glibc keeps")
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ({}, {}),
        ({}, {"checkpointing": "full"}),
        ({}, {"checkpointing": "selective"}),
        pytest.param(LARGER, {"batch": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_process_is_as_large_as_planned(tmp_path, model, changes):
    """To 10 %."""
    demo = load_recipe("demo")
    shards = small_shards(tmp_path)
    recipe = small_recipe(
        shards,
        tmp_path,
        steps=STEPS,
        data={"shards": str(shards)},
        window={"frames": 5, "height": 48, "width": 64},
        model={**demo.model.model_dump(), "base": "", **model},
        **{"batch": 16, **changes},
    )
    (tmp_path / "r.toml").write_text(dump(recipe))
    run = [sys.executable, "-c", TRAIN, str(tmp_path / "r.toml")]
    done = subprocess.run(run, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])

    command = [sys.executable, "-m", "cosmos_wds", "train", str(tmp_path / "r.toml"), "--plan"]
    done = subprocess.run(
        [*command, "--json"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    planned = json.loads(done.stdout)["on_cpu"]
    assert planned["needed"] == sum(planned["parts"].values())
    assert planned["needed"] == pytest.approx(measured["steps"], rel=0.1)
    # Files of weights that are mapped count too, but can be had back.
    assert planned["needed"] + planned["saving"] > 0.8 * measured["all"]
