"""Who trains: this process alone, the one of several that it was started as, or several of its own.

Without more words, one process for each visible GPU. Under torchrun, or Slurm's srun with a task
for each GPU, this process joins the others. They find each other by the variables that torchrun
sets: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from cosmos_wds.console import console
from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe_train import TrainSettings

GRACE = 10.0
"""Seconds in which the others end by themselves once one has failed; it is told to all of them."""
POLL = 0.1


@dataclass(frozen=True)
class Start:
    """Processes to start on this machine.

    nodes        machines that train together, each started with its own `node_rank`
    rendezvous   HOST:PORT of the first machine; "" on one machine
    """

    processes: int
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str = ""


def plan_start(
    settings: TrainSettings, *, processes: int, nodes: int, node_rank: int, rendezvous: str
) -> Start | None:
    """What to start; None when this process trains itself, alone or with others that are there.

    processes   on this machine; 0: one for each GPU, or one
    Raises ConfigError for numbers that make no sense together.
    """
    if "RANK" in os.environ or adopt_slurm_task():
        return None
    slurm = _slurm_nodes(os.environ)
    if slurm and nodes == 1:
        nodes, node_rank, rendezvous = slurm
    if nodes < 1 or processes < 0 or not 0 <= node_rank < max(nodes, 1):
        raise ConfigError(
            f"--nodes {nodes} --node-rank {node_rank} --processes {processes}: nodes are counted "
            "from 1, their ranks from 0 to one less than --nodes"
        )
    if nodes > 1 and not re.fullmatch(r"[^:\s]+:\d{1,5}", rendezvous):
        raise ConfigError(
            f"--rendezvous {rendezvous or '(not given)'}: {nodes} nodes meet at the first one; "
            "give each the same HOST:PORT of it, such as node0:29500"
        )
    count = processes or _visible_gpus(settings)
    return Start(count, nodes, node_rank, rendezvous) if count * nodes > 1 else None


def run_processes(start: Start) -> int:
    """Start the processes with this one's own command line, wait for them; returns the exit code.

    Ctrl-C and SIGTERM are passed on. When one fails the others are ended, so that none waits for
    ever.
    """
    command = [sys.executable, "-m", "cosmos_wds", *sys.argv[1:]]
    address, port = start.rendezvous.rsplit(":", 1) if start.rendezvous else _own_address()
    running: list[subprocess.Popen[bytes]] = []
    with _passing_signals_on(running):
        for local in range(start.processes):
            place = {
                "RANK": start.node_rank * start.processes + local,
                "WORLD_SIZE": start.nodes * start.processes,
                "LOCAL_RANK": local,
                "LOCAL_WORLD_SIZE": start.processes,
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
            }
            threads = max(1, (os.cpu_count() or 1) // start.processes)
            environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
            environment |= {name: str(value) for name, value in place.items()}
            running.append(subprocess.Popen(command, env=environment))
        try:
            return _wait(running, first_rank=start.node_rank * start.processes)
        finally:
            _end(running)


def adopt_slurm_task() -> bool:
    """Whether srun started this process as one of several that are a rank each.

    Then torchrun's variables are set from Slurm's. One task on each node is none of that: it starts
    the processes of its node.
    """
    env = os.environ
    tasks, nodes = int(env.get("SLURM_STEP_NUM_TASKS", 1)), int(env.get("SLURM_STEP_NUM_NODES", 1))
    if tasks == 1 or tasks == nodes:
        return False
    address, port = _slurm_address(env)
    os.environ |= {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env.get("MASTER_ADDR", address),
        "MASTER_PORT": env.get("MASTER_PORT", port),
    }
    return True


def _slurm_nodes(env: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Nodes, this one's rank, and where they meet, if srun started one task on each of several."""
    nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
    if nodes == 1:
        return None
    return nodes, int(env["SLURM_NODEID"]), ":".join(_slurm_address(env))


def _slurm_address(env: Mapping[str, str]) -> tuple[str, str]:
    """The step's first node, and a port that other jobs on it will hardly have."""
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\](\S*?)(?:,|$))?", hosts)
    assert match, hosts
    first = match[1] + (match[2] or "") + (match[3] or "")
    return first, str(20_000 + int(env.get("SLURM_JOB_ID", 0)) % 20_000)


def _visible_gpus(settings: TrainSettings) -> int:
    if settings.device == "cpu" or settings.parallel == "single":
        return 1
    return max(1, torch.cuda.device_count())


def _own_address() -> tuple[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1", str(free.getsockname()[1])


def _wait(running: list[subprocess.Popen[bytes]], *, first_rank: int) -> int:
    """Wait until all have ended, or one has failed; returns 0, or the first failure's code."""
    while True:
        codes = [process.poll() for process in running]
        failed = [(rank, code) for rank, code in enumerate(codes, first_rank) if code]
        if failed:
            rank, code = failed[0]
            if code > 0:
                return code
            name = signal.Signals(-code).name
            console.print(
                f"error: rank {rank} was ended by {name}; the others are ended too; the last "
                "checkpoint is whole: run the same command again to go on from it"
            )
            for process in running:
                process.kill()  # without that rank they can agree on nothing more
            return 1
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL)


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    """Wait for those that are left, and end those that do not end by themselves."""
    deadline = time.monotonic() + GRACE
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _passing_signals_on(running: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM reach the processes, which save and end, and this one waits.

    A terminal sends Ctrl-C to all of them by itself; they take two at once for one.
    """

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
