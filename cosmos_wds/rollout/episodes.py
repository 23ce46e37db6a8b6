"""Episodes that training has not seen: which ones, and what they hold.

E episodes, N actions, A numbers an action, S of a state, H x W pixels at the model's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape

from cosmos_wds.config import shipped_folder, write_text
from cosmos_wds.console import say, track
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import INDEX_NAME, ShardIndex
from cosmos_wds.data.reader import VideoReader
from cosmos_wds.data.sets import ShardSets
from cosmos_wds.data.storage import Storage
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.recipe import Recipe
from cosmos_wds.recipe_eval import EvalSettings
from cosmos_wds.rollout.choice import Choice
from cosmos_wds.rollout.inputs import rollout_actions

LISTS = "episodes"
"""The folder of lists beside the shipped recipes."""


@dataclass(frozen=True)
class HeldOut:
    """Episodes that training has not seen, cut to one length, at the model's size."""

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    frames: np.ndarray
    """(E, N+1, H, W, 3) uint8"""
    actions: np.ndarray
    """(E, N, A) float64, physical units, as the contract means them"""
    digest: str
    """Of the splits that they are taken from."""
    states: np.ndarray | None = None
    """(E, N+1, S) float64, where the shards have them"""
    kind: str = ""
    """Of the recordings (a pipeline's [source] kind); empty: not known."""


Place = tuple[ShardSets, int]
"""An episode: its split, and its row there."""


def held_out(recipe: Recipe, contract: ActionContract, choices: Sequence[Choice] = ()) -> HeldOut:
    """Read the episodes of a recipe's [eval], each cut to as many actions.

    choices   which ones, instead of what [eval] says

    Raises UserError when there are fewer than two, since each needs another one's actions, when
    one that is named is not there or too short, and when the shards' actions mean something else
    than `contract`, the model's.
    """
    places = _chosen(recipe, choices) if choices else _of_settings(recipe)
    opened = {id(sets): sets for sets, _ in places}
    for sets in opened.values():
        sets.check_contract(contract)
    if len(places) < 2:
        raise DataError(
            f"{recipe.data.shards}: {len(places)} episode, and comparing actions takes two"
        )
    readers = {key: VideoReader(sets, recipe.window) for key, sets in opened.items()}
    parts = [
        _read(readers[id(sets)], row, recipe, contract)
        for sets, row in track(places, "recordings", total=len(places))
    ]
    keys, texts, frames, actions, states = zip(*parts, strict=True)
    twice = [key for i, key in enumerate(keys) if key in keys[:i]]
    if twice:
        raise DataError(f"{_some(twice)}: in two shard sets; name one of them with --shards")
    has_states = all(state is not None for state in states)
    return HeldOut(
        keys=keys,
        texts=texts,
        frames=np.stack(frames),
        actions=np.stack(actions),
        digest="+".join(sets.digest for sets in opened.values()),
        states=np.stack(states) if has_states else None,
        kind=_kind([*opened.values()]),
    )


def read_list(name: str) -> tuple[str, ...]:
    """Keys of episodes from a text file or a shipped list: one a line, `#` begins a comment.

    Raises ConfigError when there is no such list, or nothing in it.
    """
    path, shipped = Path(name), shipped_folder("recipes") / LISTS
    if not path.is_file() and len(path.parts) == 1:
        path = shipped / f"{name.removesuffix('.txt')}.txt"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in shipped.glob("*.txt"))) or "none"
        raise ConfigError(f"{name}: no such list of episodes; shipped lists: {names}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file (UTF-8)") from None
    keys = tuple(dict.fromkeys(filter(None, (line.partition("#")[0].strip() for line in lines))))
    if not keys:
        raise ConfigError(f"{path}: names no episode; write one key a line")
    return keys


def write_list(path: Path, keys: Sequence[str]) -> None:
    """Write what `read_list` reads. Raises DataError when the disk refuses."""
    try:
        write_text(path, "".join(f"{key}\n" for key in keys))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None


def _chosen(recipe: Recipe, choices: Sequence[Choice]) -> list[Place]:
    """The episodes that a user named. Raises UserError for those that are not there."""
    opened = {split: _open(recipe, split) for split in {c.split: None for c in choices}}
    found = {}
    for choice in choices:
        sets = opened[choice.split]
        for row in choice.rows(_keys(sets)):
            found[choice.split, row] = sets
    places = [(sets, row) for (_, row), sets in found.items()]
    if any(choice.parts for choice in choices):
        _refuse_short(recipe, places)
        return places
    return _long_enough(recipe, places)


