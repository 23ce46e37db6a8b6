"""`--verify`: everything of a set read again, by all cores, and compared over its splits."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from cosmos_wds.console import progress_bar
from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.data.workers import Tick, cores, run_jobs
from cosmos_wds.errors import DataError
from cosmos_wds.inspection.check_episode import check_episodes
from cosmos_wds.inspection.check_tar import check_tar
from cosmos_wds.inspection.findings import Findings, leaks, notes, repeated_keys

CHUNK = 16  # episodes that a worker checks at once
SHOWN = 100  # problems that are told one by one


@dataclass(frozen=True)
class Job:
    """What one process does at once; `index` is narrowed to one shard, or some of its episodes."""

    check: Callable[[SplitIndex, Tick], Findings]
    index: SplitIndex
    ticks: int


@dataclass(frozen=True)
class Verification:
    """What came of it: the set is as it should be when there are no problems."""

    path: str
    episodes: int
    frames: int
    bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    """What is worth a look, and may be right."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    def lines(self) -> Iterator[str]:
        """The first SHOWN problems, how many more there are, and the notes."""
        yield from self.problems[:SHOWN]
        if len(self.problems) > SHOWN:
            yield f"and {len(self.problems) - SHOWN} more; --json tells all"
        yield from (f"note: {line}" for line in self.notes)

    def verdict(self) -> str:
        """That all is well. Raises DataError when it is not."""
        if self.problems:
            noun = "problem" if len(self.problems) == 1 else "problems"
            raise DataError(f"{self.path}: not in order: {len(self.problems)} {noun}")
        return (
            f"verified: {self.path}: {self.episodes} episodes, {self.frames} frames, "
            f"{self.bytes / 1e6:.1f} MB"
        )


def verify(path: str, *, workers: int = 0) -> Verification:
    """Read all of a set again; every problem is reported. Raises DataError where there is none.

    `workers` processes, 0 for every core. Each holds one episode or one piece of a tar in memory.
    """
    index = ShardIndex.read(path)
    problems: list[str] = []
    splits = list(_readable(index, problems))
    jobs = [job for split in splits for job in _jobs(split, problems)]
    found = _run(jobs, workers or cores())
    problems += [line for findings in found for line in findings.problems]
    episodes = [seen for findings in found for seen in findings.episodes]
    return Verification(
        path=str(path),
        episodes=len(episodes),
        frames=sum(int(split.lengths.sum()) for split in splits),
        bytes=sum(shard.bytes for split in splits for shard in split.shards),
        problems=(*problems, *repeated_keys(episodes), *leaks(episodes)),
        notes=tuple(notes(episodes)),
    )


def _readable(index: ShardIndex, problems: list[str]) -> Iterator[SplitIndex]:
    """The splits whose list of episodes is in order, without rows of shards that are not known."""
    for name in index.splits:
        try:
            split = index.split(name)
        except DataError as error:
            problems.append(str(error))
            continue
        known = {shard.name for shard in split.shards}
        for row in split.rows:
            if row.shard not in known:
                problems.append(f"{index.storage.name(row.shard)}: {row.key}: no such tar")
        yield replace(split, rows=tuple(row for row in split.rows if row.shard in known))


def _jobs(split: SplitIndex, problems: list[str]) -> Iterator[Job]:
    """One for each tar that is there, and one for each CHUNK of its episodes."""
    for shard in split.shards:
        if split.storage.size(shard.name) < 0:
            problems.append(f"{split.storage.name(shard.name)}: no such file")
            continue
        rows = tuple(row for row in split.rows if row.shard == shard.name)
        yield Job(check_tar, replace(split, shards=(shard,), rows=rows), ticks=1)
        for start in range(0, len(rows), CHUNK):
            part = replace(split, shards=(shard,), rows=rows[start : start + CHUNK])
            yield Job(check_episodes, part, ticks=len(part.rows))


def _run(jobs: Sequence[Job], workers: int) -> list[Findings]:
    """All findings in the order of the jobs."""
    found: dict[int, Findings] = {}
    bad = 0
    processes = min(workers, len(jobs) // 4)  # starting a process costs as much as a few jobs
    with progress_bar() as progress:
        task = progress.add_task("verify", total=sum(job.ticks for job in jobs), note="")
        advance = partial(progress.advance, task)
        for place, findings in run_jobs(_do, jobs, processes=processes, on_progress=advance):
            found[place] = findings
            bad += len(findings.problems)
            progress.update(task, note=f"{bad} problems" if bad else "")
    return [found[place] for place in range(len(jobs))]


def _do(job: Job, tick: Tick) -> Findings:
    return job.check(job.index, tick)
