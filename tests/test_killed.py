"""Ranks that are killed at random, and go on with another number of ranks, miss no window.

COSMOS_WDS_KILLS says how often (3 without it); 50 take some minutes.
"""

import json
import os
import random
import socket
import sys
import time
from collections import Counter

import pytest

from tests.commands import ROOT
from tests.forked import Process
from tests.killed_ranks import BATCH
from tests.test_loader import expected_windows, recordings, shards  # noqa: F401

KILLS = int(os.environ.get("COSMOS_WDS_KILLS", "3"))
PATIENCE = 120  # seconds for a step to be done


def launch(shards, folder, world, kind):  # noqa: F811
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, "-m", "tests.killed_ranks", shards, folder, "2", kind]
    return [Process(words, env={**environment, "RANK": str(rank)}) for rank in range(world)]


def done(folder):
    return len(list((folder / "steps").glob("*.json")))


@pytest.mark.slow
def test_the_union_of_what_was_trained_on_is_each_window_once_per_epoch(shards, tmp_path):  # noqa: F811
    chance = random.Random(0)
    worlds = Counter()
    for kill in range(KILLS):
        world = chance.choice((1, 2, 4)) if kill else 2
        worlds[world] += 1
        until = done(tmp_path) + chance.randint(1, 12)
        processes = launch(shards, tmp_path, world, "process" if kill % 5 == 4 else "thread")
        try:
            patience = time.monotonic() + PATIENCE
            while done(tmp_path) < until:
                assert time.monotonic() < patience and not any(p.poll() for p in processes)
                time.sleep(0.005)
            time.sleep(chance.random() * 0.05)
            chance.choice(processes).kill()  # one first, so that the others meet its end
            time.sleep(chance.choice((0, 0.05)))
        finally:
            for process in processes:
                process.end()
    assert not (tmp_path / "differs").exists(), (tmp_path / "differs").read_text()
    steps = [json.loads(p.read_text()) for p in sorted((tmp_path / "steps").glob("*.json"))]
    assert all(len(step) == BATCH for step in steps)
    each = expected_windows(shards).total() // BATCH
    for begin in range(0, len(steps) - each + 1, each):
        epoch = Counter((key, start) for s in steps[begin : begin + each] for key, start, *_ in s)
        assert epoch == expected_windows(shards)
    print(f"{KILLS} kills, {dict(worlds)} ranks, {len(steps)} steps, {len(steps) // each} epochs")  # noqa: T201
