"""Fetching model weights from the Hugging Face hub, which continues and verifies by itself."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from cosmos_wds.console import say
from cosmos_wds.errors import DownloadError


def fetch_weights(repo: str, dest: Path, files: Sequence[str] | None = None) -> Path:
    """Fetch a repository (or its `files`) into `dest/NAME`, NAME being the repository's.

    `dest` itself is used when it already ends in NAME. Files that are there are left alone. The hub
    and a token are taken from the environment (HF_ENDPOINT, HF_TOKEN) or `hf auth login`.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    dest, name = Path(dest), repo.rpartition("/")[2]
    folder = dest if dest.name == name else dest / name
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        if files is None:
            snapshot_download(repo, local_dir=folder, endpoint=endpoint)
        else:
            for file in files:
                hf_hub_download(repo, file, local_dir=folder, endpoint=endpoint)
    except Exception as error:  # noqa: BLE001  the library's errors share no base of their own
        raise _explained(error, repo, folder, endpoint) from None
    say(f"{escape(str(folder))}: weights of {escape(repo)}")
    return folder


def _explained(error: Exception, repo: str, folder: Path, endpoint: str | None) -> Exception:
    """One line for what the hub's library raises; what it does not know is passed on as it is."""
    from huggingface_hub import errors

    page = f"{endpoint or 'https://huggingface.co'}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo}: its licence must be accepted first, at {page}; then `hf auth login` or set "
            "HF_TOKEN, and run again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(f"{repo}: no such repository, or a private one; look at {page}")
    if isinstance(error, errors.HFValidationError):
        return DownloadError(f"{repo!r}: not the name of a repository, which is OWNER/NAME")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return DownloadError(f"{repo}: the hub cannot be reached and {folder} does not hold it")
    if isinstance(error, errors.EntryNotFoundError):
        return DownloadError(f"{repo}: has no such file; look at {page}")
    if isinstance(error, errors.HfHubHTTPError):
        return DownloadError(f"{repo}: the hub answers: {str(error).strip().splitlines()[0]}")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return DownloadError(f"{repo}: {first}; run again to go on")
    return error


_NETWORK = {"httpx", "httpcore", "requests", "urllib3"}
