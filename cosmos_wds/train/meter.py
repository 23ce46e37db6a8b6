"""What a process and all that it has started have used so far, as Linux counts it."""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def cpu_seconds() -> float:
    """User and system time of this process, its children, and theirs.

    Where there is no /proc, children that still run are not counted.
    """
    if not (PROC / "self" / "stat").exists():
        return sum(os.times()[:4])
    own = resource.getrusage(resource.RUSAGE_SELF)  # finer than /proc's ticks
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return used + sum(_ticks(pid) for pid in _descendants(os.getpid())) / TICKS


def read_bytes() -> int | None:
    """Bytes that the same processes have read from files, from the disk or its cache, with `read`.

    None where nobody counts. What is mapped into memory does not count.
    """
    total = 0
    for pid in (os.getpid(), *_descendants(os.getpid())):
        try:
            lines = (PROC / str(pid) / "io").read_text().splitlines()
        except OSError:
            if pid == os.getpid():
                return None
            continue
        total += int(dict(line.split(": ") for line in lines)["rchar"])
    return total


def peak_bytes() -> int:
    """Most memory that this process has held, with that of each child that runs, at most."""
    total = 0
    for pid in (os.getpid(), *_descendants(os.getpid())):
        try:
            lines = (PROC / str(pid) / "status").read_text().splitlines()
        except OSError:
            continue
        found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
        total += 1024 * int(found[0]) if found else 0
    return total or own_peak_bytes()


def own_peak_bytes() -> int:
    """Most memory that this process alone has held (resident)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _descendants(pid: int) -> Iterator[int]:
    """Processes that a process has started, that these have started, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir() if PROC.exists() else ():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting = parents.get(pid, [])
    while waiting:
        child = waiting.pop()
        yield child
        waiting += parents.get(child, [])


def _ticks(pid: int) -> int:
    """utime, stime, and those of children that have ended."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) if fields else 0


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from `state` on; nothing for a process that is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
