"""From an address to an archive: a web server, Hugging Face, or a file on this disk.

On Hugging Face an archive may lie in parts, as IRASim's do: NAME.sfpart_aa, NAME.sfpart_ab, ..., to
be joined in the order of their names. The hub names each part's size and checksum. A branch is
resolved to a commit once, so that all parts are of one version.
"""

import os
import re
from pathlib import Path

from cosmos_wds.errors import ConfigError, DownloadError
from cosmos_wds.sources.hub import explained
from cosmos_wds.sources.parts import Archive, LocalPart, Part, RemotePart, look_at

ON_HUB = re.compile(r"hf://(datasets/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
PART = ".sfpart_"


def find_archive(address: str, name: str, expected_bytes: int = 0, sha256: str = "") -> Archive:
    """The archive `name` at an address, with what is known of its bytes.

    `expected_bytes` and `sha256` are those of the whole archive, where its publisher names them.
    Raises DownloadError when it is not to be had there, ConfigError for what is no address.
    """
    on_hub = ON_HUB.fullmatch(address)
    parts: list[Part]
    if on_hub:
        parts = list(_find_on_hub(bool(on_hub[1]), on_hub[2], on_hub[3], on_hub[4], sha256))
    elif address.startswith(("http://", "https://")):
        parts = [look_at(address, headers={}, sha256=sha256)]
    elif Path(address).is_file():
        status = Path(address).stat()
        parts = [LocalPart(Path(address), status.st_size, sha256, str(status.st_mtime_ns))]
    else:
        raise ConfigError(
            f"{address!r}: not an http(s) address, hf://datasets/OWNER/NAME/FILE, or a file here; "
            "see download.url in the pipeline"
        )
    archive = Archive(name, address, parts)
    if expected_bytes and archive.size != expected_bytes:
        raise DownloadError(
            f"{address}: {archive.size} bytes there, {expected_bytes} expected (download.bytes in "
            "the pipeline)"
        )
    return archive


def _find_on_hub(
    is_dataset: bool, repository: str, revision: str | None, name: str, sha256: str
) -> list[RemotePart]:
    """A file of a repository, or its parts in order."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    kind = "dataset" if is_dataset else "model"
    shown = f"datasets/{repository}" if is_dataset else repository
    try:
        info = HfApi(endpoint=endpoint).repo_info(
            repository, repo_type=kind, revision=revision, files_metadata=True
        )
    except Exception as error:  # noqa: BLE001  the library's errors share no base of their own
        raise explained(error, shown, Path(name), endpoint) from None
    token = {k: v for k, v in build_hf_headers().items() if k.lower() == "authorization"}
    siblings = sorted(info.siblings or (), key=lambda sibling: sibling.rfilename)
    files = [s for s in siblings if s.rfilename == name]
    files = files or [s for s in siblings if s.rfilename.startswith(name + PART)]
    if not files:
        raise DownloadError(f"{shown}: has no {name}, whole or in parts, at {info.sha}")
    return [
        RemotePart(
            hf_hub_url(
                info.id, file.rfilename, repo_type=kind, revision=info.sha, endpoint=endpoint
            ),
            file.size or 0,
            (file.lfs.sha256 if file.lfs else "") or (sha256 if len(files) == 1 else ""),
            headers=token,
        )
        for file in files
    ]
