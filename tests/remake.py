"""Shard sets changed on purpose: with an index that fits the change, or behind the index's back."""

import hashlib
import json
import tarfile
from pathlib import Path

from cosmos_wds.data.index import BLOCK, EpisodeRow, ShardIndex
from cosmos_wds.data.shards import ShardWriter


def remake(source, target, change):
    """Copy a set; `change(split, key, members)` gives the members, or (key, members) pairs.

    Members are name -> bytes. Checksums, offsets and counts of the copy are right.
    """
    index = ShardIndex.read(source)
    table = json.loads(Path(source, "index.json").read_text())
    target.mkdir(parents=True)
    for split in index.splits:
        rows = []
        episodes = index.split(split)
        name = f"{split}-000000.tar"
        with open(target / name, "wb") as file:
            writer = ShardWriter(file)
            for i, row in enumerate(episodes.rows):
                members = {member: episodes.read(i, member) for member in row.members}
                changed = change(split, row.key, members)
                for key, new in [(row.key, changed)] if isinstance(changed, dict) else changed:
                    rows.append(EpisodeRow(key, name, row.frames, writer.add(key, new)))
            digest = writer.close()
        lines = "".join(row.to_line() + "\n" for row in rows)
        (target / f"{split}.idx.jsonl").write_text(lines)
        shard = {"name": name, "bytes": writer.bytes, "sha256": digest, "episodes": len(rows)}
        shard["frames"] = sum(row.frames for row in rows)
        table["splits"][split]["shards"] = [shard]
        table["splits"][split]["index_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
    (target / "index.json").write_text(json.dumps(table))
    return target


def edit_index(folder, change):
    """Let `change` edit the table of index.json."""
    path = Path(folder, "index.json")
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def edit_rows(folder, split, change):
    """Let `change` edit the list of a split's rows (dictionaries); its checksum follows."""
    path = Path(folder, f"{split}.idx.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    edit_index(folder, lambda table: table["splits"][split].update(index_sha256=digest))


def places(folder, split):
    """(key, member) -> (tar, offset, size)."""
    rows = ShardIndex.read(folder).split(split).rows
    return {
        (row.key, member): (Path(folder, row.shard), *place)
        for row in rows
        for member, place in row.members.items()
    }


def rename(tar, offset, name):
    """Write another name, and the checksum that belongs to it, into a member's header."""
    with open(tar, "r+b") as file:
        file.seek(offset - BLOCK)
        info = tarfile.TarInfo.frombuf(file.read(BLOCK), "ascii", "strict")
        info.name = name
        file.seek(offset - BLOCK)
        file.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))


def overwrite(tar, at, content):
    """Write bytes over a file's."""
    with open(tar, "r+b") as file:
        file.seek(at)
        file.write(content)


def about(members, **changes):
    """Members with changed entries in their json; None removes one."""
    table = {**json.loads(members["json"]), **changes}
    table = {key: value for key, value in table.items() if value is not None}
    return {**members, "json": json.dumps(table).encode()}
