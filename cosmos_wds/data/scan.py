"""Shards of ours whose index was lost, or that were only tarred so: looked through once.

The heads of all members say where they lie, and each episode's arrays how long it is. What an
action's numbers mean stands nowhere in the tars: without index.json it is the contract of Bridge,
at the frame rate that the first episode's JSON says. What was found is remembered, by the names and
sizes of the tars, in the folder of [data] cache; the set itself is left as it is, until
`shard --index-only` (prepare/index_only.py) writes its index.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from cosmos_wds.config import write_text
from cosmos_wds.console import say, warn
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import (
    INDEX_NAME,
    EpisodeRow,
    ShardFile,
    ShardIndex,
    SplitIndex,
    load_array,
    read_member,
)
from cosmos_wds.data.jobs import UNFINISHED
from cosmos_wds.data.storage import Storage
from cosmos_wds.data.tars import TarSample, find_tars, scan, split_of
from cosmos_wds.errors import DataError

NEEDED = ("action.npy", "state.npy", "json")
THREADS = 16  # tars that are looked through at once
FORMAT = "1"  # of what is remembered


def open_split(where: Storage, split: str, *, memory: Path) -> SplitIndex:
    """One split of a set: as its index says, or as its tars do when it has none.

    memory   the folder in which scans are remembered

    Raises DataError when there is neither, or the tars hold something else than our shards.
    """
    names = where.list() if where.size(INDEX_NAME) < 0 else []
    if UNFINISHED in names or not any(name.endswith(".tar") for name in names):
        return ShardIndex.read(where).split(split)
    tars = [(tar, where.size(tar)) for tar in find_tars(where) if split_of(tar) == split]
    if not tars:
        raise DataError(f"{where}: no split {split!r}: no tar has it in its name")
    facts = json.dumps([FORMAT, str(where), split, tars])
    note = memory / "scans" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.jsonl"
    rows = _remembered(note)
    if rows is None:
        rows = find_rows(where, [tar for tar, _ in tars], ActionContract())
        _remember(note, rows)
        say(f"{escape(str(where))}: no index.json: {len(rows)} episodes found in {len(tars)} tars")
    lines = "\n".join(row.to_line() for row in rows)
    return SplitIndex(
        storage=where,
        split=split,
        contract=_bridge_contract(where, rows[0]),
        shards=tuple(shard_of(tar, size, rows) for tar, size in tars),
        rows=tuple(rows),
        digest=hashlib.sha256(f"{facts}\n{lines}".encode()).hexdigest()[:16],
    )


def find_rows(where: Storage, tars: Sequence[str], contract: ActionContract) -> list[EpisodeRow]:
    """The episodes of a split's tars, in their order.

    Raises DataError for what is no shard of ours, or holds other arrays than the contract says.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda tar: list(_rows(where, tar, contract)), tars)
        rows = [row for of_tar in found for row in of_tar]
    if not rows:
        raise DataError(f"{where}: its tars hold no episode; `cosmos-wds shard` makes shards")
    if len({row.key for row in rows}) < len(rows):
        raise DataError(f"{where}: a key comes twice; `cosmos-wds shard` makes shards of such tars")
    return rows


def _rows(where: Storage, tar: str, contract: ActionContract) -> Iterator[EpisodeRow]:
    for sample in scan(where, tar):
        row = EpisodeRow(sample.key, tar, 0, _places(sample))
        name = f"{where.name(tar)}: {sample.key}"
        missing = [member for member in NEEDED if member not in row.members]
        if sample.problem or missing or not any(m.endswith("mp4") for m in row.members):
            what = sample.problem or f"no {', '.join(missing) or 'mp4'}"
            raise DataError(
                f"{name}: {what}; this set has no index.json and holds no shards of ours: make "
                'them of it with `cosmos-wds shard` ([source] kind = "webdataset")'
            )
        state, action = (
            load_array(read_member(where, row, f"{kind}.npy"), f"{name}.{kind}.npy").shape
            for kind in ("state", "action")
        )
        numbers = len(contract.names)
        is_fit = contract.signal == "command" or state[1:] == (numbers,)
        if not state or action != (state[0] - 1, numbers) or not is_fit:
            raise DataError(
                f"{name}: actions {action}, states {state}: not {numbers} numbers a frame "
                f"({', '.join(contract.names)}), and what they mean stands in index.json; "
                "`cosmos-wds shard --index-only` writes one by a pipeline's [actions]"
            )
        yield replace(row, frames=state[0])


def _places(sample: TarSample) -> dict[str, tuple[int, int]]:
    return {name: (member.offset, member.size) for name, member in sample.members.items()}


def read_fps(where: Storage, row: EpisodeRow) -> float | None:
    """The frame rate that an episode's JSON says; None when it says none."""
    try:
        return float(json.loads(read_member(where, row, "json"))["fps"])
    except (ValueError, KeyError, TypeError):
        return None


def _bridge_contract(where: Storage, row: EpisodeRow) -> ActionContract:
    """Bridge's, at the frame rate of this episode."""
    bridge = ActionContract()
    fps = read_fps(where, row) or bridge.fps
    contract = replace(bridge, fps=fps)
    warn(
        f"{escape(str(where))}: no index.json says what the actions mean: taken as Bridge's, "
        f"{fps:g} frames a second (contract {contract.digest})"
    )
    return contract


def shard_of(tar: str, size: int, rows: Sequence[EpisodeRow], sha256: str = "") -> ShardFile:
    """What an index says of a tar, out of the rows of its split."""
    frames = [row.frames for row in rows if row.shard == tar]
    return ShardFile(tar, size, sha256=sha256, episodes=len(frames), frames=sum(frames))


def _remembered(note: Path) -> list[EpisodeRow] | None:
    with suppress(OSError, ValueError, TypeError):
        lines = note.read_text(encoding="utf-8").splitlines()
        return [EpisodeRow(**json.loads(line)) for line in lines]
    return None


def _remember(note: Path, rows: Sequence[EpisodeRow]) -> None:
    try:
        write_text(note, "\n".join(row.to_line() for row in rows) + "\n")
    except OSError as error:
        warn(f"{note}: cannot be written ({error.strerror}): the tars are scanned at each start")
