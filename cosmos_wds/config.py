"""TOML table -> frozen typed settings, with every problem told in one report.

A file is a tree of two levels: plain keys and sections. Reading is pydantic's; ours is the
wording, the near-miss suggestion, and that all problems come at once.
"""

import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import tomli
import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from cosmos_wds.errors import ConfigError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A frozen section. Unknown keys are errors; `problems` checks what types cannot say."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def problems(self) -> Iterator[str]:
        """Yield one line for each value that cannot work."""
        yield from ()


def at_least(settings: Settings, **bounds: int) -> Iterator[str]:
    """A line for each setting below its bound."""
    for name, least in bounds.items():
        value = getattr(settings, name)
        if value < least:
            yield f"{name} = {value}: must be {least} or more"


def find_toml(name: str, folder: str) -> Path:
    """Resolve `name` to a file: a path, or a name inside the shipped `folder` (recipes, pipelines).

    Raises ConfigError naming the near misses when there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_folder(folder)
    names = sorted(p.stem for p in shipped.glob("*.toml"))
    stem = path.stem if path.suffix == ".toml" else path.name
    if len(path.parts) == 1 or path.parts[:-1] == (folder,):
        candidate = shipped / f"{stem}.toml"
        if candidate.is_file():
            return candidate
    near = difflib.get_close_matches(stem, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped {folder}: {', '.join(names)}"
    raise ConfigError(f"{name}: no such file and no shipped {folder[:-1]} of that name; {hint}")


def shipped_folder(folder: str) -> Path:
    """Where the shipped TOML files lie: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def read_table(path: Path) -> dict[str, Any]:
    """Parse one TOML file. Raises ConfigError with the line for a syntax error."""
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file (UTF-8)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `table` with `section.key=value` strings applied; values are TOML, or plain words."""
    merged = {k: dict(v) if isinstance(v, Mapping) else v for k, v in table.items()}
    for item in overrides:
        key, equals, text = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > 2:
            raise ConfigError(f"--set {item}: write it as section.key=value, e.g. train.steps=100")
        target = merged
        if len(parts) == 2:
            target = merged.setdefault(parts[0], {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {item}: {parts[0]} is a value, not a section")
        target[parts[-1]] = _toml_value(text.strip())
    return merged


def override(key: str, value: int | Path) -> str:
    """`key=value` as `apply_overrides` takes it, whatever characters the value holds."""
    plain = value if isinstance(value, int) else str(value)
    return f"{key}={json.dumps(plain, ensure_ascii=False)}"


def _toml_value(text: str) -> Any:
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


def parse(kind: type[S], table: Mapping[str, Any], *, origin: str) -> S:
    """Build settings of `kind` from a table; raise one ConfigError that lists every problem."""
    problems: list[str] = []
    cleaned = _clean(kind, table, "", problems)
    settings = None
    try:
        settings = kind.model_validate(cleaned)
    except ValidationError as error:  # what dropping the bad keys could not mend: missing ones
        problems += [_describe(kind, e, "") for e in error.errors()]
    if settings is not None:
        problems += _values(settings)
    if problems:
        unique = list(dict.fromkeys(problems))
        noun = "problem" if len(unique) == 1 else "problems"
        raise ConfigError("\n  ".join([f"{origin}: {len(unique)} {noun}", *unique]))
    assert settings is not None
    return settings


def _clean(
    kind: type[Settings], table: Mapping[str, Any], label: str, problems: list[str]
) -> dict[str, Any]:
    """Drop the keys of `table` that do not fit `kind`, noting each in `problems`."""
    cleaned: dict[str, Any] = {}
    for key, value in table.items():
        field = kind.model_fields.get(key)
        section = field.annotation if field else None
        if isinstance(section, type) and issubclass(section, Settings):
            if isinstance(value, Mapping):
                cleaned[key] = _clean(section, value, f"[{key}] ", problems)
            else:
                problems.append(f"{label}{key} = {value!r}: this is a section, write it as [{key}]")
        else:
            cleaned[key] = value
    try:
        kind.model_validate(cleaned, strict=False)
    except ValidationError as error:
        for e in error.errors():
            if len(e["loc"]) and e["type"] != "missing" and e["loc"][0] in cleaned:
                is_section = isinstance(cleaned[e["loc"][0]], dict) and len(e["loc"]) > 1
                if not is_section:
                    problems.append(_describe(kind, e, label))
                    cleaned.pop(str(e["loc"][0]), None)
    return cleaned


def _describe(kind: type[Settings], error: Mapping[str, Any], label: str) -> str:
    loc = [str(part) for part in error["loc"]]
    if len(loc) > 1 and not label and loc[0] in kind.model_fields:
        field = kind.model_fields[loc[0]].annotation
        if isinstance(field, type) and issubclass(field, Settings):
            return _describe(field, {**error, "loc": error["loc"][1:]}, f"[{loc[0]}] ")
    key = loc[0] if loc else "?"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(kind.model_fields), n=1)
        return f"{label}{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{label}{key}: missing; it has no default"
    return f"{label}{key} = {error['input']!r}: {error['msg'].lower()}"


def _values(settings: Settings) -> list[str]:
    problems = list(settings.problems())
    for name in type(settings).model_fields:
        section = getattr(settings, name)
        if isinstance(section, Settings):
            problems += [f"[{name}] {line}" for line in section.problems()]
    return problems


def import_function(name: str, what: str) -> Callable[..., Any]:
    """Import `module:function`; `what` names the setting in errors.

    The working folder is looked in first, but only while the module is imported: what the function
    itself imports later must be installed. Raises ConfigError when there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        with _working_folder_importable():
            found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(
            f"{what} {name!r}: {module} cannot be imported: {first_line(error)}; start in the "
            "folder that holds it, or install it"
        ) from error
    except Exception as error:  # a module may raise anything
        raise ConfigError(
            f"{what} {name!r}: {module} fails as it is imported: {type(error).__name__}: "
            f"{first_line(error)}; mend it, `python -c 'import {module}'` shows where"
        ) from error
    if not callable(found):
        kind = "" if found is None else f", only a value of type {type(found).__name__}"
        raise ConfigError(f"{what} {name!r}: {module} has no function {function}{kind}")
    checked: Callable[..., Any] = found
    return checked


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    """Put the working folder first on Python's path, where an installed script does not have it."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have taken it away
            sys.path.remove(here)


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def dump(settings: Settings) -> str:
    """The resolved settings as TOML text; reading it back gives equal settings."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a temporary name, fsync and rename, so it is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