def _of_settings(recipe: Recipe) -> list[Place]:
    settings = recipe.eval
    sets = _open(recipe, settings.split)
    if settings.list:
        places = [(sets, row) for row in _listed(sets, settings)]
        _refuse_short(recipe, places)
        return places
    places = _long_enough(recipe, [(sets, row) for row in range(sets.episodes)])
    count = min(settings.episodes or len(places), len(places))
    return [places[i * len(places) // count] for i in range(count)]


def _open(recipe: Recipe, split: str) -> ShardSets:
    """A split of the recipe's shards. Raises DataError when there is none, or it holds latents."""
    sets = ShardSets.load(recipe.data, split)
    if sets.latents:
        raise DataError(
            f"{sets}: holds latents, and rollouts are compared with pictures; name the shards that "
            "they were made from"
        )
    return sets


def _keys(sets: ShardSets) -> list[str]:
    return [row.key for part in sets.parts for row in part.rows]


def _listed(sets: ShardSets, settings: EvalSettings) -> list[int]:
    """Rows of the episodes of a list. Raises DataError naming those that are not there."""
    keys = read_list(settings.list)
    rows = {key: row for row, key in enumerate(_keys(sets))}
    missing = [key for key in keys if key not in rows]
    if missing:
        raise DataError(
            f"{sets}: split {settings.split} lacks {_some(missing)}, which the list "
            f"{settings.list} names; name another [eval] list, split or [data] shards"
        )
    return [rows[key] for key in keys]


def _frames(place: Place) -> int:
    index, row = place[0].find(place[1])
    return index.rows[row].frames


def _needed(recipe: Recipe) -> int:
    """Frames that a recording must have."""
    return recipe.eval.actions * recipe.window.interval + 1


def _refuse_short(recipe: Recipe, places: Sequence[Place]) -> None:
    """Raise DataError naming episodes that are too short."""
    short = [place for place in places if _frames(place) < _needed(recipe)]
    if short:
        words = [f"{_key(place)} ({_frames(place)})" for place in short]
        raise DataError(
            f"{recipe.eval.actions} actions take {_needed(recipe)} frames, and these episodes have "
            f"fewer: {_some(words)}; lower [eval] actions, or leave them out"
        )


def _long_enough(recipe: Recipe, places: Sequence[Place]) -> list[Place]:
    """Those with enough actions. Says how many have not; raises DataError for fewer than two."""
    found = [place for place in places if _frames(place) >= _needed(recipe)]
    told = f"{len(found)} of {len(places)} episodes have {recipe.eval.actions} actions"
    if len(found) < 2:
        raise DataError(
            f"{recipe.data.shards}: {told} at interval {recipe.window.interval}, and comparing "
            "actions takes two; lower [eval] actions"
        )
    if len(found) < len(places):
        say(escape(told))
    return found


def _key(place: Place) -> str:
    index, row = place[0].find(place[1])
    return index.rows[row].key


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _read(
    reader: VideoReader, row: int, recipe: Recipe, contract: ActionContract
) -> tuple[str, str, np.ndarray, np.ndarray, np.ndarray | None]:
    """Key, text, frames, actions, states of one episode. Raises DataError naming shard and key."""
    index, at = reader.sets.find(row)
    held = reader.read(row)
    picked = slice(0, _needed(recipe), recipe.window.interval)
    has_states = "state.npy" in index.rows[at].members
    state = index.read_array(at, "state.npy") if has_states else np.empty((0, 0))
    actions = rollout_actions(
        contract,
        state,
        index.read_array(at, "action.npy"),
        window=recipe.call_window,
        count=recipe.eval.actions,
    )
    text = str(index.read_json(at).get("text", ""))
    states = state[picked].astype(np.float64) if has_states else None
    return held.key, text, held.frames[picked], actions, states


def _kind(opened: Sequence[ShardSets]) -> str:
    """The kind of recordings that all of the sets were made from; empty when it is not known."""
    kinds = {_kind_of(part.storage) for sets in opened for part in sets.parts}
    return kinds.pop() if len(kinds) == 1 else ""


def _kind_of(where: Storage) -> str:
    if where.size(INDEX_NAME) < 0:  # found by a scan of its tars
        return ""
    return str(ShardIndex.read(where).table.get("settings", {}).get("source.kind", ""))
