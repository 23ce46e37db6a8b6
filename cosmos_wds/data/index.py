"""What is in a shard set: index.json for the whole, SPLIT.idx.jsonl for every episode's bytes.

The offsets let a reader take one member out of a tar without walking through it. index.json is
written last, so a set that has it is complete.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.storage import Storage, storage
from cosmos_wds.errors import DataError

FORMAT = 1
INDEX_NAME = "index.json"
BLOCK = 512  # a tar's unit; every member's data come right after one block of header


@dataclass(frozen=True)
class ShardFile:
    """One tar of a split."""

    name: str
    bytes: int
    sha256: str
    episodes: int
    frames: int


@dataclass(frozen=True)
class EpisodeRow:
    """Where one episode lies: `members` maps a name without its key to (offset, size)."""

    key: str
    shard: str
    frames: int
    members: Mapping[str, tuple[int, int]]

    def to_line(self) -> str:
        """The row as one line of JSON."""
        return json.dumps(vars(self), separators=(",", ":"))


@dataclass(frozen=True)
class LatentFormat:
    """What the latents of a set are, and what they were made of: `latents` in index.json."""

    tokenizer: str
    """Its kind, as a recipe's [tokenizer] names it."""
    digest: str
    """The tokenizer's: latents fit no other one."""
    shards: str
    """`ShardIndex.digest` of the set that was encoded."""
    camera: int
    height: int
    """Rows of pixels that were encoded."""
    width: int
    shape: tuple[int, int, int]
    """(C, h, w) of one frame."""
    batch: int
    """Frames that were encoded together."""
    dtype: str = "float16"

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "LatentFormat":
        """From index.json. Raises KeyError, TypeError for what it is not."""
        channels, height, width = table["shape"]
        return cls(**{**table, "shape": (channels, height, width)})


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The content of index.json: `table` holds it all, the fields what readers need."""

    storage: Storage
    contract: ActionContract
    splits: Mapping[str, tuple[ShardFile, ...]]
    table: Mapping[str, Any]
    latents: LatentFormat | None = None
    """Of a set that holds latents instead of videos."""

    @classmethod
    def read(cls, place: Path | str | Storage) -> "ShardIndex":
        """The index of a finished set, in a folder or at a URL. Raises DataError without one."""
        where = storage(place) if isinstance(place, str | Path) else place
        if where.size(INDEX_NAME) < 0:
            what = (
                "has no index.json: unfinished, or no shards"
                if where.has_folder()
                else "no such folder"
            )
            raise DataError(f"{where}: {what}; `cosmos-wds shard` makes and completes shards")
        content, name = where.read(INDEX_NAME), where.name(INDEX_NAME)
        try:
            table = json.loads(content)
            version = table["format"]
            if version != FORMAT:
                raise DataError(f"{name}: format {version}; this version reads format {FORMAT}")
            contract = ActionContract.from_dict(table["contract"])
            splits = {
                name: tuple(ShardFile(**shard) for shard in split["shards"])
                for name, split in table["splits"].items()
            }
            latents = LatentFormat.from_dict(table["latents"]) if "latents" in table else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{name}: not an index of shards: {error!r}") from None
        return cls(where, contract, splits, table, latents)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits of everything that is in the set: contract, episodes, checksums."""
        return _digest(self.contract.digest, *(self.split_digest(name) for name in self.splits))

    def split_digest(self, name: str) -> str:
        """Sixteen hex digits of one split: what the order of its windows is a function of."""
        shards = json.dumps([asdict(shard) for shard in self.splits[name]])
        return _digest(name, self.table["splits"][name]["index_sha256"], shards)

    def split(self, name: str) -> "SplitIndex":
        """Every episode of one split. Raises DataError naming the splits that there are."""
        if name not in self.splits:
            raise DataError(f"{self.storage}: no split {name!r}; there is {', '.join(self.splits)}")
        file = f"{name}.idx.jsonl"
        content = self.storage.read(file)
        if hashlib.sha256(content).hexdigest() != self.table["splits"][name]["index_sha256"]:
            raise DataError(
                f"{self.storage.name(file)}: is not what index.json says; shard the set again"
            )
        tables = json.loads(b"[" + b",".join(content.splitlines()) + b"]")
        return SplitIndex(
            storage=self.storage,
            split=name,
            contract=self.contract,
            shards=self.splits[name],
            rows=tuple(EpisodeRow(**table) for table in tables),
            digest=self.split_digest(name),
            latents=self.latents,
        )


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """Every episode of one split, in the order of the shards, and the way to its bytes."""

    storage: Storage
    split: str
    contract: ActionContract
    shards: tuple[ShardFile, ...]
    rows: tuple[EpisodeRow, ...]
    digest: str
    latents: LatentFormat | None = None
    """Of a set that holds latents instead of videos."""

    @classmethod
    def load(cls, place: Path | str | Storage, split: str) -> "SplitIndex":
        """One split of a finished set."""
        return ShardIndex.read(place).split(split)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(E,) frames of each episode."""
        return np.array([row.frames for row in self.rows], np.int64)

    @cached_property
    def shard_numbers(self) -> np.ndarray:
        """(E,) place of each episode's shard in `shards`."""
        numbers = {shard.name: i for i, shard in enumerate(self.shards)}
        return np.array([numbers[row.shard] for row in self.rows], np.int64)

    def name(self, row: int, member: str) -> str:
        """How a member is called in errors."""
        return f"{self.storage.name(self.rows[row].shard)}: {self.rows[row].key}.{member}"

    def read(self, row: int, member: str) -> bytes:
        """The bytes of one member. Raises DataError naming shard and key."""
        return read_member(self.storage, self.rows[row], member)

    def read_array(self, row: int, member: str) -> np.ndarray:
        """A .npy member."""
        return load_array(self.read(row, member), self.name(row, member))

    def read_json(self, row: int) -> dict[str, Any]:
        """What is known of an episode: id, text, sizes, source, and the source's unknown keys."""
        try:
            found: dict[str, Any] = json.loads(self.read(row, "json"))
        except ValueError as error:
            raise DataError(f"{self.name(row, 'json')}: not JSON: {error}") from None
        return found


def video_member(camera: int) -> str:
    """The name, without its key, of a camera's video."""
    return f"{camera}.mp4" if camera else "mp4"


def read_member(where: Storage, row: EpisodeRow, member: str) -> bytes:
    """Read one member by its offset, and check the header before it: that it is the one meant."""
    path = where.name(row.shard)
    if member not in row.members:
        raise DataError(f"{path}: {row.key}: no {member}; it has {', '.join(row.members)}")
    offset, size = row.members[member]
    try:
        content = where.read_range(row.shard, offset - BLOCK, BLOCK + size)
    except DataError as error:
        raise DataError(f"{error} (for {row.key}.{member})") from None
    name = content[:100].rstrip(b"\0").decode("ascii", "replace")
    if len(content) < BLOCK + size or name != f"{row.key}.{member}":
        what = "the tar is cut off" if len(content) < BLOCK + size else f"holds {name!r}"
        raise DataError(f"{path}: {row.key}.{member}: not at its place: {what}; shard it again")
    return content[BLOCK:]


def load_array(data: bytes, name: str) -> np.ndarray:
    """A .npy from its bytes; `name` stands for it in errors."""
    try:
        array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{name}: not an array: {error}") from None
    return array


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
