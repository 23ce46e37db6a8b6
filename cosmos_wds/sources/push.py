"""Uploading a folder of exported weights to the Hugging Face hub."""

import os
from pathlib import Path

from rich.markup import escape

from cosmos_wds.console import say
from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.hub import explained


def push_folder(folder: Path, repo: str) -> str:
    """Upload every file of a folder as one commit to `ORG/NAME`; returns the commit's address.

    The repository is made when it is not there, private: making it public is for its owner to
    decide. The token comes from HF_TOKEN or `hf auth login`. Raises DownloadError.
    """
    from huggingface_hub import HfApi, get_token

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    if not get_token():
        raise DownloadError(
            f"{repo}: uploading takes a token with the right to write: `hf auth login`, or set "
            f"HF_TOKEN; {folder} is written"
        )
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload by cosmos-wds export"
        )
    except Exception as error:  # noqa: BLE001  the library's errors share no base of their own
        # What breaks an upload is told as the cause of a RuntimeError that names the file.
        is_wrapped = isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception)
        reason = error.__cause__ if is_wrapped else error
        raise explained(reason, repo, folder, endpoint) from None
    say(f"{escape(str(folder))}: uploaded to {escape(str(commit))}")
    return str(commit)
