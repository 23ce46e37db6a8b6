"""Files that fsspec reaches: object stores (s3://, gs://), the hub (hf://), web servers (http://)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

from cosmos_wds.data.storage import TEMPORARY
from cosmos_wds.errors import ConfigError, DataError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Protocols whose library comes with an extra of ours."""
OBJECT_STORES = {*EXTRAS, "az", "abfs", "abfss", "adl", "oci", "r2", "hf"}


@dataclass(frozen=True)
class RemoteStorage:
    """A prefix of an object store, or any other file system that fsspec knows.

    Nothing holds it against a second run; both would put the same bytes under the same names.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def free(self) -> int | None:
        return None

    def name(self, file: str) -> str:
        return f"{self.url}/{file}" if file else self.url

    def read(self, file: str) -> bytes:
        with self._asking(file) as (system, path):
            content: bytes = system.cat_file(path)
        return content

    def read_range(self, file: str, offset: int, size: int) -> bytes:
        if size <= 0:
            return b""
        with self._asking(file) as (system, path):
            content: bytes = system.cat_file(path, start=offset, end=offset + size)
        return content

    def size(self, file: str) -> int:
        with self._asking(file) as (system, path):
            try:
                found = system.info(path)
            except FileNotFoundError:
                return -1
        return int(found["size"]) if found["type"] == "file" else -1

    def list(self, folder: str = "") -> list[str]:
        with self._asking(folder) as (system, path):
            system.invalidate_cache()
            try:
                found = system.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in found)
        return sorted(name for name in names if name)

    def is_inside(self, file: str) -> bool:  # noqa: ARG002 (there are no links to follow)
        return True

    def has_folder(self, folder: str = "") -> bool:
        with self._asking(folder) as (system, path):
            return bool(system.isdir(path))

    @contextmanager
    def writing(self, file: str) -> Iterator[BinaryIO]:
        with tempfile.NamedTemporaryFile(suffix=TEMPORARY) as opened:
            yield opened  # type: ignore[misc]
            opened.flush()
            with self._asking(file, "written") as (system, path):
                self._make_folder(system, path)
                system.put_file(opened.name, path)

    def write(self, file: str, content: bytes) -> None:
        with self._asking(file, "written") as (system, path):
            self._make_folder(system, path)
            system.pipe_file(path, content)

    def move(self, old: str, new: str) -> None:
        with self._asking(old, "renamed") as (system, path):
            system.mv(path, system._strip_protocol(self.name(new)))

    def remove(self, file: str) -> None:
        with self._asking(file, "removed") as (system, path):
            system.invalidate_cache()
            if system.exists(path):
                system.rm(path, recursive=True)

    @contextmanager
    def claimed(self, folder: str) -> Iterator[None]:  # noqa: ARG002 (nobody can lock an object)
        yield

    def _make_folder(self, system: Any, path: str) -> None:
        """Object stores have no folders, and a bucket of theirs is not ours to make."""
        if self.url.partition("://")[0] not in OBJECT_STORES:
            system.makedirs(path.rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _asking(self, file: str, what: str = "read") -> Iterator[tuple[Any, str]]:
        """The file system and the path there; its errors, of whatever kind, in one line."""
        system = file_system(self.url)
        try:
            yield system, system._strip_protocol(self.name(file))
        except FileNotFoundError:
            raise DataError(f"{self.name(file)}: no such file") from None
        except Exception as error:  # noqa: BLE001  each library has its own, without a common base
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{self.name(file)}: cannot be {what}: {first}") from None


@cache
def _system_of(kind: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(kind)
    except ImportError as error:
        extra = EXTRAS.get(kind)
        hint = f"pip install 'cosmos-wds[{extra}]'" if extra else str(error)
        raise ConfigError(f"{kind}://: its library is not installed: {hint}") from None
    except ValueError:
        raise ConfigError(f"{kind}://: no such kind of address; fsspec does not know it") from None


def file_system(url: str) -> Any:
    """The library's object for a URL. Raises ConfigError when it is unknown or not installed."""
    return _system_of(url.partition("://")[0])
