"""Fetching model weights from the Hugging Face hub: checked before, resumed, verified, recorded.

    FOLDER/model.pt        the files that are needed (model.pt.part: one that is still coming)
    FOLDER/download.json   repository, commit, size and sha256 of each: written when all is there

The record makes a second call, or one without a network, a look at the files' sizes. Names, tokens
and the hub's answers are the hub library's; the bytes come through http.py, which goes on in a
later run where it stopped (the library, since its version 2, begins again).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from cosmos_wds.config import write_text
from cosmos_wds.console import progress_bar, say, warn
from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.http import download
from cosmos_wds.sources.weights import Repository, repository

RECORD = "download.json"
CHUNK = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; sha256 is empty where the hub does not name it."""

    name: str
    size: int
    sha256: str


def fetch_weights(spec: str, dest: Path) -> Path:
    """Fetch `OWNER/NAME[@REVISION]` into `dest/NAME`, or `dest` itself when it ends in NAME.

    Of a known repository the needed files are fetched, of another one all. The hub and a token are
    taken from the environment (HF_ENDPOINT, HF_TOKEN) or `hf auth login`; with HF_HUB_OFFLINE set,
    or without a network, what is there is used. Raises DownloadError.
    """
    wanted = repository(spec)
    name = wanted.name.rpartition("/")[2]
    folder = dest if dest.name == name else dest / name
    commit = recorded_commit(folder, wanted)
    if commit:
        say(f"{escape(str(folder))}: {escape(wanted.name)} is there ({commit[:12]}); nothing to do")
        return folder
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        commit, files = list_files(wanted, endpoint)
        check_disk(folder, wanted.name, files)
        _download(wanted, commit, files, folder, endpoint)
    except DownloadError:
        raise
    except Exception as error:  # noqa: BLE001  the library's errors share no base of their own
        raise explained(error, wanted.name, folder, endpoint) from None
    sums = {file.name: _sum(folder / file.name, wanted.files.get(file.name, "")) for file in files}
    record = {
        "repository": wanted.name,
        "revision": wanted.revision or "main",
        "commit": commit,
        "files": {f.name: {"bytes": f.size, "sha256": sums[f.name]} for f in files},
    }
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    say(f"{escape(str(folder))}: {escape(wanted.name)} at {commit[:12]}")
    return folder


def recorded_commit(folder: Path, wanted: Repository) -> str:
    """The commit whose files a finished download left, all with their sizes; else empty."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {name: int(entry["bytes"]) for name, entry in record["files"].items()}
        commit, revision = str(record["commit"]), str(record["revision"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    is_whole = all(_size(folder / name) == size for name, size in files.items())
    is_same = record.get("repository") == wanted.name and set(wanted.files) <= set(files)
    is_asked = not wanted.revision or wanted.revision in (revision, commit)
    return commit if is_whole and is_same and is_asked and files else ""


def list_files(wanted: Repository, endpoint: str | None) -> tuple[str, list[RemoteFile]]:
    """The commit that a revision stands for now, and the files to fetch of it."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(
        wanted.name, revision=wanted.revision or None, files_metadata=True
    )
    there = {
        sibling.rfilename: RemoteFile(
            sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else ""
        )
        for sibling in info.siblings or ()
    }
    lacking = [name for name in wanted.files if name not in there]
    if lacking:
        raise DownloadError(
            f"{wanted.name}: has no {lacking[0]} at {wanted.revision or 'main'}; name another "
            "revision with NAME@REVISION"
        )
    names = list(wanted.files) or list(there)
    return str(info.sha), [there[name] for name in names]


def check_disk(folder: Path, name: str, files: Sequence[RemoteFile]) -> None:
    """Raise DownloadError when what is still to come does not fit the disk."""
    coming = sum(
        f.size - max(0, _size(folder / f"{f.name}.part"))
        for f in files
        if _size(folder / f.name) != f.size
    )
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if coming > free:
        raise DownloadError(
            f"{folder}: {name} takes {coming / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make "
            "room, or set download.weights_to to a folder on another disk"
        )
    if coming:
        say(f"{escape(name)}: {coming / 1e9:.2f} GB in {len(files)} files")


def _download(
    wanted: Repository,
    commit: str,
    files: Sequence[RemoteFile],
    folder: Path,
    endpoint: str | None,
) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    token = {k: v for k, v in build_hf_headers().items() if k.lower() == "authorization"}
    for file in files:
        url = hf_hub_url(wanted.name, file.name, revision=commit, endpoint=endpoint)
        if _size(folder / file.name) < 0:
            get_hf_file_metadata(url)  # asks without fetching: says if a licence is not accepted
        download(
            url,
            folder / file.name,
            expected_bytes=file.size,
            sha256=file.sha256,
            headers=token,
        )


def _sum(path: Path, published: str) -> str:
    """A file's sha256. A published MD5 is compared aloud: it is an older word than the hub's sum,
    and the publisher may have replaced the file since.
    """
    sha256, md5 = _sums(path)
    if published and md5 != published:
        warn(
            f"{escape(str(path))}: not the file that the reference's script names (MD5 {md5}, "
            f"there {published}); its publisher may have replaced it"
        )
    return sha256


def _sums(path: Path) -> tuple[str, str]:
    """sha256 and MD5 of a file, under a progress bar."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, progress_bar() as progress:
        total = max(1, -(-path.stat().st_size // CHUNK))
        task = progress.add_task(f"verify {path.name}", total=total, note="")
        while block := file.read(CHUNK):
            sha256.update(block)
            md5.update(block)
            progress.advance(task)
    return sha256.hexdigest(), md5.hexdigest()


def _size(path: Path) -> int:
    """A file's size; -1 when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def explained(error: Exception, repo: str, folder: Path, endpoint: str | None) -> Exception:
    """One line for what the hub's library raises; what it does not know is passed on as it is."""
    from huggingface_hub import errors

    page = f"{endpoint or 'https://huggingface.co'}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo}: its licence must be accepted first, at {page}; then `hf auth login` or set "
            "HF_TOKEN, and run again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{repo}: has no such revision; look at {page}/commits/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"{repo}: no such repository, or one that your token may not see; look at {page}"
        )
    if isinstance(error, errors.HFValidationError):
        return DownloadError(f"{repo!r}: not the name of a repository, which is OWNER/NAME")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return DownloadError(f"{repo}: the hub cannot be reached and {folder} does not hold it")
    if isinstance(error, errors.EntryNotFoundError):
        return DownloadError(f"{repo}: has no such file; look at {page}")
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        if status == 401:
            return DownloadError(
                f"{repo}: the hub does not accept the token; `hf auth login` again, or set HF_TOKEN"
            )
        return DownloadError(f"{repo}: the hub answers: {str(error).strip().splitlines()[0]}")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return DownloadError(
            f"{repo}: the hub cannot be reached, or broke off ({first}); run again to go on"
        )
    return error


_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
