"""Networks that judge pictures, as TorchScript files: here, at a path, or on Hugging Face."""

import warnings
from pathlib import Path

import torch

from cosmos_wds.errors import CheckpointError, DownloadError
from cosmos_wds.sources.addresses import ON_HUB


def load_network(where: str, device: torch.device) -> torch.jit.ScriptModule:
    """Load a network in evaluation mode. Raises UserError when it is not there, or is none.

    TorchScript is a program, run in TorchScript's own interpreter: take it from whom you trust.
    """
    path = network_file(where)
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but these are released so
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["damaged"])[0][:160]
        raise CheckpointError(f"{path}: not a TorchScript file: {reason}") from None


def network_file(where: str) -> Path:
    """The file: fetched, where it is hf://OWNER/NAME[@REVISION]/FILE. Raises UserError."""
    on_hub = ON_HUB.fullmatch(where)
    if on_hub is None:
        path = Path(where).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f"{where}: no such file; a TorchScript file, or hf://OWNER/NAME/FILE"
            )
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    kind, repository, revision, name = on_hub.groups()
    try:
        return Path(
            hf_hub_download(
                repository, name, revision=revision, repo_type="dataset" if kind else "model"
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DownloadError(f"{where}: cannot be fetched: {reason}") from None
