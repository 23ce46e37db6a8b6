"""What the processes of sharding do: look at recordings, and write one shard of them.

Both are pure functions of the recordings and the job, so that it never matters who does them. A
shard is finished when its tar lies under its final name with the note of its rows beside it.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from cosmos_wds.config import write_text
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Episode
from cosmos_wds.data.index import BLOCK, FORMAT, EpisodeRow, ShardFile
from cosmos_wds.data.shards import ShardWriter, episode_key, episode_members, estimated_bytes
from cosmos_wds.data.video import VideoFacts, probe
from cosmos_wds.data.workers import Tick
from cosmos_wds.errors import DataError

UNFINISHED = ".unfinished"  # folder of notes and temporary files, gone when the set is whole


class Source(Protocol):
    """Recordings of one layout. Sources travel to worker processes, so they pickle."""

    root: Path
    splits: tuple[str, ...]

    def list(self, split: str) -> list[Path]:
        """One file for each episode of the split, always in the same order."""
        ...

    def relative(self, path: Path) -> str:
        """How a file is named in indexes and reports, wherever the source lies."""
        ...

    def read(self, path: Path) -> Episode:
        """The episode of a file of `list`. Raises DataError for one that is not usable."""
        ...


@dataclass(frozen=True)
class Rejected:
    """An episode that did not make it, as rejected.jsonl has it."""

    episode: str
    split: str
    file: str
    reason: str

    @classmethod
    def of(cls, look: "Look", error: Exception) -> "Rejected":
        """The reason without the file that it begins with, and printable whatever it quotes."""
        words = str(error).removeprefix(f"{look.file}: ")
        words = words.encode("utf-8", "backslashreplace").decode()
        return cls(look.id, look.split, look.file, words)


@dataclass(frozen=True)
class Look:
    """What planning needs to know of one recording."""

    path: Path
    split: str
    file: str
    id: str
    digest: str
    """Of the annotation's bytes and of its videos' names and sizes."""
    bytes: int = 0
    """At most this much of a tar."""
    reason: str = ""
    """Why it cannot be used, as far as its annotation tells."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: which recordings, under which contract, and to where."""

    source: Source
    contract: ActionContract
    folder: Path
    split: str
    number: int
    looks: tuple[Look, ...]
    threads: int = 1
    strict: bool = False

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number)

    @property
    def note(self) -> Path:
        """The file that says, beside the tar, what is in it."""
        return self.folder / UNFINISHED / f"{self.name}.json"

    @property
    def digest(self) -> str:
        """Changes with everything that the shard's bytes depend on."""
        words = [str(FORMAT), self.contract.digest]
        words += [f"{look.file} {look.digest}" for look in self.looks]
        return hashlib.sha256("\n".join(words).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True)
class ShardResult:
    """A finished shard. Without rows (every episode rejected) there is no file of it."""

    shard: ShardFile
    rows: tuple[EpisodeRow, ...]
    rejected: tuple[Rejected, ...]
    container_fps: tuple[float, ...]
    """The rates that its videos' containers claim."""


def shard_name(split: str, number: int) -> str:
    """The name of a split's shard; numbers sort as text."""
    return f"{split}-{number:06d}.tar"


def look_at(source: Source, split: str, paths: Sequence[Path], tick: Tick) -> list[Look]:
    """Read annotations, but no video: sizes, identity and what is wrong already."""
    looks = []
    for path in paths:
        looks.append(_look(source, split, path))
        tick()
    return looks


def _look(source: Source, split: str, path: Path) -> Look:
    file, content = source.relative(path), hashlib.sha256()
    episode_id, reason, size = path.stem, "", 0
    try:
        content.update(path.read_bytes())
        episode = source.read(path)
        episode_id = episode.id
        sizes = {camera: video.stat().st_size for camera, video in episode.videos.items()}
        names = [f"{source.relative(episode.videos[c])} {sizes[c]}" for c in sizes]
        content.update("\n".join(names).encode("utf-8", "backslashreplace"))
        size = estimated_bytes(episode, sizes)
    except (DataError, OSError) as error:
        reason = str(error)
    return Look(path, split, file, episode_id, content.hexdigest(), size, reason)


