"""Tar sets in stock WebDataset naming that came without our index; our own shards are such too.

KEY.mp4 is camera 0, KEY.NAME.mp4 are others; KEY.action.npy (T-1 or T, A) and KEY.state.npy (T, S),
or `action` and `state` in KEY.json; KEY.txt or `text` in KEY.json. Nothing is ever unpickled, and
other members are left out by name.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmos_wds.data.episode import Episode, Recording
from cosmos_wds.data.storage import Storage, storage
from cosmos_wds.data.tars import Member, TarSample, find_tars, scan, split_of
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.sources.values import finite, numbers, steps, text

ARRAYS = {"action": ("action", "actions"), "state": ("state", "states")}
TEXTS = ("text", "texts", "instruction", "caption")
DERIVED = {
    *("id", "episode_id", "split", "fps", "container_fps", "frames", "height", "width", "cameras"),
    *("source_file", "source_sha256", "extra"),
}
"""Keys of our own shards' JSON that sharding writes anew."""
THREADS = 16  # tars that are looked through at once


@dataclass(frozen=True)
class TarVideo:
    """A member of a tar."""

    storage: Storage
    name: str
    member: Member

    def size(self) -> int:
        return self.member.size

    def read(self) -> bytes:
        return self.member.read(self.storage, self.name)


@dataclass(frozen=True)
class WebdatasetSource:
    """The samples of all tars in a folder and in the folders directly below it."""

    storage: Storage
    splits: tuple[str, ...]

    @property
    def root(self) -> str:
        return str(self.storage)

    def list(self, split: str) -> list[Recording]:
        """Samples in the order of the tars; names of samples that come again get a number."""
        tars = [tar for tar in find_tars(self.storage) if split_of(tar) == split]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda tar: list(scan(self.storage, tar)), tars))
        recordings: list[Recording] = []
        names, files = set[str](), set[str]()
        for tar, samples in zip(tars, found, strict=True):
            for sample in samples:
                name, file = _new(sample.key, names), _new(f"{tar}#{sample.key}", files)
                recordings.append(Recording(split, name, file, sample))
        return recordings

    def read(self, recording: Recording) -> Episode:
        """One sample, its videos found but not read. Raises DataError for one not usable."""
        sample, file = recording.where, recording.file
        if sample.problem:
            raise DataError(f"{file}: {sample.problem}")
        small = _Small(self.storage, file, sample)
        table = small.table()
        command, state = small.array("action", table), small.array("state", table)
        if state is None and command is None:
            there = ", ".join(sorted(sample.members)) or "nothing"
            raise DataError(f"{file}: neither action nor state; it holds {there}")
        if state is None:
            state = np.empty((len(command) + 1, 0))
        elif command is not None:
            command = steps(command, len(state), file)
        if len(state) < 2:
            raise DataError(f"{file}: {len(state)} frame, and an action needs two")
        rate = table.get("fps")
        return Episode(
            id=str(table.get("id") or table.get("episode_id") or sample.key),
            state=state,
            command=command,
            videos=self._videos(sample, file),
            source_sha256=small.digest.hexdigest(),
            text=small.text(table),
            fps=float(rate) if isinstance(rate, int | float) else 0.0,
            extra=_extra(table, sample),
        )

    def _videos(self, sample: TarSample, file: str) -> dict[int, TarVideo]:
        """Cameras by their number; those with other names come after them, in order of names."""
        names = sorted(name for name in sample.members if _is_video(name))
        if not names:
            raise DataError(f"{file}: no mp4; it holds {', '.join(sorted(sample.members))}")
        words = {name: name.removesuffix("mp4").removesuffix(".") for name in names}
        numbered = {int(w or 0): name for name, w in words.items() if not w or w.isdecimal()}
        others = [name for name, w in words.items() if w and not w.isdecimal()]
        first = max(numbered, default=-1) + 1
        numbered |= dict(enumerate(others, first))
        return {
            camera: TarVideo(self.storage, f"{file}.{name}", sample.members[name])
            for camera, name in sorted(numbered.items())
        }


class _Small:
    """The members of a sample that describe it, and the hash of all that was read of them."""

    def __init__(self, storage: Storage, file: str, sample: TarSample) -> None:
        self._storage, self._file, self._sample = storage, file, sample
        self.digest = hashlib.sha256()

    def _read(self, name: str) -> bytes:
        content = self._sample.members[name].read(self._storage, f"{self._file}.{name}")
        self.digest.update(f"{name} {len(content)}\n".encode() + content)
        return content

    def table(self) -> dict[str, Any]:
        """KEY.json; empty when there is none."""
        if "json" not in self._sample.members:
            return {}
        try:
            table = json.loads(self._read("json"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self._file}: json: not JSON: {error}") from None
        return table if isinstance(table, dict) else {}

    def array(self, kind: str, table: Mapping[str, Any]) -> np.ndarray | None:
        """Rows of numbers from a .npy member or from the JSON; None when there are none."""
        for name in ARRAYS[kind]:
            if f"{name}.npy" in self._sample.members:
                content = io.BytesIO(self._read(f"{name}.npy"))
                try:
                    value = np.lib.format.read_array(content, allow_pickle=False)
                except (ValueError, EOFError) as error:
                    raise DataError(f"{self._file}: {name}.npy: {error}") from None
                return numbers(value, self._file, kind)
            if table.get(name) is not None:
                return numbers(table[name], self._file, kind)
        return None

    def text(self, table: Mapping[str, Any]) -> str:
        if "txt" in self._sample.members:
            return self._read("txt").decode("utf-8", "replace").strip()
        return next((text(table[key]) for key in TEXTS if table.get(key)), "")


def open_webdataset(pipeline: Pipeline) -> WebdatasetSource:
    """The tars of a pipeline's [source]."""
    return WebdatasetSource(storage(pipeline.source.path), pipeline.source.splits)


def _new(wanted: str, taken: set[str]) -> str:
    """A name that nobody has: the wanted one, or with a number behind."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}~{number}"
    taken.add(name)
    return name


def _is_video(name: str) -> bool:
    return name == "mp4" or name.endswith(".mp4")


def _extra(table: Mapping[str, Any], sample: TarSample) -> dict[str, object]:
    """What else the JSON says, and which members are left out."""
    known = {*DERIVED, *TEXTS, *ARRAYS["action"], *ARRAYS["state"]}
    extra = {key: finite(value) for key, value in table.items() if key not in known}
    if isinstance(table.get("extra"), dict):
        extra |= finite(table["extra"])
    used = {f"{name}.npy" for names in ARRAYS.values() for name in names} | {"json", "txt"}
    left_out = [name for name in sample.members if name not in used and not _is_video(name)]
    return {**extra, "members_left_out": left_out} if left_out else extra
