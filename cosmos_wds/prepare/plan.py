"""All that is decided before the first byte is written: what there is, and how it is cut."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.markup import escape

from cosmos_wds.console import progress_bar, say
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Recording, Source
from cosmos_wds.data.jobs import ShardJob
from cosmos_wds.data.looks import Look, Rejected, look_at, plan_shards, unusable
from cosmos_wds.data.storage import Storage
from cosmos_wds.data.workers import Tick
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare.engines import Engine
from cosmos_wds.sources import open_source

LOOK_CHUNK = 64  # recordings a worker reads at once


@dataclass(frozen=True)
class Plan:
    """Recordings, what they are taken for, and which of them cannot be used."""

    pipeline: Pipeline
    source: Source
    contract: ActionContract
    looks: tuple[Look, ...]
    rejected: tuple[Rejected, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What the bytes of the set depend on besides recordings and contract."""
        pipeline = self.pipeline
        video = pipeline.video.model_dump(exclude={"check"}) if pipeline.video.encodes else "copy"
        return {
            "source.kind": pipeline.source.kind,
            "source.splits": list(self.source.splits),
            "shards.megabytes": pipeline.shards.megabytes,
            "video": video,
        }

    @property
    def fingerprint(self) -> str:
        """Of what describes all episodes, and of all videos' names and sizes."""
        lines = "\n".join(f"{look.recording.file} {look.digest}" for look in self.looks)
        return hashlib.sha256(lines.encode("utf-8", "backslashreplace")).hexdigest()

    def jobs(self, where: Storage, *, strict: bool = False) -> list[ShardJob]:
        """One job a shard, split after split."""
        bad = {(entry.split, entry.file) for entry in self.rejected}
        good = [
            look for look in self.looks if (look.recording.split, look.recording.file) not in bad
        ]
        limit = self.pipeline.shards.megabytes * 10**6
        jobs = []
        for split in self.source.splits:
            of_split = [look for look in good if look.recording.split == split]
            jobs += [
                ShardJob(
                    self.source,
                    self.contract,
                    where,
                    split,
                    number,
                    looks,
                    video=self.pipeline.video,
                    strict=strict,
                )
                for number, looks in enumerate(plan_shards(of_split, limit))
            ]
        return jobs


def make_plan(pipeline: Pipeline, engine: Engine) -> Plan:
    """List and read every recording, and sort out those that cannot be used.

    Raises DataError when there is none, ConfigError for a source that is not known.
    """
    source = open_source(pipeline)
    contract = ActionContract.from_settings(pipeline.actions)
    chunks: list[list[Recording]] = []
    for split in source.splits:
        found = list(source.list(split))
        if not found:
            say(f"{escape(source.root)}: no episodes in split {escape(split)}; passed over")
        chunks += [found[i : i + LOOK_CHUNK] for i in range(0, len(found), LOOK_CHUNK)]
    total = sum(map(len, chunks))
    if not total:
        raise DataError(f"{source.root}: no episodes in {', '.join(source.splits)}")
    with progress_bar() as progress:
        task = progress.add_task("look at episodes", total=total, note="")
        jobs = [partial(look_at, source, contract, chunk) for chunk in chunks]
        # Starting a process costs as much as some chunks.
        done = engine.run(_call, jobs, on_progress=partial(progress.advance, task), each=16)
        looks_of = dict(done)
    looks = tuple(look for place in sorted(looks_of) for look in looks_of[place])
    return Plan(pipeline, source, contract, looks, tuple(unusable(looks)))


def _call(job: Any, tick: Tick) -> Any:
    return job(tick)
