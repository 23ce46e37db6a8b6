"""What checks find: problems as lines, and episodes that are in it twice or in two splits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Seen:
    """What tells an episode apart from the others of the set."""

    split: str
    place: str
    """Shard and key, as lines name them."""
    key: str
    id: str
    source: str
    """sha256 of what it was made from; empty when its json does not say."""
    videos: tuple[str, ...]
    """sha256 of each camera's file."""


@dataclass
class Findings:
    """What a check has found; a problem is one line that names shard and key."""

    problems: list[str] = field(default_factory=list)
    episodes: list[Seen] = field(default_factory=list)


def repeated_keys(episodes: Iterable[Seen]) -> Iterator[str]:
    """A line for each episode whose key another one has, whatever their splits."""
    for first, *others in _groups(episodes, lambda seen: (seen.key,)):
        yield from (f"{seen.place}: the same key as in {first.place}" for seen in others)


def leaks(episodes: Sequence[Seen]) -> Iterator[str]:
    """A line for each episode whose recording or video an earlier split has too."""
    for what, marks in _MARKS.items():
        for first, *others in _groups(episodes, marks):
            for seen in others:
                if seen.split != first.split:
                    yield (
                        f"{seen.place}: the same {what} in two splits: "
                        f"{first.place} of {first.split}, and this of {seen.split}"
                    )


def notes(episodes: Sequence[Seen]) -> Iterator[str]:
    """What is worth a look and may be right: equal ids, and doubles within a split."""
    shared = [
        group
        for group in _groups(episodes, lambda seen: (seen.id,))
        if len({seen.split for seen in group}) > 1
    ]
    if shared:
        yield f"{len(shared)} ids are in more than one split, {shared[0][0].id!r} the first"
    for what, marks in _MARKS.items():
        groups = list(_groups(episodes, lambda seen, marks=marks: _within(seen, marks)))
        if groups:
            count = len({seen.place for group in groups for seen in group})
            first = groups[0][0].place
            yield f"{count} episodes have a {what} as others of their split have, {first} the first"


_MARKS: dict[str, Callable[[Seen], Iterable[str]]] = {
    "recording (source_sha256)": lambda seen: (seen.source,),
    "video (video_sha256)": lambda seen: seen.videos,
}


def _within(seen: Seen, marks: Callable[[Seen], Iterable[str]]) -> Iterator[str]:
    return (f"{seen.split} {mark}" for mark in marks(seen) if mark)


def _groups(
    episodes: Iterable[Seen], marks: Callable[[Seen], Iterable[str]]
) -> Iterator[list[Seen]]:
    """Episodes, in their order, that have a mark in common: two or more; no mark counts as none."""
    bearers: dict[str, list[Seen]] = {}
    for seen in episodes:
        for mark in dict.fromkeys(filter(None, marks(seen))):
            bearers.setdefault(mark, []).append(seen)
    return (group for group in bearers.values() if len(group) > 1)
