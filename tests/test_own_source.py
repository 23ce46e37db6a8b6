"""A source of one's own, as README shows it: that very code is run here."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest

from cosmos_wds.data.index import SplitIndex
from cosmos_wds.data.video import write_video
from cosmos_wds.errors import ConfigError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.sources import open_source
from tests.commands import ROOT, environment, run
from tests.conftest import moving_frames, tiny_states

README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = next(b for b in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S) if "Source" in b)
MODULE, FUNCTION = re.search(r"--set source\.kind=(\w+):(\w+)", README).groups()


@pytest.fixture
def folder(tmp_path):
    """A working folder with README's module and two recordings of each of two splits."""
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    for split, seed in (("train", 0), ("val", 10)):
        for number in range(2):
            state = tiny_states(6, seed + number)
            place = tmp_path / f"recordings/{split}/{number}"
            write_video(place.with_suffix(".mp4"), moving_frames(6, 32, 48, seed + number))
            np.savez(place.with_suffix(".npz"), poses=state)
    return tmp_path


def test_it_is_short():
    assert len(CODE.splitlines()) <= 30


def test_it_makes_shards(folder):
    """In worker processes too, which must find the module as well."""
    (folder / "recordings/train/2.npz").write_bytes(b"broken")
    words = ["shard", "recordings", "shards", "--pipeline", "small", "--workers", "2"]
    kind = f"source.kind={MODULE}:{FUNCTION}"
    changes = [kind, 'source.splits=["train", "val"]', "shards.megabytes=1"]
    done = run(*words, *(w for c in changes for w in ("--set", c)), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "rejected: train/2.npz" in done.stderr + done.stdout
    for split, seed in (("train", 0), ("val", 10)):
        index = SplitIndex.load(folder / "shards", split)
        assert len(index.rows) == 2
        for row in range(2):
            place = folder / f"recordings/{split}/{row}.mp4"
            assert index.read(row, "mp4") == place.read_bytes()
            state = np.load(io.BytesIO(index.read(row, "state.npy")))
            np.testing.assert_array_equal(state, tiny_states(6, seed + row).astype(np.float32))


def test_worker_processes_find_it(folder):
    """Started as the console script is: the working folder is not on Python's path by itself."""
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "import pickle\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from cosmos_wds.pipeline import Pipeline\n"
        "from cosmos_wds.sources import open_source\n"
        "if __name__ == '__main__':\n"
        f"    source = {{'kind': '{MODULE}:{FUNCTION}', 'path': 'recordings'}}\n"
        "    opened = open_source(Pipeline.model_validate({'source': source}))\n"
        "    with ProcessPoolExecutor(1, get_context('spawn')) as pool:\n"
        "        print(len(pool.submit(opened.list, 'train').result()))\n"
    )
    script = folder / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no_such_module:Source", "no_such_module cannot be imported: No module named"),
        (f"{MODULE}:Sorce", f"{MODULE} has no function Sorce"),
    ],
)
def test_what_is_not_there_is_told(folder, monkeypatch, kind, says):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=f"source.kind '{kind}': {says}"):
        open_source(Pipeline.model_validate({"source": {"kind": kind}}))
    sys.modules.pop(MODULE, None)
