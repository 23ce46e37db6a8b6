"""Fetching model weights from the Hugging Face hub: checked before, resumed, verified, recorded.

    FOLDER/model.pt        the files that are needed (model.pt.part: one that is still coming)
    FOLDER/download.json   repository, commit, size and sha256 of each: written when all is there

The record makes a second call, or one without a network, a look at the files' sizes. Names, tokens
and the hub's answers are the hub library's; the bytes come through http.py, which goes on in a
later run where it stopped (the library, since its version 2, begins again).

A branch is resolved to a commit once, and every file is asked for at that commit. `main` is what is
resolved when nothing is named: NVIDIA's repositories could not be looked at from where this was
written, so no hash of theirs is written down here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.markup import escape

from cosmos_wds.config import write_text
from cosmos_wds.console import progress_bar, say, warn
from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.http import RESERVE, download
from cosmos_wds.sources.weights import Repository, repository

RECORD = "download.json"
CHUNK = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; sha256 is empty where the hub does not name it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """What a revision stands for now: the repository by its present name, a commit, its files."""

    name: str
    commit: str
    files: list[RemoteFile]


def fetch_weights(spec: str, dest: Path) -> Path:
    """Fetch `OWNER/NAME[@REVISION]` into `dest/NAME`, or `dest` itself when it ends in NAME.

    Of a known repository the needed files are fetched, of another one all. The hub and a token are
    taken from the environment (HF_ENDPOINT, HF_TOKEN) or `hf auth login`. What is there whole is
    used as it is, so also with HF_HUB_OFFLINE set or without a network. Raises DownloadError.
    """
    wanted = repository(spec)
    name = wanted.name.rpartition("/")[2]
    folder = dest if dest.name == name else dest / name
    commit = recorded_commit(folder, wanted)
    if commit:
        say(f"{escape(str(folder))}: {escape(wanted.name)} is there ({commit[:12]}); nothing to do")
        return folder
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    try:
        listing = list_files(wanted, endpoint)
        addresses = find_addresses(listing, folder, endpoint)
    except DownloadError:
        raise
    except Exception as error:  # noqa: BLE001  the library's errors share no base of their own
        raise explained(error, wanted.name, folder, endpoint) from None
    check_disk(folder, listing)
    _download(wanted, listing, addresses, folder)
    record = {
        "repository": wanted.name,
        "revision": wanted.revision or "main",
        "commit": listing.commit,
        "files": {file.name: _described(folder / file.name) for file in listing.files},
    }
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    say(f"{escape(str(folder))}: {escape(wanted.name)} at {listing.commit[:12]}")
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


def list_files(wanted: Repository, endpoint: str | None) -> Listing:
    """Ask once which commit the revision stands for, and list the files to fetch of it."""
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
    return Listing(info.id, str(info.sha), [there[name] for name in names])


def find_addresses(listing: Listing, folder: Path, endpoint: str | None) -> dict[str, str]:
    """The files' addresses on the hub. Those that are not there are asked for without fetching,
    which tells a licence that is not accepted, and follows redirects within the hub.

    A redirect to another host is left to the download: such an address is signed, and expires.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    addresses = {}
    for file in listing.files:
        url = hf_hub_url(listing.name, file.name, revision=listing.commit, endpoint=endpoint)
        found = url if (folder / file.name).exists() else get_hf_file_metadata(url).location
        is_within = urlsplit(found)[:2] == urlsplit(url)[:2]
        addresses[file.name] = found if is_within else url
    return addresses


def check_disk(folder: Path, listing: Listing) -> None:
    """Raise DownloadError when what is still to come does not fit the disk."""
    missing = [file for file in listing.files if _size(folder / file.name) != file.size]
    coming = sum(f.size - max(0, _size(folder / f"{f.name}.part")) for f in missing)
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if coming > 0 and coming + RESERVE > free:
        raise DownloadError(
            f"{folder}: {coming / 1e9:.1f} GB of {listing.name} are to come and {free / 1e9:.1f} "
            "GB are free; make room, or set download.weights_to to a folder on another disk"
        )
    if coming > 0:
        names = ", ".join(escape(file.name) for file in missing)
        say(f"{escape(listing.name)}: {coming / 1e9:.2f} GB to come ({names})")


def _download(
    wanted: Repository, listing: Listing, addresses: Mapping[str, str], folder: Path
) -> None:
    from huggingface_hub.utils import build_hf_headers

    token = {k: v for k, v in build_hf_headers().items() if k.lower() == "authorization"}
    for file in listing.files:
        path, url = folder / file.name, addresses[file.name]
        download(url, path, expected_bytes=file.size, sha256=file.sha256, headers=token)
        if published := wanted.files.get(file.name):
            _compare_published(path, published)


def _compare_published(path: Path, published: str) -> None:
    """Say aloud when a file is not the one whose MD5 sum is published.

    It is the hub's file all the same (its sha256 was compared): the published sum is an older word,
    and the publisher may have replaced the file since. So it is taken.
    """
    md5 = _md5(path)
    if md5 != published:
        warn(
            f"{escape(str(path))}: not the file that NVIDIA's download script names (MD5 {md5}, "
            f"there {published}); it may have been replaced since"
        )


def _md5(path: Path) -> str:
    """MD5 of a file, under a progress bar."""
    md5 = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, progress_bar() as progress:
        total = max(1, -(-path.stat().st_size // CHUNK))
        task = progress.add_task(f"verify {escape(path.name)}", total=total, note="")
        while block := file.read(CHUNK):
            md5.update(block)
            progress.advance(task)
    return md5.hexdigest()


def _described(path: Path) -> dict[str, Any]:
    """What the record says of a file; http.py wrote its sha256 down."""
    sha256 = _sum_file(path).read_text(encoding="utf-8").split()[0]
    return {"bytes": path.stat().st_size, "sha256": sha256}


def _sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


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
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(
            f"{repo}: HF_HUB_OFFLINE is set, so the hub cannot be asked about {folder}; unset it, "
            "and run again"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return DownloadError(f"{repo}: has no such file; look at {page}")
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        if status == 401:
            return DownloadError(
                f"{repo}: the hub wants a token, or another one than it got; `hf auth login`, or "
                "set HF_TOKEN"
            )
        return DownloadError(f"{repo}: the hub answers: {_first_line(error)}; look at {page}")
    is_network = type(error).__module__.partition(".")[0] in _NETWORK
    if is_network or isinstance(error, OSError | json.JSONDecodeError):
        return DownloadError(
            f"{repo}: the hub cannot be reached, or broke off ({_first_line(error)}); run again to "
            "go on"
        )
    return error


def _first_line(error: Exception) -> str:
    """The first line of an error that says something; the library may begin with a request's id."""
    lines = [line.strip() for line in str(error).splitlines()]
    says = [line for line in lines if line and not line.startswith("(Request ID")]
    return says[0].removesuffix(".") if says else type(error).__name__


_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
