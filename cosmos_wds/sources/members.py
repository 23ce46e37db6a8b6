"""The members of a tar that comes as a stream: checked names, and a checked end."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cosmos_wds.sources.gunzip import Damaged

BUFFER = 1 << 18


class Stream:
    """Chunks read as a file, as tarfile wants it."""

    def __init__(self, chunks: Iterator[bytes], start: int) -> None:
        self.chunks, self.pending = chunks, memoryview(b"")
        self.length = start
        """Of the tar so far."""
        self.zeros_from = start
        """Behind its last byte so far that is not zero."""

    def skip(self, size: int) -> None:
        """Pass over some bytes."""
        while size > 0:
            size -= len(self.read(min(size, BUFFER))) or size

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        pieces: list[memoryview] = []
        while size:
            if not self.pending:
                self.pending = memoryview(next(self.chunks, b""))
                self._measure(bytes(self.pending))
                if not self.pending:
                    break
            pieces.append(self.pending[:size])
            self.pending = self.pending[size:]
            size -= len(pieces[-1])
        return b"".join(pieces)

    def _measure(self, chunk: bytes) -> None:
        used = len(chunk.rstrip(b"\0"))
        self.zeros_from = self.length + used if used else self.zeros_from
        self.length += len(chunk)


def members(stream: Stream, start: int) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar from its byte `start`, each to be handled before the next.

    Raises Damaged. tarfile takes a damaged head in the middle for the end; here the end must be
    what the format says, zeros to the last byte.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BUFFER) as tar:
            for member in tar:
                yield tar, member
            while tar.fileobj.read(BUFFER):
                pass
            end = start + tar.offset
            if stream.zeros_from > end or stream.length < end + tarfile.BLOCKSIZE:
                raise Damaged("it has no proper end")
    except (tarfile.ReadError, tarfile.StreamError, EOFError) as error:
        raise Damaged(str(error)) from None


def below(name: str, strip: str) -> str | None:
    """The name without the folder `strip`; None for what lies elsewhere."""
    parts, folder = PurePosixPath(name).parts, PurePosixPath(strip).parts
    if parts[: len(folder)] != folder:
        return None
    return str(PurePosixPath(*parts[len(folder) :]))


def extract(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path, *, strip: str) -> None:
    """Put a member below `into`, in place of what is there.

    Raises tarfile.FilterError if it is unsafe. No `..` in names, and links only lead deeper or to
    the side: stricter than the data filter, which has been outwitted by chains of links before.
    """
    clean = _checked(member, strip)
    place = into / clean.name
    if (place.is_symlink() or place.exists()) and not member.isdir():
        place.unlink()
    try:
        tar.extract(clean, into, filter="data")
    except (KeyError, tarfile.ReadError, tarfile.StreamError) as error:  # KeyError: of a link
        raise Damaged(str(error)) from None


def _checked(member: tarfile.TarInfo, strip: str) -> tarfile.TarInfo:
    """The member under its new name."""
    inside, target = below(member.name, strip) or ".", member.linkname
    if member.islnk():  # named from the archive's root, so it is renamed as members are
        target = below(member.linkname, strip) or ".."
    is_link = member.islnk() or member.issym()
    parts = [*PurePosixPath(inside).parts, *(PurePosixPath(target).parts if is_link else ())]
    if ".." in parts or "/" in parts:
        what = f"a link to {member.linkname}" if is_link else "a name that leads out"
        raise tarfile.FilterError(f"{member.name}: {what}")
    return member.replace(name=inside, linkname=target, deep=False)
