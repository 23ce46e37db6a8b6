"""What a shard set holds in figures: totals, pictures, texts, contract, statistics, what is wrong.

It costs the index, and the json of some thousand episodes; `--verify` is what reads everything.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cosmos_wds.data.index import ShardIndex, SplitIndex
from cosmos_wds.data.publish import REJECTED_NAME
from cosmos_wds.errors import DataError
from cosmos_wds.inspection.reach import first_video, read_about, spread, video_codec

LOOKED_AT = 2000  # episodes of a split whose json is read
OPENED = 8  # videos of a split whose codec is found out
EXAMPLES = 5  # texts that are shown
COLUMNS = ("mean", "std", "min", "max", "q01", "q99")
Counts = dict[str, int]


@dataclass(frozen=True)
class Totals:
    """What one split holds; `hours` at the contract's frames per second."""

    episodes: int
    frames: int
    hours: float
    shards: int
    bytes: int


@dataclass(frozen=True)
class Rejection:
    """A reason for which episodes were left out, and one of them."""

    reason: str
    episodes: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The facts of a shard set, in plain types."""

    path: str
    tool: str
    splits: Mapping[str, Totals]
    looked_at: int
    """Episodes that the next counts are of: all, or LOOKED_AT of each split, evenly apart."""
    cameras: Counts
    """Camera -> episodes that have it."""
    sizes: Counts
    """HEIGHTxWIDTH of the first camera -> episodes."""
    latents: int
    """Episodes with latents."""
    latent_format: Mapping[str, Any]
    """What the index says of them: tokenizer, shape of a frame, ..."""
    with_text: int
    texts: Sequence[str]
    """Some different ones."""
    different_texts: int
    codecs: Counts
    """Codec and pixel format -> videos, of the few that were opened."""
    encoding: str
    """Whether videos are as recorded, or encoded again."""
    contract: Mapping[str, Any]
    statistics: Mapping[str, Sequence[float]]
    """COLUMNS -> a number for each dimension of the contract; empty when the index has none."""
    statistics_of: str
    """The split whose actions they are of."""
    concerns: Sequence[str]
    """What looked wrong while the set was made."""
    rejected: Sequence[Rejection]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def overview(path: str) -> Overview:
    """Look at a finished set. Raises DataError where there is none, or naming what is damaged."""
    index = ShardIndex.read(path)
    splits = {name: index.split(name) for name in index.splits}
    seen = _Seen()
    for split in splits.values():
        for row in spread(len(split.rows), LOOKED_AT):
            seen.add(split, row)
        for row in spread(len(split.rows), OPENED):
            seen.open(split, row)
    statistics = _table(index, "statistics")
    return Overview(
        path=str(path),
        tool=str(index.table.get("tool", "")),
        splits={name: _totals(split) for name, split in splits.items()},
        looked_at=seen.episodes,
        cameras=dict(seen.cameras),
        sizes=dict(seen.sizes),
        latents=seen.latents,
        latent_format=_table(index, "latents"),
        with_text=seen.texts.total(),
        texts=[text for text, _ in seen.texts.most_common(EXAMPLES)],
        different_texts=len(seen.texts),
        codecs=dict(seen.codecs),
        encoding=str(_table(index, "video").get("encoding", "")),
        contract=index.contract.to_dict(),
        statistics=action_statistics(index),
        statistics_of=str(statistics.get("split", "")),
        concerns=[str(line) for line in index.table.get("concerns") or ()],
        rejected=_rejected(index),
    )


class _Seen:
    """Counts over the episodes that were looked at."""

    def __init__(self) -> None:
        self.episodes = self.latents = 0
        self.cameras: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.codecs: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()

    def add(self, split: SplitIndex, row: int) -> None:
        about = read_about(split, row)
        self.episodes += 1
        cameras = about.get("cameras")
        self.cameras.update(map(str, cameras if isinstance(cameras, list) else ()))
        self.sizes[f"{about.get('height')}x{about.get('width')}"] += 1
        self.latents += "latent.npy" in split.rows[row].members
        if text := str(about.get("text") or "").strip():
            self.texts[text] += 1

    def open(self, split: SplitIndex, row: int) -> None:
        if member := first_video(split, row):
            self.codecs[video_codec(split.read(row, member), split.name(row, member))] += 1


def _totals(split: SplitIndex) -> Totals:
    frames = sum(shard.frames for shard in split.shards)
    return Totals(
        episodes=sum(shard.episodes for shard in split.shards),
        frames=frames,
        hours=frames / split.contract.fps / 3600,
        shards=len(split.shards),
        bytes=sum(shard.bytes for shard in split.shards),
    )


def _table(index: ShardIndex, name: str) -> dict[str, Any]:
    """A table of index.json; empty where there is none."""
    found = index.table.get(name)
    return found if isinstance(found, dict) else {}


def action_statistics(index: ShardIndex) -> dict[str, list[float]]:
    """The index's statistics, column by column, where they are what they should be, else none."""
    table = _table(index, "statistics")
    try:
        found = {name: [float(value) for value in table[name]] for name in COLUMNS}
    except (KeyError, TypeError, ValueError):
        return {}
    wanted = len(index.contract.names)
    return found if all(len(column) == wanted for column in found.values()) else {}


def _rejected(index: ShardIndex) -> list[Rejection]:
    """Reasons from rejected.jsonl, numbers and file names in them left out, most frequent first."""
    groups: dict[str, list[str]] = {}
    try:
        lines = index.storage.read(REJECTED_NAME).splitlines()
    except DataError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
            file, reason = str(entry["file"]), str(entry["reason"])
        except (ValueError, KeyError, TypeError):
            continue
        kind = re.sub(r"\d+(\.\d+)?", "N", re.sub(r"\S*/[^\s:]*", "FILE", reason))
        groups.setdefault(kind, []).append(f"{file}: {reason}")
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [Rejection(kind, len(found), found[0]) for kind, found in ordered]
