"""Runs in processes of their own, to be stopped in the middle, and what they leave."""

import hashlib
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests import forked
from tests.commands import ROOT


def start_script(script, settings):
    """Run a script that reads `settings` as JSON from its first argument."""
    return forked.Process([sys.executable, "-c", script, settings.model_dump_json()], cwd=ROOT)


def wait_for(condition, process=None, seconds=90):
    """Return as soon as the condition holds; fail when time is over, or the process has ended."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def content(folder):
    """Every file below a folder with its bytes' hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def children(pid):
    """The processes that a process has begun and that live, as Linux lists them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            _, parent, *_ = path.read_text().rpartition(")")[2].split()
            if int(parent) == pid:
                found.append(int(path.parent.name))
    return found
