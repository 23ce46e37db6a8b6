"""`shard FOLDER --index-only`: tars of ours that have no index get theirs, and stay as they are.

A loader finds out by itself where episodes lie, and remembers it for its machine (data/scan.py). An
index says it to everyone, with checksums, statistics, and what the actions' numbers mean: that is
the pipeline's word, for the tars do not say it. Shards whose index was lost get its bytes again,
so that runs which were trained on them go on.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
from rich.markup import escape

from cosmos_wds.console import progress_bar, say, warn
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import INDEX_NAME, EpisodeRow, ShardIndex, load_array, read_member
from cosmos_wds.data.jobs import UNFINISHED
from cosmos_wds.data.judge import action_statistics, concerns
from cosmos_wds.data.publish import REJECTED_NAME, publish_index, publish_split
from cosmos_wds.data.samples import Facts
from cosmos_wds.data.scan import find_rows, read_fps, shard_of
from cosmos_wds.data.storage import Storage, storage
from cosmos_wds.data.tars import SPLITS, find_tars, split_of
from cosmos_wds.data.workers import ahead, cores
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare.summary import Summary

ORDER = tuple(dict.fromkeys(SPLITS.values()))
PIECE = 2**22  # bytes that are read at once


def write_index(pipeline: Pipeline) -> Summary:
    """Write the index of the tars in `pipeline.shards.path`, all their splits, once.

    Raises DataError for an unfinished set, for what is no shard of ours, and for tars that
    contradict the pipeline's [actions].
    """
    began, where = time.monotonic(), storage(pipeline.shards.path)
    contract = ActionContract.from_settings(pipeline.actions)
    if where.size(INDEX_NAME) >= 0:
        return _leave_alone(where, contract)
    if where.has_folder(UNFINISHED):
        raise DataError(f"{where}: unfinished; the `cosmos-wds shard` that began it completes it")
    found = find_tars(where)
    of_split = {split: [tar for tar in found if split_of(tar) == split] for split in ORDER}
    rows = {split: find_rows(where, tars, contract) for split, tars in of_split.items() if tars}
    for split in rows:
        _check_fps(where, rows[split][0], contract)
    every = list(chain.from_iterable(rows.values()))
    actions = np.concatenate([_actions(where, row) for row in every])
    digests = _digests(where, found)
    splits = {}
    for split in rows:
        sizes = [(tar, where.size(tar)) for tar in of_split[split]]
        shards = [shard_of(tar, size, rows[split], digests[tar]) for tar, size in sizes]
        splits[split] = publish_split(where, split, shards, rows[split])
    first = next(iter(rows))
    of_first = actions[: sum(row.frames - 1 for row in rows[first])]
    facts = [Facts(row.key, row.frames, (), (), 0.0, 0) for row in every]
    about = {
        "statistics": {"split": first, **action_statistics(of_first, contract)},
        "concerns": list(concerns(facts, actions, contract)),
        "source": {"name": pipeline.name, "episodes": len(every)},
    }
    where.write(REJECTED_NAME, b"")
    table = publish_index(where, contract, splits, rejected=0, about=about)
    for line in table["concerns"]:
        warn(escape(line))
    summary = Summary.of(where, table, rejected=())
    return replace(summary, seconds=time.monotonic() - began).told()


def _leave_alone(where: Storage, contract: ActionContract) -> Summary:
    index = ShardIndex.read(where)
    if different := "; ".join(index.contract.differences(contract)):
        raise DataError(f"{where}: its index.json says otherwise: {different}")
    say(f"{escape(str(where))}: has its index; nothing to do")
    return replace(Summary.of(where, index.table, rejected=()), is_new=False)


def _check_fps(where: Storage, row: EpisodeRow, contract: ActionContract) -> None:
    said = read_fps(where, row)
    if said not in (None, contract.fps):
        raise DataError(
            f"{where.name(row.shard)}: {row.key}.json says {said:g} frames a second, [actions] fps "
            f"= {contract.fps:g}; --set actions.fps={said:g} if the recording is right"
        )


def _actions(where: Storage, row: EpisodeRow) -> np.ndarray:
    """(T-1, A), physical units. Raises DataError where a number is none."""
    name = f"{where.name(row.shard)}: {row.key}.action.npy"
    actions = load_array(read_member(where, row, "action.npy"), name)
    if not np.isfinite(actions).all():
        raise DataError(f"{name}: holds numbers that are not finite; shard the recordings again")
    return actions


def _digests(where: Storage, tars: list[str]) -> dict[str, str]:
    """The sha256 of each tar, read from end to end."""
    megabytes = sum(where.size(tar) for tar in tars) / 1e6
    with progress_bar() as progress:
        task = progress.add_task("read shards", total=megabytes, note="MB")

        def digest(tar: str) -> str:
            return _digest(where, tar, lambda size: progress.advance(task, size / 1e6))

        return dict(zip(tars, ahead(digest, tars, threads=cores()), strict=True))


def _digest(where: Storage, tar: str, tick: Callable[[int], None]) -> str:
    digest, size = hashlib.sha256(), where.size(tar)
    for offset in range(0, size, PIECE):
        piece = where.read_range(tar, offset, min(PIECE, size - offset))
        digest.update(piece)
        tick(len(piece))
    return digest.hexdigest()
