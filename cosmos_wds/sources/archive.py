"""Unpacking a tar safely: all of it, or nothing under the final name."""

import json
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rich.markup import escape

from cosmos_wds.console import progress_bar, say
from cosmos_wds.data.lock import try_lock
from cosmos_wds.errors import DownloadError

MARKER = ".extracted.json"
UNREADABLE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, KeyError)


def extract(archive: Path, dest: Path, *, strip: str = "") -> Path:
    """Unpack a .tar, .tar.gz, .tar.bz2 or .tar.xz into the folder `dest`.

    `strip` is a folder of the archive whose content becomes `dest`; what lies beside it is left
    out. Members that lead out of `dest`, devices and links out stop it, and leave nothing. A killed
    extraction is done again from its start; after a finished one this does nothing and says so.
    """
    archive, dest = Path(archive), Path(dest)
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError("unpacking safely needs Python 3.10.12, 3.11.4, 3.12 or newer")
    if not archive.is_file():
        raise DownloadError(f"{archive}: no such archive")
    made_from = {"archive": archive.name, "bytes": archive.stat().st_size, "strip": strip}
    if _is_done(dest, made_from):
        say(f"{escape(str(dest))}: already unpacked from {escape(archive.name)}")
        return dest
    partial = dest.with_name(f".{dest.name}.extracting")
    try:
        with open(archive, "rb") as file:
            if not try_lock(file):
                raise DownloadError(f"{archive}: another process is unpacking it; wait for it")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            count = _unpack(file, partial, strip, str(archive))
            (partial / MARKER).write_text(json.dumps(made_from) + "\n")
            partial.replace(dest)
    except OSError as error:
        raise DownloadError(f"{error.filename or dest}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{escape(str(dest))}: {count} files from {escape(archive.name)}")
    return dest


def _is_done(dest: Path, made_from: dict[str, object]) -> bool:
    """Whether `dest` is this archive's; DownloadError when it holds anything else."""
    marker = dest / MARKER
    if marker.is_file():
        try:
            found = json.loads(marker.read_text())
        except ValueError:
            found = {}
        if found == made_from:
            return True
        raise DownloadError(
            f"{dest}: was unpacked from {found.get('archive', 'something else')} "
            f"({found.get('bytes')} bytes, strip = {found.get('strip')!r}); move it away or give "
            "another folder"
        )
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise DownloadError(
            f"{dest}: holds files that were not unpacked by this tool; move it away or give "
            "another folder"
        )
    return False


def _unpack(file: BinaryIO, into: Path, strip: str, name: str) -> int:
    """Extract all members below `strip`; returns the number of files."""
    size = Path(name).stat().st_size
    if size > shutil.disk_usage(into).free:
        raise DownloadError(f"{into.parent}: less than the {size / 1e9:.1f} GB of {name} are free")
    count, beside = 0, ""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar, progress_bar() as progress:
            task = progress.add_task("unpack (MB)", total=size // 10**6 or 1, note="")
            for member in tar:
                inside = _below(member.name, strip)
                if inside is None:
                    beside = beside or member.name
                    continue
                tar.extract(_checked(member, inside, strip, name), into, filter="data")
                count += member.isfile()
                progress.update(task, completed=file.tell() // 10**6, note="")
    except tarfile.FilterError as error:
        raise DownloadError(f"{name}: unsafe member, nothing was unpacked: {error}") from None
    except UNREADABLE as error:
        raise DownloadError(f"{name}: damaged or not a tar archive: {error}") from None
    if not count:
        hint = f"; it holds {beside}, see download.strip in the pipeline" if beside else ""
        raise DownloadError(f"{name}: no files" + (f" below {strip}" if strip else "") + hint)
    return count


def _below(name: str, strip: str) -> str | None:
    """The name without the folder `strip`; None for what lies elsewhere."""
    parts, folder = PurePosixPath(name).parts, PurePosixPath(strip).parts
    if parts[: len(folder)] != folder:
        return None
    return str(PurePosixPath(*parts[len(folder) :]))


def _checked(member: tarfile.TarInfo, inside: str, strip: str, name: str) -> tarfile.TarInfo:
    """The member under its new name. No `..` in names, and links only lead deeper or to the side.

    Stricter than the data filter, which has been outwitted by chains of links before.
    """
    target = member.linkname
    if member.islnk():  # named from the archive's root, so it is renamed as members are
        target = _below(member.linkname, strip) or ".."
    is_link = member.islnk() or member.issym()
    parts = [*PurePosixPath(inside).parts, *(PurePosixPath(target).parts if is_link else ())]
    if ".." in parts or "/" in parts:
        what = f"a link to {member.linkname}" if is_link else "a name that leads out"
        raise DownloadError(f"{name}: unsafe member, nothing was unpacked: {member.name}: {what}")
    return member.replace(name=inside, linkname=target, deep=False)
