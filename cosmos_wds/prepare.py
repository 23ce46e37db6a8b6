"""Run a pipeline's second half: recordings -> shards.

    look      every annotation is read once: sizes, identities, what is wrong already
    plan      splits are cut into shards by file sizes
    write     one job a shard, on all cores; finished shards of an earlier run are kept
    publish   episodes' index of each split, rejected.jsonl, index.json last

A killed run leaves finished shards and DST/.unfinished; the same command goes on from there.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from cosmos_wds.console import progress_bar, say, warn
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import INDEX_NAME, ShardIndex
from cosmos_wds.data.jobs import (
    UNFINISHED,
    Look,
    Rejected,
    ShardJob,
    ShardResult,
    Source,
    finished_shard,
    look_at,
    plan_shards,
    write_shard,
)
from cosmos_wds.data.lock import try_lock
from cosmos_wds.data.publish import REJECTED_NAME, publish
from cosmos_wds.data.workers import cores, run_jobs
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.sources import open_source

LOOK_CHUNK = 64  # annotations a worker reads at once
SHOWN = 5  # rejected episodes that the summary names


@dataclass(frozen=True)
class Summary:
    """What a shard set holds, and what came of making it; as text, the set's folder."""

    path: Path
    splits: Mapping[str, Mapping[str, int]]
    """Split -> episodes, frames, shards, bytes."""
    rejected: tuple[Rejected, ...]
    kept: int = 0
    """Shards that an earlier run had finished."""
    is_new: bool = True
    seconds: float = 0.0

    def __str__(self) -> str:
        return str(self.path)

    def lines(self) -> Iterator[str]:
        """The summary in words."""
        for split, n in self.splits.items():
            yield (
                f"{split}: {n['episodes']} episodes, {n['frames']} frames; "
                f"{_count(n['shards'], 'shard')}, {n['bytes'] / 1e6:.1f} MB"
            )
        if self.kept:
            yield f"{_count(self.kept, 'shard')} kept from an earlier run"
        for bad in self.rejected[:SHOWN]:
            yield f"rejected: {bad.file}: {bad.reason}"
        if len(self.rejected) > SHOWN:
            yield f"rejected: {len(self.rejected) - SHOWN} more"
        if self.rejected:
            yield f"{len(self.rejected)} rejected in all: {self.path / REJECTED_NAME}"
        yield f"{self.path}: complete, {self.seconds:.1f} s"


