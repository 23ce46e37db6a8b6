"""What training takes of memory: `python -m tests.training_memory WARM.toml RECIPE.toml`.

WARM is trained first, so that libraries are loaded and have made what they keep. Then RECIPE is;
printed is by how much its steps, before it saves, took the process above what it held when the
model was about to be built.

Freed memory goes back to the system here: glibc keeps it, in pieces that do not always fit what
comes next, and what is compared with a plan is what tensors need.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path

from cosmos_wds.config import dump
from cosmos_wds.recipe import Recipe, load_recipe
from tests import forked
from tests.commands import ROOT

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD: memory from so many bytes on is the system's again when it is freed."""


def measured_memory(warm: Recipe, recipe: Recipe, folder: Path) -> int:
    """Bytes that training `recipe` takes, measured in a process of its own."""
    files = []
    for name, one in (("warm", warm), ("measured", recipe)):
        files.append(folder / f"{name}.toml")
        files[-1].write_text(dump(one))
    done = forked.run([sys.executable, "-m", "tests.training_memory", *files], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def main(warm: str, measured: str) -> None:
    from cosmos_wds.train import loop

    assert ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 65536)
    loop.train(load_recipe(warm))
    start, found = loop.start, {}

    def measured_start(*arguments):
        gc.collect()
        CLEAR.write_text("5")  # the peak begins anew
        found["before"] = held("VmRSS")
        return start(*arguments)

    def measured_save(*_):
        os.write(1, f"{held('VmHWM') - found['before']}\n".encode())
        os._exit(0)  # what comes is not asked for, and takes long

    loop.start, loop.save = measured_start, measured_save
    loop.train(load_recipe(measured))


def held(what: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[what].split()[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
