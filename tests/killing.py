"""Runs in processes of their own, to be stopped in the middle, and what they leave."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path


def start_script(script, settings):
    """Run a script that reads `settings` as JSON from its first argument."""
    return subprocess.Popen(
        [sys.executable, "-c", script, settings.model_dump_json()],
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background deaf to Ctrl-C; pytest may run so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


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