@dataclass(frozen=True)
class _Plan:
    """All that is decided before the first byte is written."""

    pipeline: Pipeline
    source: Source
    contract: ActionContract
    looks: tuple[Look, ...]
    rejected: tuple[Rejected, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What the bytes of the set depend on besides recordings and contract."""
        return {
            "source.kind": self.pipeline.source.kind,
            "source.splits": list(self.pipeline.source.splits),
            "shards.megabytes": self.pipeline.shards.megabytes,
        }

    @property
    def fingerprint(self) -> str:
        """Of all annotations' contents and all videos' names and sizes."""
        lines = "\n".join(f"{look.file} {look.digest}" for look in self.looks)
        return hashlib.sha256(lines.encode("utf-8", "backslashreplace")).hexdigest()

    def jobs(self, folder: Path, **settings: Any) -> list[ShardJob]:
        """One job a shard, split after split."""
        bad = {entry.file for entry in self.rejected}
        limit = self.pipeline.shards.megabytes * 10**6
        jobs = []
        for split in self.source.splits:
            good = [look for look in self.looks if look.split == split and look.file not in bad]
            jobs += [
                ShardJob(self.source, self.contract, folder, split, number, looks, **settings)
                for number, looks in enumerate(plan_shards(good, limit))
            ]
        return jobs


def shard(pipeline: Pipeline, *, strict: bool = False) -> Summary:
    """Write the shard set of a pipeline, or complete it; a finished one is left alone.

    Bad episodes are listed in rejected.jsonl; with `strict` the first one is an error. Raises
    DataError for what cannot be read, written, or does not belong together.
    """
    began = time.monotonic()
    workers = pipeline.shards.workers or cores()
    plan = _look_around(pipeline, workers)
    if strict and plan.rejected:
        raise DataError(f"{plan.rejected[0].file}: {plan.rejected[0].reason}")
    folder = Path(pipeline.shards.path)
    if (folder / INDEX_NAME).exists():
        return _leave_alone(plan, folder)
    with _claimed(folder):
        if (folder / INDEX_NAME).exists():  # another run has just finished it
            return _leave_alone(plan, folder)
        try:
            kept, results = _write(plan, folder, workers, strict=strict)
            summary = _publish(plan, folder, results)
        except OSError as error:
            what = f"{error.filename or folder}: {error.strerror or error}"
            raise DataError(f"{what}; nothing finished is lost, run again to go on") from None
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    summary = replace(summary, kept=kept, seconds=time.monotonic() - began)
    for line in summary.lines():
        say(escape(line))
    return summary


def _look_around(pipeline: Pipeline, workers: int) -> _Plan:
    """List and read every annotation, and sort out those that cannot be used."""
    source = open_source(pipeline)
    chunks: list[tuple[str, list[Path]]] = []
    for split in source.splits:
        paths = source.list(split)
        if not paths:
            say(f"{escape(str(source.root))}: no episodes in split {escape(split)}; passed over")
        chunks += [(split, paths[i : i + LOOK_CHUNK]) for i in range(0, len(paths), LOOK_CHUNK)]
    total = sum(len(paths) for _, paths in chunks)
    if not total:
        raise DataError(f"{source.root}: no episodes in {', '.join(source.splits)}")
    found: dict[int, list[Look]] = {}
    with progress_bar() as progress:
        task = progress.add_task("look at episodes", total=total, note="")
        jobs = [partial(look_at, source, split, paths) for split, paths in chunks]
        processes = min(workers, len(jobs) // 16)  # starting one costs as much as some chunks
        advance = partial(progress.advance, task)
        for place, looks in run_jobs(_call, jobs, processes=processes, on_progress=advance):
            found[place] = looks
    looks = tuple(look for place in sorted(found) for look in found[place])
    contract = ActionContract.from_settings(pipeline.actions)
    return _Plan(pipeline, source, contract, looks, tuple(_unusable(looks)))


def _call(job: Any, tick: Any) -> Any:
    return job(tick)


def _unusable(looks: Sequence[Look]) -> Iterator[Rejected]:
    """What annotations alone disqualify. An id may come once in a split: its first bearer stays."""
    owners: dict[tuple[str, str], str] = {}
    for look in looks:
        reason = look.reason
        if not reason:
            owner = owners.setdefault((look.split, look.id), look.file)
            reason = "" if owner == look.file else f"the same episode_id as {owner}: {look.id}"
        if reason:
            yield Rejected.of(look, DataError(reason))


def _leave_alone(plan: _Plan, folder: Path) -> Summary:
    """A finished set of these recordings and settings needs nothing; any other is the user's."""
    index = ShardIndex.read(folder)
    before = index.table.get("settings", {})
    differences = [
        f"{key} (was {before.get(key)}, is {value})"
        for key, value in plan.settings.items()
        if before.get(key) != value
    ]
    differences += [f"actions.{line}" for line in index.contract.differences(plan.contract)]
    if index.table.get("source", {}).get("fingerprint") != plan.fingerprint:
        episodes = index.table.get("source", {}).get("episodes")
        differences.append(f"the recordings ({episodes} then, {len(plan.looks)} now, or changed)")
    if differences:
        raise DataError(
            f"{folder}: holds finished shards that differ in {'; '.join(differences)}. Remove the "
            "folder to make them anew, or give another one (shards.path)"
        )
    say(f"{escape(str(folder))}: finished before, of the same recordings; nothing to do")
    splits = {name: split["totals"] for name, split in index.table["splits"].items()}
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # of a run killed in its last moment
    lines = (folder / REJECTED_NAME).read_text().splitlines()
    rejected = tuple(Rejected(**json.loads(line)) for line in lines)
    return Summary(folder, splits, rejected, is_new=False)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run, cleared of what killed ones left."""
    work = folder / UNFINISHED
    if folder.is_dir() and not work.is_dir() and any(folder.glob("*.tar")):
        raise DataError(f"{folder}: holds tar files of something else; give another folder")
    try:
        while True:
            work.mkdir(parents=True, exist_ok=True)
            with open(work / "lock", "a+b") as file:
                if not try_lock(file):
                    raise DataError(f"{folder}: another run is writing it; wait for its end")
                if not _is_same(file.fileno(), work / "lock"):
                    continue  # the run that held it has just finished, and removed it
                for leftover in [*work.glob("*.tmp"), *folder.glob(".*.tmp")]:
                    leftover.unlink()
                yield
                return
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _is_same(handle: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(handle), path.stat())


def _write(
    plan: _Plan, folder: Path, workers: int, *, strict: bool
) -> tuple[int, list[tuple[ShardJob, ShardResult]]]:
    """Do all jobs; returns how many were done before, and the results in the jobs' order."""
    jobs = plan.jobs(folder, strict=strict)
    results = {i: done for i, job in enumerate(jobs) if (done := finished_shard(job))}
    kept, todo = len(results), [i for i in range(len(jobs)) if i not in results]
    wanted = sum(look.bytes for i in todo for look in jobs[i].looks)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise DataError(
            f"{folder}: {wanted / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free"
        )
    # Few shards are shared out among threads, so that the last one does not keep one core alone.
    processes = min(workers, len(todo) // 2)
    threads = -(-workers // max(1, processes))
    with progress_bar() as progress:
        done = sum(len(jobs[i].looks) for i in results)
        total = sum(len(job.looks) for job in jobs)
        task = progress.add_task("write shards", total=total, completed=done, note="")
        advance = partial(progress.advance, task)
        work = [replace(jobs[i], threads=threads) for i in todo]
        for place, result in run_jobs(write_shard, work, processes=processes, on_progress=advance):
            results[todo[place]] = result
    return kept, [(jobs[i], results[i]) for i in sorted(results)]


def _publish(plan: _Plan, folder: Path, done: list[tuple[ShardJob, ShardResult]]) -> Summary:
    bad = {entry.file: entry for entry in plan.rejected}
    bad |= {entry.file: entry for _, result in done for entry in result.rejected}
    rejected = tuple(bad[look.file] for look in plan.looks if look.file in bad)
    source = {
        "name": plan.pipeline.name,
        "episodes": len(plan.looks),
        "fingerprint": plan.fingerprint,
    }
    about = {"source": source, "settings": plan.settings}
    splits = publish(folder, done, plan.contract, rejected=rejected, about=about)
    rates = {fps for _, result in done for fps in result.container_fps} - {0, plan.contract.fps}
    if rates:
        found = ", ".join(f"{fps:g}" for fps in sorted(rates))
        warn(f"videos say {found} fps; taken as {plan.contract.fps:g} (actions.fps)")
    return Summary(folder, splits, rejected)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
