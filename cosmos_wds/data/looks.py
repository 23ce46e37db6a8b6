"""The first half of sharding: every recording is read once, without its videos, and planned.

All of it depends on the recordings alone, so every machine and every rerun cuts alike.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Recording, Source
from cosmos_wds.data.index import BLOCK
from cosmos_wds.data.shards import estimated_bytes
from cosmos_wds.data.workers import Tick
from cosmos_wds.errors import DataError

THREADS, REMOTE_THREADS = 4, 16  # while one waits for the disk, or a store far away, others read


@dataclass(frozen=True)
class Rejected:
    """An episode that did not make it, as rejected.jsonl has it."""

    episode: str
    split: str
    file: str
    reason: str

    @classmethod
    def of(cls, look: "Look", error: Exception | str) -> "Rejected":
        """The reason without the file that it begins with, and printable whatever it quotes."""
        words = str(error).removeprefix(f"{look.recording.file}: ")
        words = words.encode("utf-8", "backslashreplace").decode()
        return cls(look.id, look.recording.split, look.recording.file, words)


@dataclass(frozen=True)
class Look:
    """What planning needs to know of one recording."""

    recording: Recording
    id: str
    digest: str
    """Of what describes it, and of its videos' names and sizes."""
    bytes: int = 0
    """About this much of a tar."""
    frames: int = 0
    reason: str = ""
    """Why it cannot be used, as far as can be told without its videos."""


def look_at(
    source: Source, contract: ActionContract, recordings: Sequence[Recording], tick: Tick
) -> list[Look]:
    """Read recordings, but no video: sizes, identity and what is wrong already."""
    threads = REMOTE_THREADS if "://" in source.root else THREADS

    def look(part: Sequence[Recording]) -> list[Look]:
        return [_look(source, contract, recording) for recording in part]

    each = -(-len(recordings) // threads)
    looks = []
    with ThreadPoolExecutor(threads) as pool:
        parts = [recordings[i : i + each] for i in range(0, len(recordings), each)]
        for found in pool.map(look, parts):
            looks += found
            for _ in found:
                tick()
    return looks


def _look(source: Source, contract: ActionContract, recording: Recording) -> Look:
    try:
        episode = source.read(recording)
        contract.check(episode)
        videos = [(video.name, video.size()) for video in episode.videos.values()]
    except DataError as error:
        digest = hashlib.sha256(str(error).encode("utf-8", "backslashreplace")).hexdigest()
        return Look(recording, recording.name, digest, reason=str(error))
    words = "\n".join([episode.source_sha256, *(f"{name} {size}" for name, size in videos)])
    digest = hashlib.sha256(words.encode("utf-8", "backslashreplace")).hexdigest()
    size = estimated_bytes(episode, [size for _, size in videos])
    return Look(recording, episode.id, digest, size, len(episode.state))


def unusable(looks: Sequence[Look]) -> Iterator[Rejected]:
    """What is disqualified already. An id may come once in a split: its first bearer stays."""
    owners: dict[tuple[str, str], str] = {}
    for look in looks:
        reason, recording = look.reason, look.recording
        if not reason:
            owner = owners.setdefault((recording.split, look.id), recording.file)
            if owner != recording.file:
                reason = f"the same episode_id as {owner}: {look.id}"
        if reason:
            yield Rejected.of(look, reason)


def plan_shards(looks: Iterable[Look], limit: int) -> list[tuple[Look, ...]]:
    """Cut a split's recordings into shards, in order: each closes before it would pass `limit`."""
    shards: list[list[Look]] = []
    size = limit
    for look in looks:
        if size + look.bytes > limit:
            shards.append([])
            size = 2 * BLOCK
        shards[-1].append(look)
        size += look.bytes
    return [tuple(shard) for shard in shards]
