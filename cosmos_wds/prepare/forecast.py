"""`shard --dry-run`: what would be made, how large, and in about how many seconds."""

import time
from collections.abc import Sequence

from cosmos_wds.data.jobs import Job
from cosmos_wds.data.looks import Rejected
from cosmos_wds.data.storage import Storage
from cosmos_wds.prepare.engines import Engine
from cosmos_wds.prepare.plan import Plan
from cosmos_wds.prepare.summary import Summary

TRIED = 8  # episodes that are read in full, and thrown away


def foresee(plan: Plan, where: Storage, engine: Engine) -> Summary:
    """Plan all, and try a few episodes from all over the set: their time stands for the others'."""
    jobs = plan.jobs(where)
    splits = {}
    for split in dict.fromkeys(job.split for job in jobs):
        of_split = [job for job in jobs if job.split == split]
        splits[split] = {
            "episodes": sum(len(job.sizes) for job in of_split),
            "frames": sum(job.frames for job in of_split),
            "bytes": sum(sum(job.sizes) for job in of_split),
            "shards": len(of_split),
        }
    seconds, rejected, share = _try_some(jobs)
    if not plan.knows_bytes:
        for totals in splits.values():
            totals["bytes"] = round(totals["bytes"] * share)
    processes = engine.processes(len(jobs), 1)
    seconds /= engine.workers if plan.is_threaded else max(1, processes)
    bad = (*plan.rejected, *rejected)
    return Summary(where, splits, {}, bad, is_forecast=True, seconds=seconds)


def _try_some(jobs: Sequence[Job]) -> tuple[float, list[Rejected], float]:
    """Seconds that one worker needs for all, what was rejected of the tried, bytes of the made
    samples as a share of the estimate."""
    places = [(job, place) for job in jobs for place in range(len(job.sizes))]
    tried = places[:: max(1, len(places) // TRIED)][:TRIED]
    began, made, estimated = time.monotonic(), 0, 0
    rejected = []
    for job, place in tried:
        sample = job.sample(place)
        if isinstance(sample, Rejected):
            rejected.append(sample)
        else:
            made += sum(map(len, sample.members.values()))
            estimated += job.sizes[place]
    seconds = (time.monotonic() - began) * len(places) / max(1, len(tried))
    return seconds, rejected, made / estimated if estimated else 1.0
