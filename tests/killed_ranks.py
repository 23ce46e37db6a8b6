"""One rank of a training that only writes down what it was given: run and killed by test_killed.py.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=1234 \\
        python -m tests.killed_ranks SHARDS FOLDER WORKERS KIND

Every step is agreed on by all ranks over gloo; then rank zero writes FOLDER/steps/STEP.json, what
the global batch held, and FOLDER/state.json, where to go on: both whole or not at all.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from cosmos_wds.config import write_text
from cosmos_wds.data import threads
from cosmos_wds.data.loader import open_loader
from cosmos_wds.recipe import DataSettings, Recipe, TrainSettings, WindowSettings

BATCH = 4


def run(shards, folder, workers, kind):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    threads.cores = lambda: 9  # as many reading threads as are asked for
    recipe = Recipe(
        seed=5,
        data=DataSettings(shards=shards, workers=workers, worker_kind=kind, pool=2),
        window=WindowSettings(height=16, width=24),
        train=TrainSettings(batch=BATCH),
    )
    with open_loader(recipe, rank=rank, world=world) as loader:
        if (folder / "state.json").exists():
            loader.load_state_dict(json.loads((folder / "state.json").read_text()))
        step = loader.step
        for batch in loader:
            mine = [
                [key, start, int(video.sum()), float(action.sum())]
                for key, start, video, action in zip(
                    batch.key, batch.start, batch.video, batch.action, strict=True
                )
            ]
            shares = [None] * world
            dist.all_gather_object(shares, mine)
            if rank == 0:
                write(folder, step, sum(shares, []))
                write_text(folder / "state.json", json.dumps(loader.state_dict()))
            step += 1


def write(folder, step, windows):
    """Write a step down; one that was lost with its state comes again, and must be the same."""
    path, text = folder / "steps" / f"{step:06d}.json", json.dumps(windows)
    if path.exists() and path.read_text() != text:
        write_text(folder / "differs", f"step {step}: {path.read_text()} then, {text} now")
    write_text(path, text)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
