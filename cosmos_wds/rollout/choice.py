"""Which seeds and which episodes of shards a user means: `0-3`, `val:0-15`, `val:KEY`, `val`.

    numbers   = part { "," part }           part = number | first "-" last, the last included
    episodes  = SPLIT [ ":" part { "," part } ] { " " the same of another split }

A number is an episode's place in the split, from 0; anything else is its key, or the name of its
recording.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cosmos_wds.data.shards import episode_key
from cosmos_wds.errors import ConfigError

MOST = 100_000
"""Numbers of one list, episodes of one command."""
LARGEST_SEED = 2**32 - 1
RANGE = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?", re.ASCII)


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `0`, `0-3` or `0,5,7-9`. Raises ConfigError."""
    spans = [_span(part) for part in text.split(",")]
    if None in spans:
        raise ConfigError(f"--seed {text}: whole numbers, such as 3, 0-3 or 0,5,7-9")
    seeds = [seed for first, last in filter(None, spans) for seed in _expanded(first, last, text)]
    for seed in seeds:
        if seed > LARGEST_SEED:
            raise ConfigError(f"--seed {seed}: a whole number from 0 to {LARGEST_SEED}")
    return tuple(dict.fromkeys(seeds))


@dataclass(frozen=True)
class Choice:
    """The episodes that a user wants of one split; no parts: all of them."""

    split: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.split}:{','.join(self.parts)}" if self.parts else self.split

    def rows(self, keys: Sequence[str]) -> list[int]:
        """Their places among the split's keys, in the order wanted, each once.

        Raises ConfigError for what the split does not have.
        """
        if not keys:
            raise ConfigError(f"--episodes {self}: the split is empty")
        if not self.parts:
            return list(range(len(keys)))
        places = {key: row for row, key in enumerate(keys)}
        found = [row for part in self.parts for row in self._of_part(part, keys, places)]
        return list(dict.fromkeys(found))

    def _of_part(self, part: str, keys: Sequence[str], places: dict[str, int]) -> Iterator[int]:
        span = _span(part)
        if span is None:
            key = part if part in places else episode_key(self.split, part)
            if key not in places:
                near = difflib.get_close_matches(part, keys, n=1, cutoff=0.8)
                hint = f"did you mean {near[0]}?" if near else f"its first is {keys[0]}"
                raise ConfigError(
                    f"--episodes {self}: {self.split} has no episode {part!r}; {hint}"
                )
            yield places[key]
            return
        first, last = span
        if last >= len(keys):
            raise ConfigError(
                f"--episodes {self}: {self.split} has {len(keys)} episodes, 0 to {len(keys) - 1}"
            )
        yield from _expanded(first, last, str(self))


def read_choices(texts: Sequence[str]) -> tuple[Choice, ...]:
    """What `--episodes`, given once or several times, means. Raises ConfigError."""
    found = []
    for word in (word for text in texts for word in text.split()):
        split, colon, rest = word.partition(":")
        parts = tuple(rest.split(",")) if colon else ()
        if not split or not all(parts) or (colon and not parts):
            raise ConfigError(
                f"--episodes {word}: write it as val:0-15, val:3,7 or val:KEY, or val for all"
            )
        found.append(Choice(split, parts))
    if not found:
        raise ConfigError("--episodes '': empty; write it as val:0-15, or val for all")
    return tuple(found)


def _span(part: str) -> tuple[int, int] | None:
    """First and last of a range, or a number twice; None for something else."""
    match = RANGE.fullmatch(part.strip())
    return (int(match[1]), int(match[2] or match[1])) if match else None


def _expanded(first: int, last: int, text: str) -> range:
    if last < first:
        raise ConfigError(f"{text}: {first}-{last} is empty; the smaller number comes first")
    if last - first >= MOST:
        raise ConfigError(f"{text}: more than {MOST} numbers")
    return range(first, last + 1)
