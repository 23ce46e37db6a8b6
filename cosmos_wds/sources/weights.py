"""Which weights there are to fetch: NVIDIA's repositories, and of each the files that are needed.

NVIDIA's own download script names MD5 sums for them (spec.md e). No revision is written down here:
hub.py says why, and what is done instead.
"""

from collections.abc import Mapping
from typing import NamedTuple

KNOWN: Mapping[str, Mapping[str, str]] = {
    "nvidia/Cosmos-Predict1-7B-Video2World": {"model.pt": "ebcdb19c4c4a6a0e1e0bb65e346f6867"},
    "nvidia/Cosmos-Predict1-14B-Video2World": {"model.pt": ""},
    "nvidia/Cosmos-Tokenize1-CV8x8x8-720p": {
        "encoder.jit": "f5834d03645c379bc0f8ad14b9bc0299",
        "decoder.jit": "ff21a63ed817ffdbe4b6841111ec79a8",
        "mean_std.pt": "f07680ad7eefae57d698778e2a0c7c96",
    },
}
"""Repository -> needed file -> MD5 in NVIDIA's download script, empty where it names none."""


class Repository(NamedTuple):
    """What to fetch: OWNER/NAME at a revision."""

    name: str
    revision: str
    """A branch, tag or commit; empty for the newest."""
    files: Mapping[str, str]
    """Needed files and their published MD5 sums; nothing known stands for every file there is."""


def find_repository(spec: str) -> Repository | None:
    """A known model by its repository's name, with or without the owner, in any case.

    `NAME@REVISION` pins it. None for what is not known.
    """
    wanted, _, revision = spec.partition("@")
    for name, files in KNOWN.items():
        if wanted.lower() in (name.lower(), name.partition("/")[2].lower()):
            return Repository(name, revision, files)
    return None


def repository(spec: str) -> Repository:
    """A repository by its full name, known or not."""
    name, _, revision = spec.partition("@")
    return find_repository(spec) or Repository(name, revision, {})


def short_names() -> list[str]:
    """The known models as the command line takes them."""
    return [name.partition("/")[2].lower() for name in KNOWN]
