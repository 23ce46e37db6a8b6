"""An overview as tables of words, for the terminal and for the page alike."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import rich.table
from rich.text import Text

from cosmos_wds.inspection.overview import COLUMNS, Overview, Totals
from cosmos_wds.inspection.reach import plain

SPLITS, CONCERNS = "splits", "concerns"
"""Titles of the tables that come first wherever they are shown."""
IN_BROWSERS = {
    "h264 yuv420p": "plays in every browser",
    "h264 yuvj420p": "plays in every browser",
    "vp9 yuv420p": "plays in every browser",
    "av1 yuv420p": "plays in Chromium and Firefox, in Safari on some devices",
}


@dataclass(frozen=True)
class Table:
    """Rows of words under their headings."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_numbers: bool = False
    """Whether all columns but the first are numbers, which stand to the right."""

    def to_rich(self) -> rich.table.Table:
        """For the terminal."""
        table = rich.table.Table(title=Text(self.title), title_justify="left")
        for place, head in enumerate(self.heads):
            justify = "right" if place and self.is_numbers else "left"
            table.add_column(Text(head), justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(plain(word)) for word in row))
        return table


def tables(found: Overview) -> Iterator[Table]:
    """All that an overview says; what is empty is left out."""
    yield _totals(found)
    if found.concerns:
        yield Table(CONCERNS, ("what looks wrong",), tuple((line,) for line in found.concerns))
    yield Table("content", ("what", "found"), tuple(_content(found)))
    yield Table("action contract", ("what", "says"), tuple(_contract(found)))
    if found.statistics:
        yield _statistics(found)
    if found.rejected:
        rows = tuple((r.reason, str(r.episodes), r.example) for r in found.rejected)
        yield Table("rejected episodes", ("reason", "episodes", "one of them"), rows)


def browser_words(codec: str) -> str:
    """Whether browsers play a codec and pixel format."""
    return IN_BROWSERS.get(codec, "not every browser plays it")


def _totals(found: Overview) -> Table:
    whole = Totals(
        *(sum(getattr(t, f.name) for t in found.splits.values()) for f in fields(Totals))
    )
    named = [*found.splits.items(), *([("in all", whole)] if len(found.splits) > 1 else [])]
    rows = tuple(
        (
            name,
            f"{t.episodes:,}",
            f"{t.frames:,}",
            f"{t.hours:.2f}",
            f"{t.shards:,}",
            f"{t.bytes / 1e6:,.1f} MB",
        )
        for name, t in named
    )
    heads = ("split", "episodes", "frames", "hours", "shards", "size")
    return Table(SPLITS, heads, rows, is_numbers=True)


def _content(found: Overview) -> Iterator[tuple[str, str]]:
    if found.looked_at < sum(totals.episodes for totals in found.splits.values()):
        yield "looked at", f"{found.looked_at:,} episodes, spread evenly"
    yield "cameras", _counted(found.cameras, "episode") or "none"
    yield "picture", _counted(found.sizes, "episode")
    for codec, videos in found.codecs.items():
        yield "video", f"{codec}: {browser_words(codec)} ({_count(videos, 'video')} opened)"
    if not found.codecs:
        yield "video", "none"
    elif found.encoding:
        yield "encoding", found.encoding
    if found.latents:
        shape = "x".join(map(str, found.latent_format.get("shape") or ()))
        made = f", {shape} a frame, {found.latent_format.get('tokenizer')}" if shape else ""
        yield "latents", f"in {_count(found.latents, 'episode')}{made}"
    yield (
        "texts",
        f"in {found.with_text:,} of {found.looked_at:,} episodes, "
        f"{found.different_texts:,} different",
    )
    for text in found.texts:
        yield "text, for example", f"“{text}”"
    yield "folder", found.path
    yield "made by", found.tool


def _contract(found: Overview) -> Iterator[tuple[str, str]]:
    for name, value in found.contract.items():
        yield name, " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _statistics(found: Overview) -> Table:
    names, units = found.contract["names"], found.contract["units"]
    columns = (found.statistics[column] for column in COLUMNS)
    rows = tuple(
        (f"{name} ({unit})", *(f"{number:.4g}" for number in numbers))
        for name, unit, *numbers in zip(names, units, *columns, strict=True)
    )
    title = f"actions of {found.statistics_of}, physical units"
    return Table(title, ("dimension", *COLUMNS), rows, is_numbers=True)


def _counted(counts: Mapping[str, int], noun: str) -> str:
    return ", ".join(f"{name} ({_count(number, noun)})" for name, number in counts.items())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
