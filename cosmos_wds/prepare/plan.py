"""All that is decided before the first byte is written: what there is, and how it is cut."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from rich.markup import escape

from cosmos_wds.console import progress_bar, say
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Recording, Source
from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.jobs import Job, ShardJob
from cosmos_wds.data.looks import Look, Rejected, look_at, plan_shards, unusable
from cosmos_wds.data.publish import Done, doubts, video_entry
from cosmos_wds.data.storage import Storage
from cosmos_wds.data.workers import Tick
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare.engines import Engine
from cosmos_wds.sources import open_source

LOOK_CHUNK = 64  # recordings a worker reads at once


class Plan(Protocol):
    """A set to write: of recordings (below), or of another set's latents (latents.py)."""

    @property
    def contract(self) -> ActionContract:
        """What the actions' numbers mean."""
        ...

    @property
    def rejected(self) -> Sequence[Rejected]:
        """What cannot be used, as far as that is known before writing."""
        ...

    @property
    def knows_bytes(self) -> bool:
        """Whether the set will be as large as the jobs say."""
        ...

    @property
    def is_threaded(self) -> bool:
        """Whether threads share all work on a shard, so that few shards keep all cores busy."""
        ...

    def jobs(self, where: Storage, *, strict: bool = False) -> Sequence[Job]:
        """One job a shard, split after split."""
        ...

    def differences(self, index: ShardIndex) -> list[str]:
        """In what a finished set is another one than this plan's."""
        ...

    def all_rejected(self, done: Done) -> tuple[Rejected, ...]:
        """What cannot be used, with what came up in writing, in the order of the input."""
        ...

    def about(self, done: Done) -> Mapping[str, Any]:
        """What index.json says besides what every set's says; `concerns` among it."""
        ...


@dataclass(frozen=True)
class RecordingPlan:
    """Recordings, what they are taken for, and which of them cannot be used."""

    pipeline: Pipeline
    source: Source
    contract: ActionContract
    looks: tuple[Look, ...]
    rejected: tuple[Rejected, ...]

    is_threaded = True

    @property
    def knows_bytes(self) -> bool:
        return not self.pipeline.video.encodes

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

    def differences(self, index: ShardIndex) -> list[str]:
        if index.latents:
            return ["what they hold (latents then, videos now)"]
        before = index.table.get("settings", {})
        found = [
            f"{key} (was {before.get(key)}, is {value})"
            for key, value in self.settings.items()
            if before.get(key) != value
        ]
        found += [f"actions.{line}" for line in index.contract.differences(self.contract)]
        source = index.table.get("source", {})
        if source.get("fingerprint") != self.fingerprint:
            episodes, now = source.get("episodes"), len(self.looks)
            found.append(f"the recordings ({episodes} then, {now} now, or changed)")
        return found

    def all_rejected(self, done: Done) -> tuple[Rejected, ...]:
        bad = {(entry.split, entry.file): entry for entry in self.rejected}
        bad |= {(entry.split, entry.file): entry for _, result in done for entry in result.rejected}
        places = [(look.recording.split, look.recording.file) for look in self.looks]
        return tuple(bad[place] for place in places if place in bad)

    def about(self, done: Done) -> Mapping[str, Any]:
        return {
            "concerns": doubts(done, self.contract),
            "video": video_entry(done, self.pipeline.video),
            "source": {
                "name": self.pipeline.name,
                "episodes": len(self.looks),
                "fingerprint": self.fingerprint,
            },
            "settings": self.settings,
        }

    def jobs(self, where: Storage, *, strict: bool = False) -> list[ShardJob]:
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
                    source=self.source,
                    contract=self.contract,
                    storage=where,
                    split=split,
                    number=number,
                    looks=looks,
                    video=self.pipeline.video,
                    strict=strict,
                )
                for number, looks in enumerate(plan_shards(of_split, limit))
            ]
        return jobs


def make_plan(pipeline: Pipeline, engine: Engine) -> RecordingPlan:
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
    return RecordingPlan(pipeline, source, contract, looks, tuple(unusable(looks)))


def _call(job: Any, tick: Tick) -> Any:
    return job(tick)
