"""The end of sharding: finished shards get their final numbers, their indexes, then index.json."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from cosmos_wds import __version__
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import FORMAT, INDEX_NAME, EpisodeRow, ShardFile
from cosmos_wds.data.jobs import Job, ShardResult, shard_actions, shard_name
from cosmos_wds.data.judge import action_statistics, concerns
from cosmos_wds.data.looks import Rejected
from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import VideoSettings

REJECTED_NAME = "rejected.jsonl"
Done = Sequence[tuple[Job, ShardResult]]


def publish(
    where: Storage,
    done: Done,
    contract: ActionContract,
    *,
    rejected: Sequence[Rejected],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Make a set of finished shards readable; returns what index.json says.

    `about` goes into index.json as it is. Killed on its way, it is done again from its start.
    """
    lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in rejected)
    where.write(REJECTED_NAME, lines.encode())
    done = [(job, result) for job, result in done if result.rows]
    if not done:
        raise DataError(
            f"{where}: no episode can be used; the first of {len(rejected)} rejected: "
            f"{rejected[0].file}: {rejected[0].reason}; all are in {where.name(REJECTED_NAME)}"
        )
    first = done[0][0].split
    actions = [shard_actions(job) for job, _ in done if job.split == first]
    statistics = {"split": first, **action_statistics(np.concatenate(actions), contract)}
    done = _renumbered(where, done)
    splits = {}
    for split in dict.fromkeys(job.split for job, _ in done):
        results = [result for job, result in done if job.split == split]
        rows = [row for result in results for row in result.rows]
        splits[split] = publish_split(where, split, [result.shard for result in results], rows)
    _remove_stale(where, {result.shard.name for _, result in done}, set(splits))
    about = {"statistics": statistics, **about}
    return publish_index(where, contract, splits, rejected=len(rejected), about=about)


def publish_index(
    where: Storage,
    contract: ActionContract,
    splits: Mapping[str, Mapping[str, Any]],
    *,
    rejected: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write index.json over finished splits, by which the set is complete; returns its content."""
    totals = [split["totals"] for split in splits.values()]
    table = {
        "format": FORMAT,
        "tool": f"cosmos-wds {__version__}",
        "contract": contract.to_dict(),
        **about,
        "totals": {
            **{key: sum(total[key] for total in totals) for key in totals[0]},
            "rejected": rejected,
        },
        "splits": splits,
    }
    where.write(INDEX_NAME, (json.dumps(table, indent=1) + "\n").encode())
    return table


def doubts(done: Done, contract: ActionContract) -> list[str]:
    """What looks wrong in finished shards of recordings."""
    facts = [fact for _, result in done for fact in result.facts]
    actions = [shard_actions(job) for job, result in done if result.rows]
    return list(concerns(facts, np.concatenate(actions), contract)) if facts else []


def video_entry(done: Done, settings: VideoSettings) -> dict[str, Any]:
    """What became of the videos, and what it cost where they were encoded again."""
    if not settings.encodes:
        return {"encoding": "the source's, byte for byte"}
    facts = [fact for _, result in done for fact in result.facts if fact.psnr is not None]
    values = [fact.psnr for fact in facts]
    loss = (
        {"episodes": len(values), "mean": round(float(np.mean(values)), 2), "min": min(values)}
        if values
        else None
    )
    made = settings.model_dump(exclude={"check", "codec"})
    return {"encoding": "h264", **made, "psnr": loss}


def _renumbered(where: Storage, done: Done) -> Done:
    """Close the gaps that shards left of which every episode was rejected."""
    numbers: dict[str, int] = {}
    renumbered = []
    for job, result in done:
        number = numbers.get(job.split, 0)
        numbers[job.split] = number + 1
        name = shard_name(job.split, number)
        if name != result.shard.name:
            where.move(result.shard.name, name)
            shard = replace(result.shard, name=name)
            rows = tuple(replace(row, shard=name) for row in result.rows)
            result = replace(result, shard=shard, rows=rows)
        renumbered.append((job, result))
    return renumbered


def publish_split(
    where: Storage, split: str, shards: Sequence[ShardFile], rows: Sequence[EpisodeRow]
) -> dict[str, Any]:
    """Write the index of a split's episodes; returns what index.json says of the split."""
    lines = "".join(row.to_line() + "\n" for row in rows).encode()
    where.write(f"{split}.idx.jsonl", lines)
    tables = [asdict(shard) for shard in shards]
    totals = {key: sum(table[key] for table in tables) for key in ("episodes", "frames", "bytes")}
    return {
        "totals": {**totals, "shards": len(tables)},
        "index_sha256": hashlib.sha256(lines).hexdigest(),
        "shards": tables,
    }


def _remove_stale(where: Storage, shards: set[str], splits: set[str]) -> None:
    """Remove what unfinished runs over other recordings or settings have left."""
    for name in where.list():
        is_shard = re.fullmatch(r".+-\d{6}\.tar", name) and name not in shards
        is_index = name.endswith(".idx.jsonl") and name.split(".")[0] not in splits
        if is_shard or is_index:
            where.remove(name)
