"""What came of sharding, in words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from cosmos_wds.console import say
from cosmos_wds.data.looks import Rejected
from cosmos_wds.data.publish import REJECTED_NAME
from cosmos_wds.data.storage import Storage

SHOWN = 5  # rejected episodes that the summary names


@dataclass(frozen=True)
class Summary:
    """What a shard set holds, and what came of making it; as text, the set's place."""

    where: Storage
    splits: Mapping[str, Mapping[str, int]]
    """Split -> episodes, frames, shards, bytes."""
    video: Mapping[str, Any]
    """What became of the videos, as index.json has it; nothing in a set of latents."""
    rejected: tuple[Rejected, ...]
    kept: int = 0
    """Shards that an earlier run had finished."""
    is_new: bool = True
    is_forecast: bool = False
    seconds: float = 0.0
    latents: Mapping[str, Any] | None = None
    """What index.json says of them, in a set of latents."""

    @classmethod
    def of(
        cls, where: Storage, table: Mapping[str, Any], rejected: tuple[Rejected, ...]
    ) -> "Summary":
        """From what index.json says."""
        splits = {name: split["totals"] for name, split in table["splits"].items()}
        video, latents = table.get("video", {}), table.get("latents")
        return cls(where, splits, video, rejected, latents=latents)

    def __str__(self) -> str:
        return str(self.where)

    def told(self) -> "Summary":
        """Itself, once its words have been printed."""
        for line in self.lines():
            say(escape(line))
        return self

    def lines(self) -> Iterator[str]:
        """The summary in words."""
        for split, n in self.splits.items():
            yield (
                f"{split}: {n['episodes']} episodes, {n['frames']} frames; "
                f"{counted(n['shards'], 'shard')}, {n['bytes'] / 1e6:.1f} MB"
            )
        if loss := self.video.get("psnr"):
            yield (
                f"videos encoded again: PSNR {loss['mean']:.1f} dB on the mean of "
                f"{counted(loss['episodes'], 'episode')}, {loss['min']:.1f} dB at worst"
            )
        if latents := self.latents:
            yield (
                f"latents: {'x'.join(map(str, latents['shape']))} a frame, "
                f"{latents['tokenizer']} tokenizer {latents['digest'][:16]}"
            )
        if self.kept:
            yield f"{counted(self.kept, 'shard')} kept from an earlier run"
        for bad in self.rejected[:SHOWN]:
            yield f"rejected: {bad.file}: {bad.reason}"
        if len(self.rejected) > SHOWN:
            yield f"rejected: {len(self.rejected) - SHOWN} more"
        if self.rejected and not self.is_forecast:
            yield f"{len(self.rejected)} rejected in all: {self.where.name(REJECTED_NAME)}"
        if self.is_forecast:
            yield f"{self.where}: nothing was written; it would take about {self.seconds:.0f} s"
        else:
            yield f"{self.where}: complete, {self.seconds:.1f} s"


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number} {noun}" + ("s" if number != 1 else "")
