"""Processes that begin at once: forks of one that has imported torch and other libraries already.

A fresh process imports them for three seconds, which tests with many processes wait for again and
again. A fork has memory, environment, folder and signals of its own as any other process, imports
cosmos_wds itself, and leaves through the interpreter's ordinary end. What is tested for how it is
started, or for what it imports, is started by `subprocess` instead.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from contextlib import suppress
from functools import cache
from pathlib import Path

LIBRARIES = (
    *("numpy", "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"),
    *("torch.distributed.checkpoint", "torch.distributed.run", "torch.utils.data"),
    *("pydantic", "typer", "rich.progress", "safetensors.torch"),
    *("PIL.Image", "sympy"),
)
ROOT = Path(__file__).parent.parent
PLACE = "COSMOS_WDS_FORKS"
"""A variable: where the server listens. Forks find it there, and may start others."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process with threads is not to be forked."""


class Process:
    """What `subprocess.Popen` is for a fork: `words` are sys.executable and what follows it.

    speaks_here   what it says goes where this process speaks, and is not kept
    """

    def __init__(self, words, *, env=None, cwd=None, start_new_session=False, speaks_here=False):
        words = [*map(str, words)]
        assert words[0] == sys.executable, words
        self.args, self.returncode, self._said = words, None, None
        kept = [] if speaks_here else [tempfile.TemporaryFile() for _ in "oe"]  # noqa: SIM115
        self._output = kept
        self._answers, theirs = os.pipe()
        job = {
            "words": words[1:],
            "environment": {**(os.environ if env is None else env), PLACE: place()},
            "folder": os.fspath(cwd or os.getcwd()),
            "has_session": start_new_session,
        }
        told = json.dumps(job).encode()
        fds = [*(file.fileno() for file in kept or (sys.stdout, sys.stderr)), theirs]
        socket.send_fds(server(), [len(told).to_bytes(8, "little")], fds)
        server().sendall(told)
        os.close(theirs)
        self.pid = self._answer()

    def poll(self):
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = self._answer()
            assert not os.read(self._answers, 1)  # comes when nothing of it is left
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.poll()
        return self.returncode

    def communicate(self, timeout=None):
        """Wait until it has ended; returns what it has said, to stdout and to stderr."""
        self.wait(timeout)
        self.end()
        return self.said()

    def said(self):
        """What it has said so far."""
        if self._said is None:
            return tuple(map(content, self._output))
        return self._said

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self):
        """Kill it if it has not ended; nothing of it stays open."""
        if self._said is None:
            self.kill()
            self.wait()
            self._said = self.said()
            for file in self._output:
                file.close()
            os.close(self._answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def _answer(self):
        number = os.read(self._answers, 8)
        assert len(number) == 8, "the server of forks has ended"
        return int.from_bytes(number, "little", signed=True)


def content(file):
    """All that is in an open file by now."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")


def run(words, *, timeout=300, **options):
    """What `subprocess.run` is, with its output as text."""
    with Process(words, **options) as process:
        out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def run_ranks(words, count, *, env=None, timeout=300):
    """Run ranks that train together. One that fails ends the others, and gives the exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes, deadline = [], time.monotonic() + timeout
    for rank in range(count):
        place = {**together, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
        named = {name: str(value) for name, value in place.items()}
        processes.append(Process(words, env={**(os.environ if env is None else env), **named}))
    try:
        while not all(process.poll() == 0 for process in processes):
            if any(process.returncode for process in processes):
                break
            assert time.monotonic() < deadline, [process.said() for process in processes]
            time.sleep(0.01)
        code = next((p.returncode for p in processes if p.returncode), 0)
        until = time.monotonic() + 10
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()) if code >= 0 else 0.0)
    finally:
        for process in processes:
            process.end()
    out, err = map("".join, zip(*(process.said() for process in processes), strict=True))
    return subprocess.CompletedProcess(words, code, out, err)


def forking(words, script=None):
    """The words of a cosmos-wds whose ranks are forks too; they run `script` in its place."""
    ranks = ("-c", script) if script else ("-m", "cosmos_wds")
    return [sys.executable, "-c", FORKING.format(ranks=ranks), *words[3:]]


FORKING = """
from cosmos_wds.cli import main
from cosmos_wds.train import launch
from tests.forked import Process

def start(words, **options):
    return Process([words[0], *{ranks!r}, *words[3:]], speaks_here=True, **options)

launch.subprocess.Popen = start
main()
"""


@cache
def server():
    """A connection to the process that forks."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(place())
    atexit.register(line.close)
    return line


@cache
def place():
    """Where the server listens. The first to ask starts it, and it ends with that process."""
    if PLACE in os.environ:
        return os.environ[PLACE]
    folder = tempfile.mkdtemp(prefix="forks-")
    path = os.path.join(folder, "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(listener.fileno())],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end():
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return path


def serve(listener):
    """Fork for each job that comes; returns the job in its fork. Ends as stdin does."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for forks
    lines = []
    while True:
        ready, _, _ = select.select([0, listener, *lines], [], [])
        if 0 in ready:
            os._exit(0)
        if listener in ready:
            lines.append(listener.accept()[0])
        for line in {*ready} & {*lines}:
            size, fds, _, _ = socket.recv_fds(line, 8, 3)
            if not size:
                lines.remove(line)
                line.close()
                continue
            job = json.loads(line.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL))
            if os.fork() == 0:
                for one in (listener, *lines):
                    one.close()
                return begin(job, *fds)
            for fd in fds:
                os.close(fd)


def begin(job, out, err, answers):
    """Fork once more: this process tells who it is and how it ends, and its fork gets the job."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.write(answers, pid.to_bytes(8, "little", signed=True))
        os.close(out)
        os.close(err)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # nobody gets its number yet
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with suppress(BrokenPipeError):
            os.write(answers, code.to_bytes(8, "little", signed=True))
        os.waitpid(pid, 0)
        os._exit(0)
    if job["has_session"]:
        os.setsid()
    for fd, place in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(fd, place)
        os.close(fd)
    os.close(answers)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    return job["words"]


def follow(words):
    """What python does with its arguments: -m MODULE, -c CODE or a script, and theirs."""
    kind, *rest = words
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if kind == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    else:
        sys.argv, sys.path[0] = words, str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for name in LIBRARIES:
        with suppress(Exception):  # such as without FFmpeg
            __import__(name)
    gc.collect()
    gc.freeze()
    follow(serve(socket.socket(fileno=int(sys.argv[1]))))
