"""Who does the jobs: this machine's cores, or a Ray cluster's (`cosmos-wds[ray]`).

Jobs are pure functions, so the result is the same bytes whoever does them, and a job whose worker
was lost is done again by another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cosmos_wds.console import say
from cosmos_wds.data.workers import Tick, cores, run_jobs
from cosmos_wds.errors import ConfigError, UserError

J = TypeVar("J")
R = TypeVar("R")

RETRIES = 8  # of a job whose worker, or its machine, was lost


class Engine(Protocol):
    """Something that does jobs."""

    @property
    def workers(self) -> int:
        """How many jobs run at once."""
        ...

    def processes(self, jobs: int, each: int) -> int:
        """How many processes do so many jobs, when one is worth `each` of them; 0: this one does.

        What `workers` it has beyond them may work as threads.
        """
        ...

    def run(
        self,
        function: Callable[[J, Tick], R],
        jobs: Sequence[J],
        *,
        on_progress: Callable[[int], None],
        each: int = 1,
    ) -> Iterator[tuple[int, R]]:
        """Yield (place in `jobs`, result) as jobs end. A worker is worth `each` jobs.

        What a job raises is raised here and stops the others.
        """
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine."""

    workers: int
    most: int | None = None
    """Processes at most, where there are fewer GPUs than workers."""

    def processes(self, jobs: int, each: int) -> int:
        return min(self.workers, self.most or self.workers, jobs // each)

    def run(
        self,
        function: Callable[[J, Tick], R],
        jobs: Sequence[J],
        *,
        on_progress: Callable[[int], None],
        each: int = 1,
    ) -> Iterator[tuple[int, R]]:
        processes = self.processes(len(jobs), each)
        return run_jobs(function, jobs, processes=processes, on_progress=on_progress)


@dataclass(frozen=True)
class RayEngine:
    """Tasks of a Ray cluster: the one of RAY_ADDRESS, or one of this machine for the time being.

    Its machines must have cosmos-wds installed and see source and destination under the same names.
    """

    workers: int

    def processes(self, jobs: int, each: int) -> int:
        return min(self.workers, jobs // each)

    def run(
        self,
        function: Callable[[J, Tick], R],
        jobs: Sequence[J],
        *,
        on_progress: Callable[[int], None],
        each: int = 1,  # noqa: ARG002 (Ray's workers are there already)
    ) -> Iterator[tuple[int, R]]:
        import ray

        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_counted)
        waiting = {task.remote(function, job): place for place, job in enumerate(jobs)}
        try:
            while waiting:
                done, _ = ray.wait(list(waiting))
                for reference in done:
                    result, ticks = _result(reference)
                    on_progress(ticks)
                    yield waiting.pop(reference), result
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def local_engine(workers: int) -> Engine:
    """As many processes as asked for; 0 for every core."""
    return LocalEngine(workers or cores())


def ray_engine() -> Engine:
    """Join the cluster, or start one here. Raises ConfigError without the library or a cluster."""
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray: pip install 'cosmos-wds[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, include_dashboard=False)  # takes RAY_ADDRESS by itself
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--engine ray: no cluster (RAY_ADDRESS): {error}") from None
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    say(f"Ray: {len(ray.nodes())} machines, {workers} cores")
    return RayEngine(workers)


def _counted(function: Callable[[Any, Tick], Any], job: Any) -> tuple[Any, int]:
    """Do a job on another machine; its ticks come back with the result."""
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    return function(job, tick), ticks


def _result(reference: Any) -> tuple[Any, int]:
    import ray

    try:
        found: tuple[Any, int] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"Ray lost a job {RETRIES} times: {first}; run again to go on") from None
    return found