def finished_shard(job: ShardJob) -> ShardResult | None:
    """The job's result where an earlier run has left it whole, and for these very recordings."""
    try:
        note = json.loads(job.note.read_bytes())
        if note["digest"] != job.digest:
            return None
        result = ShardResult(
            ShardFile(**note["shard"]),
            tuple(EpisodeRow(**row) for row in note["rows"]),
            tuple(Rejected(**entry) for entry in note["rejected"]),
            tuple(note["container_fps"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if _is_in_place(job.folder, result) else None


def _is_in_place(folder: Path, result: ShardResult) -> bool:
    if not result.rows:
        return True
    path = folder / result.shard.name
    if not path.is_file() or path.stat().st_size != result.shard.bytes:
        return False
    with open(path, "rb") as file:
        first = file.read(BLOCK)[:100].rstrip(b"\0").decode("ascii", "replace")
    return first.startswith(result.rows[0].key + ".")


def write_shard(job: ShardJob, tick: Tick) -> ShardResult:
    """Write one shard: all or nothing under its name. What is bad in it is left out and told.

    Raises DataError at a bad episode when the job is strict.
    """
    temporary = job.folder / UNFINISHED / f"{job.name}.{os.getpid()}.tmp"
    rows: list[EpisodeRow] = []
    rejected: list[Rejected] = []
    rates: set[float] = set()
    try:
        with open(temporary, "wb") as file:
            writer = ShardWriter(file)
            for look, sample in zip(job.looks, _samples(job), strict=True):
                if isinstance(sample, Rejected):
                    if job.strict:
                        raise DataError(f"{sample.file}: {sample.reason}")
                    rejected.append(sample)
                else:
                    key = episode_key(look.split, look.file)
                    places = writer.add(key, sample.members)
                    rows.append(EpisodeRow(key, job.name, sample.frames, places))
                    rates.add(sample.facts.fps)
                tick()
            digest = writer.close()
            file.flush()
            os.fsync(file.fileno())
        frames = sum(row.frames for row in rows)
        shard = ShardFile(job.name, writer.bytes, digest, len(rows), frames)
        result = ShardResult(shard, tuple(rows), tuple(rejected), tuple(sorted(rates)))
        write_text(job.note, json.dumps({"digest": job.digest, **asdict(result)}))
        if rows:
            os.replace(temporary, job.folder / job.name)
    finally:
        temporary.unlink(missing_ok=True)
    return result


@dataclass(frozen=True)
class _Sample:
    members: dict[str, bytes]
    frames: int
    """As many as there are states; the video may hold more."""
    facts: VideoFacts


def _samples(job: ShardJob) -> Iterator[_Sample | Rejected]:
    """The job's episodes in order; threads work a little ahead, decoders being free of the GIL."""
    if job.threads <= 1:
        yield from (_sample(job, look) for look in job.looks)
        return
    with ThreadPoolExecutor(job.threads) as pool:
        running: deque[Future[_Sample | Rejected]] = deque()
        try:
            for look in job.looks:
                running.append(pool.submit(_sample, job, look))
                if len(running) > 2 * job.threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _sample(job: ShardJob, look: Look) -> _Sample | Rejected:
    """Read one episode whole, decode its videos to see that they are what the states need."""
    try:
        annotation = look.path.read_bytes()
        episode = job.source.read(look.path)
        videos = {camera: path.read_bytes() for camera, path in episode.videos.items()}
        facts = {}
        for camera, path in episode.videos.items():
            name = job.source.relative(path)
            facts[camera] = probe(videos[camera], name=name)
            if facts[camera].frames < len(episode.state):  # frames after the last state are unused
                raise DataError(
                    f"{name}: {facts[camera].frames} frames for {len(episode.state)} states"
                )
    except DataError as error:
        return Rejected.of(look, error)
    except OSError as error:
        return Rejected.of(look, DataError(f"{error.filename}: {error.strerror}"))
    digest = hashlib.sha256(annotation).hexdigest()
    first = facts[min(facts)]
    members = episode_members(episode, job.contract, videos, first, digest)
    return _Sample(members, len(episode.state), first)


def plan_shards(looks: Iterable[Look], limit: int) -> list[tuple[Look, ...]]:
    """Cut a split's recordings into shards, in order: each closes before it would exceed `limit`.

    It depends on file sizes alone, so every machine and every rerun cuts alike.
    """
    shards: list[list[Look]] = []
    size = limit
    for look in looks:
        if size + look.bytes > limit:
            shards.append([])
            size = 2 * BLOCK
        shards[-1].append(look)
        size += look.bytes
    return [tuple(shard) for shard in shards]
