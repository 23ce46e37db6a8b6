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
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The content of index.json: `table` holds it all, the fields what readers need."""

    root: Path
    contract: ActionContract
    splits: Mapping[str, tuple[ShardFile, ...]]
    table: Mapping[str, Any]

    @classmethod
    def read(cls, root: Path | str) -> "ShardIndex":
        """The index of a finished set. Raises DataError where there is none."""
        root = Path(root)
        path = root / INDEX_NAME
        if not path.is_file():
            what = (
                "has no index.json: unfinished, or no shards" if root.is_dir() else "no such folder"
            )
            raise DataError(f"{root}: {what}; `cosmos-wds shard` makes and completes shards")
        try:
            table = json.loads(path.read_bytes())
            version = table["format"]
            if version != FORMAT:
                raise DataError(f"{path}: format {version}; this version reads format {FORMAT}")
            contract = ActionContract.from_dict(table["contract"])
            splits = {
                name: tuple(ShardFile(**shard) for shard in split["shards"])
                for name, split in table["splits"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not an index of shards: {error!r}") from None
        return cls(root, contract, splits, table)

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
            raise DataError(f"{self.root}: no split {name!r}; there is {', '.join(self.splits)}")
        path = self.root / f"{name}.idx.jsonl"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != self.table["splits"][name]["index_sha256"]:
            raise DataError(f"{path}: is not what index.json says; shard the set again")
        tables = json.loads(b"[" + b",".join(content.splitlines()) + b"]")
        return SplitIndex(
            root=self.root,
            split=name,
            contract=self.contract,
            shards=self.splits[name],
            rows=tuple(EpisodeRow(**table) for table in tables),
            digest=self.split_digest(name),
        )


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """Every episode of one split, in the order of the shards, and the way to its bytes."""

    root: Path
    split: str
    contract: ActionContract
    shards: tuple[ShardFile, ...]
    rows: tuple[EpisodeRow, ...]
    digest: str

    @classmethod
    def load(cls, root: Path | str, split: str) -> "SplitIndex":
        """One split of a finished set."""
        return ShardIndex.read(root).split(split)

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
        return f"{self.root / self.rows[row].shard}: {self.rows[row].key}.{member}"

    def read(self, row: int, member: str) -> bytes:
        """The bytes of one member. Raises DataError naming shard and key."""
        return read_member(self.root, self.rows[row], member)

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


def read_member(root: Path, row: EpisodeRow, member: str) -> bytes:
    """Read one member by its offset, and check the header before it: that it is the one meant."""
    path = root / row.shard
    if member not in row.members:
        raise DataError(f"{path}: {row.key}: no {member}; it has {', '.join(row.members)}")
    offset, size = row.members[member]
    try:
        with open(path, "rb") as file:
            file.seek(offset - BLOCK)
            header, data = file.read(BLOCK), file.read(size)
    except OSError as error:
        raise DataError(f"{path}: {row.key}: cannot be read: {error.strerror}") from None
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    if len(data) < size or name != f"{row.key}.{member}":
        what = (
            "the tar is cut off" if len(header) < BLOCK or len(data) < size else f"holds {name!r}"
        )
        raise DataError(f"{path}: {row.key}.{member}: not at its place: {what}; shard it again")
    return data


def load_array(data: bytes, name: str) -> np.ndarray:
    """A .npy from its bytes; `name` stands for it in errors."""
    try:
        array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{name}: not an array: {error}") from None
    return array


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
