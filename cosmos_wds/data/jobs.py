"""The second half of sharding: one job writes one shard, whoever does it and wherever.

A job is a pure function of the recordings and its settings. A shard is finished when its tar lies
under its final name with the note of its rows beside it.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Source
from cosmos_wds.data.index import BLOCK, FORMAT, EpisodeRow, ShardFile, load_array
from cosmos_wds.data.looks import Look, Rejected
from cosmos_wds.data.samples import Facts, Sample, make_sample
from cosmos_wds.data.shards import ShardWriter, array_bytes, episode_key
from cosmos_wds.data.storage import Storage
from cosmos_wds.data.workers import Tick, ahead
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import VideoSettings

MEASURED = 16  # one episode of so many tells what encoding again costs
UNFINISHED = ".unfinished"  # folder of notes and temporary files, gone when the set is whole


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """One shard to write, whatever it is made of: under which contract, and to where."""

    contract: ActionContract
    storage: Storage
    split: str
    number: int
    threads: int = 2
    strict: bool = False

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number)

    @property
    def note(self) -> str:
        """The file that says what is in the tar; the actions lie beside it."""
        return f"{UNFINISHED}/{self.name}.json"

    @property
    def actions(self) -> str:
        """The file of all its actions, for statistics without reading tars again."""
        return f"{UNFINISHED}/{self.name}.actions.npy"

    @property
    @abstractmethod
    def digest(self) -> str:
        """Changes with everything that the shard's bytes depend on."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """Of all its episodes."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """About how many bytes of the tar each episode will take."""

    @abstractmethod
    def sample(self, place: int) -> Sample | Rejected:
        """Its episode at a place, as `samples` has it."""

    @abstractmethod
    def samples(self) -> Iterator[Sample | Rejected]:
        """Its episodes in order; threads read a little ahead, while the disk or a hash works."""


@dataclass(frozen=True, kw_only=True)
class ShardJob(Job):
    """One shard of recordings."""

    source: Source
    looks: tuple[Look, ...]
    video: VideoSettings = VideoSettings()

    @property
    def digest(self) -> str:
        words = [str(FORMAT), self.contract.digest, repr(self.video)]
        words += [f"{look.recording.file} {look.digest}" for look in self.looks]
        return hashlib.sha256("\n".join(words).encode("utf-8", "backslashreplace")).hexdigest()

    @property
    def frames(self) -> int:
        return sum(look.frames for look in self.looks)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(look.bytes for look in self.looks)

    def sample(self, place: int) -> Sample | Rejected:
        look = self.looks[place]
        key = episode_key(self.split, look.recording.name)
        measured = place % MEASURED == 0
        return make_sample(self.source, self.contract, self.video, look, key, measured=measured)

    def samples(self) -> Iterator[Sample | Rejected]:
        return ahead(self.sample, range(len(self.looks)), threads=self.threads)


@dataclass(frozen=True)
class ShardResult:
    """A finished shard. Without rows (every episode rejected) there is no file of it."""

    shard: ShardFile
    rows: tuple[EpisodeRow, ...]
    rejected: tuple[Rejected, ...]
    facts: tuple[Facts, ...]


def shard_name(split: str, number: int) -> str:
    """The name of a split's shard; numbers sort as text."""
    return f"{split}-{number:06d}.tar"


def finished_shard(job: Job) -> ShardResult | None:
    """The job's result where an earlier run has left it whole, and for these very recordings."""
    try:
        note = json.loads(job.storage.read(job.note))
        if note["digest"] != job.digest:
            return None
        result = ShardResult(
            ShardFile(**note["shard"]),
            tuple(EpisodeRow(**row) for row in note["rows"]),
            tuple(Rejected(**entry) for entry in note["rejected"]),
            tuple(Facts(**entry) for entry in note["facts"]),
        )
    except (DataError, ValueError, KeyError, TypeError):
        return None
    return result if _is_in_place(job.storage, result) else None


def _is_in_place(storage: Storage, result: ShardResult) -> bool:
    if not result.rows:
        return True
    name = result.shard.name
    if storage.size(name) != result.shard.bytes:
        return False
    head = storage.read_range(name, 0, BLOCK)[:100].rstrip(b"\0").decode("ascii", "replace")
    return head.startswith(result.rows[0].key + ".")


def shard_actions(job: Job) -> np.ndarray:
    """(N, A) actions of a finished shard's episodes, one after the other."""
    return load_array(job.storage.read(job.actions), job.storage.name(job.actions))


def write_shard(job: Job, tick: Tick) -> ShardResult:
    """Write one shard: all or nothing under its name. What is bad in it is left out and told.

    Raises DataError at a bad episode when the job is strict, or when nothing can be written.
    """
    rows: list[EpisodeRow] = []
    rejected: list[Rejected] = []
    facts: list[Facts] = []
    actions = [np.zeros((0, len(job.contract.names)), np.float32)]
    with job.storage.writing(job.name) as file:
        writer = ShardWriter(file)
        for sample in job.samples():
            if isinstance(sample, Rejected):
                if job.strict:
                    raise DataError(f"{sample.file}: {sample.reason}")
                rejected.append(sample)
            else:
                places = writer.add(sample.facts.key, sample.members)
                rows.append(EpisodeRow(sample.facts.key, job.name, sample.facts.frames, places))
                facts.append(sample.facts)
                actions.append(sample.actions)
            tick()
        digest = writer.close()
        frames = sum(row.frames for row in rows)
        shard = ShardFile(job.name, writer.bytes, digest, len(rows), frames)
        result = ShardResult(shard, tuple(rows), tuple(rejected), tuple(facts))
        job.storage.write(job.actions, array_bytes(np.concatenate(actions)))
        note = json.dumps({"digest": job.digest, **vars(result)}, default=vars)
        # Before the tar gets its name, which says that all is there.
        job.storage.write(job.note, note.encode())
    if not rows:
        job.storage.remove(job.name)
    return result
