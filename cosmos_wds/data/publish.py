"""The end of sharding: finished shards get their final numbers, their indexes, then index.json."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_wds import __version__
from cosmos_wds.config import write_text
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import FORMAT, INDEX_NAME, EpisodeRow, load_array, read_member
from cosmos_wds.data.jobs import Rejected, ShardJob, ShardResult, shard_name
from cosmos_wds.errors import DataError

REJECTED_NAME = "rejected.jsonl"
Totals = dict[str, int]
Done = Sequence[tuple[ShardJob, ShardResult]]


def publish(
    folder: Path,
    done: Done,
    contract: ActionContract,
    *,
    rejected: Sequence[Rejected],
    about: Mapping[str, Any],
) -> dict[str, Totals]:
    """Make a set of finished shards readable; returns each split's totals.

    `about` goes into index.json as it is. Killed on its way, it is done again from its start.
    """
    lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in rejected)
    write_text(folder / REJECTED_NAME, lines)
    done = _renumbered(folder, [(job, result) for job, result in done if result.rows])
    if not done:
        raise DataError(
            f"{folder}: no episode can be used; the first of {len(rejected)} rejected: "
            f"{rejected[0].file}: {rejected[0].reason}; all are in {folder / REJECTED_NAME}"
        )
    splits = {}
    for split in dict.fromkeys(job.split for job, _ in done):
        splits[split] = _publish_split(folder, split, [r for job, r in done if job.split == split])
    _remove_stale(folder, {result.shard.name for _, result in done}, set(splits))
    first = next(iter(splits))
    rows = [row for job, result in done if job.split == first for row in result.rows]
    totals = {name: split["totals"] for name, split in splits.items()}
    whole = {key: sum(t[key] for t in totals.values()) for key in next(iter(totals.values()))}
    table = {
        "format": FORMAT,
        "tool": f"cosmos-wds {__version__}",
        "contract": contract.to_dict(),
        "statistics": {"split": first, **action_statistics(folder, rows, contract)},
        "video": {
            "encoding": "the source's, byte for byte",
            "container_fps": sorted({fps for _, r in done for fps in r.container_fps}),
        },
        **about,
        "totals": {**whole, "rejected": len(rejected)},
        "splits": splits,
    }
    write_text(folder / INDEX_NAME, json.dumps(table, indent=1) + "\n")
    return totals


def action_statistics(
    folder: Path, rows: Sequence[EpisodeRow], contract: ActionContract
) -> dict[str, Any]:
    """Per dimension, in physical units: mean, std, min, max, 1 % and 99 %."""
    arrays = [load_array(read_member(folder, row, "action.npy"), row.key) for row in rows]
    actions = np.concatenate(arrays).astype(np.float64)
    columns = {
        "mean": actions.mean(axis=0),
        "std": actions.std(axis=0),
        "min": actions.min(axis=0),
        "max": actions.max(axis=0),
        "q01": np.quantile(actions, 0.01, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0),
    }
    # Machines may sum in another order: digits that depend on it must not make other bytes.
    rounded = {k: [float(f"{value:.9g}") for value in column] for k, column in columns.items()}
    return {"actions": len(actions), "names": list(contract.names), **rounded}


def _renumbered(folder: Path, done: Done) -> Done:
    """Close the gaps that shards left of which every episode was rejected."""
    numbers: dict[str, int] = {}
    renumbered = []
    for job, result in done:
        number = numbers.get(job.split, 0)
        numbers[job.split] = number + 1
        name = shard_name(job.split, number)
        if name != result.shard.name:
            os.replace(folder / result.shard.name, folder / name)
            shard = replace(result.shard, name=name)
            rows = tuple(replace(row, shard=name) for row in result.rows)
            result = replace(result, shard=shard, rows=rows)
        renumbered.append((job, result))
    return renumbered


def _publish_split(folder: Path, split: str, results: Sequence[ShardResult]) -> dict[str, Any]:
    lines = "".join(row.to_line() + "\n" for result in results for row in result.rows)
    write_text(folder / f"{split}.idx.jsonl", lines)
    shards = [asdict(result.shard) for result in results]
    totals = {key: sum(shard[key] for shard in shards) for key in ("episodes", "frames", "bytes")}
    return {
        "totals": {**totals, "shards": len(shards)},
        "index_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "shards": shards,
    }


def _remove_stale(folder: Path, shards: set[str], splits: set[str]) -> None:
    """Remove what unfinished runs over other recordings or settings have left."""
    for path in [*folder.glob("*.tar"), *folder.glob("*.idx.jsonl")]:
        is_shard = re.fullmatch(r".+-\d{6}\.tar", path.name) and path.name not in shards
        is_index = path.name.endswith(".idx.jsonl") and path.name.split(".")[0] not in splits
        if is_shard or is_index:
            path.unlink()
