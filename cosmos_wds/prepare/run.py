"""A plan -> a finished set: recordings -> shards, and in latents.py shards -> latents.

    plan      every recording is read once, without its videos; splits are cut into shards
    write     one job a shard, on all cores; finished shards of an earlier run are kept
    publish   episodes' index of each split, rejected.jsonl, index.json last

A killed run leaves finished shards and DST/.unfinished; the same command goes on from there.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.markup import escape

from cosmos_wds.console import progress_bar, say, warn
from cosmos_wds.data.index import INDEX_NAME, ShardIndex
from cosmos_wds.data.jobs import UNFINISHED, Job, ShardResult, finished_shard, write_shard
from cosmos_wds.data.looks import Rejected
from cosmos_wds.data.publish import REJECTED_NAME, publish
from cosmos_wds.data.storage import Storage, storage
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare.engines import Engine, local_engine
from cosmos_wds.prepare.forecast import foresee
from cosmos_wds.prepare.plan import Plan, make_plan
from cosmos_wds.prepare.summary import Summary

Done = list[tuple[Job, ShardResult]]


def shard(
    pipeline: Pipeline,
    *,
    strict: bool = False,
    engine: Engine | None = None,
    dry_run: bool = False,
) -> Summary:
    """Write the shard set of a pipeline, or complete it; a finished one is left alone.

    Bad episodes are listed in rejected.jsonl; with `strict` the first one is an error. With
    `dry_run` nothing is written, and the summary is a forecast. Raises DataError for what cannot be
    read, written, or does not belong together.
    """
    engine = engine or local_engine(pipeline.shards.workers)
    where, plan = storage(pipeline.shards.path), make_plan(pipeline, engine)
    return complete(plan, where, engine, strict=strict, dry_run=dry_run)


def complete(
    plan: Plan, where: Storage, engine: Engine, *, strict: bool = False, dry_run: bool = False
) -> Summary:
    """Write a planned set, or what is left of it; a finished one is left alone.

    Raises DataError as `shard` does.
    """
    began = time.monotonic()
    if strict and plan.rejected:
        raise DataError(f"{plan.rejected[0].file}: {plan.rejected[0].reason}")
    if where.size(INDEX_NAME) >= 0:
        return _leave_alone(plan, where)
    if dry_run:
        return foresee(plan, where, engine).told()
    with _claimed(where):
        if where.size(INDEX_NAME) >= 0:  # another run has just finished it
            return _leave_alone(plan, where)
        try:
            kept, done = _write(plan, where, engine, strict=strict)
            summary = _publish(plan, where, done)
        except OSError as error:
            what = f"{error.filename or where}: {error.strerror or error}"
            raise DataError(f"{what}; nothing finished is lost, run again to go on") from None
        where.remove(UNFINISHED)
    return replace(summary, kept=kept, seconds=time.monotonic() - began).told()


def _leave_alone(plan: Plan, where: Storage) -> Summary:
    """A finished set of this input and these settings needs nothing; any other is the user's."""
    index = ShardIndex.read(where)
    if differences := plan.differences(index):
        raise DataError(
            f"{where}: holds finished shards that differ in {'; '.join(differences)}. Remove the "
            "folder to make them anew, or give another one"
        )
    say(f"{escape(str(where))}: finished before, of the same input; nothing to do")
    where.remove(UNFINISHED)  # of a run killed in its last moment
    lines = where.read(REJECTED_NAME).splitlines()
    rejected = tuple(Rejected(**json.loads(line)) for line in lines)
    return replace(Summary.of(where, index.table, rejected), is_new=False)


@contextmanager
def _claimed(where: Storage) -> Iterator[None]:
    """Hold the folder against a second run; it may hold nothing but what our runs have left."""
    if not where.has_folder(UNFINISHED) and any(n.endswith(".tar") for n in where.list()):
        raise DataError(f"{where}: holds tar files of something else; give another folder")
    try:
        with where.claimed(UNFINISHED):
            yield
    except OSError as error:
        raise DataError(f"{where}: cannot be written: {error.strerror or error}") from None


def _write(plan: Plan, where: Storage, engine: Engine, *, strict: bool) -> tuple[int, Done]:
    """Do all jobs; returns how many were done before, and the results in the jobs' order."""
    jobs = plan.jobs(where, strict=strict)
    results = {i: done for i, job in enumerate(jobs) if (done := finished_shard(job))}
    kept, todo = len(results), [i for i in range(len(jobs)) if i not in results]
    wanted, free = sum(sum(jobs[i].sizes) for i in todo), where.free
    if free is not None and wanted > free and plan.knows_bytes:
        raise DataError(
            f"{where}: {wanted / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free"
        )
    # Few shards are shared out among threads, so that the last one does not keep one core alone.
    each = 2 if plan.is_threaded else 1
    processes = engine.processes(len(todo), each)
    threads = max(2, -(-engine.workers // max(1, processes)))
    done = sum(len(jobs[i].sizes) for i in results)
    with _progress(done, sum(len(job.sizes) for job in jobs)) as advance:
        work = [replace(jobs[i], threads=threads) for i in todo]
        for place, result in engine.run(write_shard, work, on_progress=advance, each=each):
            results[todo[place]] = result
    return kept, [(jobs[i], results[i]) for i in sorted(results)]


@contextmanager
def _progress(done: int, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of episodes, with how many come in a second."""
    began, new = time.monotonic(), 0
    with progress_bar() as progress:
        task = progress.add_task("write shards", total=total, completed=done, note="")

        def advance(episodes: int) -> None:
            nonlocal new
            new += episodes
            rate = new / max(1e-3, time.monotonic() - began)
            progress.update(task, advance=episodes, note=f"{rate:.1f} episodes/s")

        yield advance


def _publish(plan: Plan, where: Storage, done: Done) -> Summary:
    rejected = plan.all_rejected(done)
    about = plan.about(done)
    table = publish(where, done, plan.contract, rejected=rejected, about=about)
    for line in table["concerns"]:
        warn(escape(line))
    return Summary.of(where, table, rejected)
