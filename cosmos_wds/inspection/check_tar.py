"""The check of one shard as a file: size, checksum, and every header against the index's rows."""

import hashlib
import io
import tarfile
from collections.abc import Iterator

from cosmos_wds.data.index import BLOCK, SplitIndex
from cosmos_wds.data.workers import Tick
from cosmos_wds.errors import DataError
from cosmos_wds.inspection.findings import Findings

PIECE = 2**22  # bytes that are read at once


def check_tar(index: SplitIndex, tick: Tick) -> Findings:
    """Read a tar once from end to end. `index` is narrowed to it: one shard and all its rows."""
    [shard] = index.shards
    found = Findings()

    def compare(what: str, have: object, said: object) -> None:
        if have != said:
            found.problems.append(f"{place}: {what} {have}, index.json says {said}")

    place = index.storage.name(shard.name)
    compare("episodes:", len(index.rows), shard.episodes)
    compare("frames:", sum(row.frames for row in index.rows), shard.frames)
    tape = _Tape(index)
    try:
        found.problems += [f"{place}: {line}" for line in _walk(tape, index)]
        tape.skip_to(None)
        compare("bytes:", tape.at, shard.bytes)
        compare("sha256", tape.digest, shard.sha256)
    except DataError as error:
        found.problems.append(str(error))
    tick()
    return found


class _Tape:
    """Reads the shard once, from its beginning, and keeps its checksum."""

    def __init__(self, index: SplitIndex) -> None:
        self._storage, self._name = index.storage, index.shards[0].name
        self._end = self._storage.size(self._name)
        self._hash = hashlib.sha256()
        self._piece = io.BytesIO()
        self.at = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def take(self, size: int) -> bytes:
        """The next `size` bytes, at most PIECE; fewer at the file's end."""
        taken = self._piece.read(size)
        if len(taken) < size:
            place = self.at + len(taken)
            piece = min(PIECE, self._end - place)
            self._piece = io.BytesIO(self._storage.read_range(self._name, place, piece))
            taken += self._piece.read(size - len(taken))
        self._hash.update(taken)
        self.at += len(taken)
        return taken

    def skip_to(self, place: int | None) -> None:
        """Go on to a place, or to the file's end."""
        while place is None or self.at < place:
            if not self.take(PIECE if place is None else min(PIECE, place - self.at)):
                return


def _walk(tape: _Tape, index: SplitIndex) -> Iterator[str]:
    """Header after header: what differs from the index, what is missing, what is too much.

    After something that is no header it goes on where the index says that the next one is.
    """
    wanted = {
        offset - BLOCK: (f"{row.key}.{member}", size)
        for row in index.rows
        for member, (offset, size) in row.members.items()
    }
    while header := tape.take(BLOCK):
        start = tape.at - len(header)
        if header == bytes(BLOCK) and not wanted:
            break
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "replace")
        except tarfile.HeaderError as error:
            yield f"no tar header at byte {start}: {error}"
            later = [place for place in wanted if place > start]
            if not later:
                break
            tape.skip_to(min(later))
            continue
        name, size = wanted.pop(start, ("", 0))
        if not name:
            yield f"{info.name}: at byte {start}, and the index does not know it"
        elif (info.name, info.size) != (name, size) or not info.isreg():
            yield f"{name}: {size} bytes in the index, the tar has {info.name}, {info.size} bytes"
        tape.skip_to(tape.at + -(-info.size // BLOCK) * BLOCK)
    else:
        yield f"no mark of a tar's end; the file ends at byte {tape.at}"
    if wanted:
        first = wanted[min(wanted)][0]
        yield f"{len(wanted)} members of the index are not in the tar, {first} the first"
