"""The shard sets that a loader reads: one, or several whose actions and latents mean the same."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.cache import open_shards
from cosmos_wds.data.index import LatentFormat, SplitIndex
from cosmos_wds.data.scan import open_split
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import DataSettings


@dataclass(frozen=True, eq=False)
class ShardSets:
    """One split of each set; rows count through them, one after the other.

    Raises DataError when the sets do not go together, naming the first difference.
    """

    parts: tuple[SplitIndex, ...]

    def __post_init__(self) -> None:
        first = self.parts[0]
        for other in self.parts[1:]:
            for line in first.contract.differences(other.contract):
                raise DataError(
                    f"{first.storage} and {other.storage}: their actions do not mean the same: "
                    f"{line}; shard one of them again with the other's [actions]"
                )
            if _meaning(first.latents) != _meaning(other.latents):
                raise DataError(
                    f"{first.storage} and {other.storage}: {_said(first.latents)} there, "
                    f"{_said(other.latents)} here; mix sets of one kind"
                )

    @classmethod
    def load(cls, data: DataSettings, split: str = "") -> "ShardSets":
        """Open the sets of a recipe's [data], of its split or another one."""
        places = (data.shards,) if isinstance(data.shards, str) else data.shards
        where = [open_shards(place, data) for place in places]
        memory = Path(data.cache).expanduser()
        return cls(tuple(open_split(w, split or data.split, memory=memory) for w in where))

    @property
    def contract(self) -> ActionContract:
        """What the actions mean."""
        return self.parts[0].contract

    def check_contract(self, contract: ActionContract) -> None:
        """Raise DataError when actions mean something else here than in `contract`, a model's."""
        if self.contract.digest == contract.digest:
            return
        lines = "\n  ".join(contract.differences(self.contract))
        raise DataError(
            f"{self}: the shards' actions mean something else than the model's (contract "
            f"{self.contract.digest} there, {contract.digest} here); shard the recordings with "
            f"the model's [actions]\n  {lines}"
        )

    @property
    def latents(self) -> LatentFormat | None:
        """What the latents are; None when the sets hold videos."""
        return self.parts[0].latents

    @cached_property
    def digest(self) -> str:
        """The sets' digests."""
        return "+".join(part.digest for part in self.parts)

    @cached_property
    def episodes(self) -> int:
        """Episodes of all sets."""
        return int(self._offsets[-1])

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *(len(part.rows) for part in self.parts)])

    def find(self, row: int) -> tuple[SplitIndex, int]:
        """The set of an episode, and its row there."""
        if len(self.parts) == 1:
            return self.parts[0], row
        number = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return self.parts[number], row - int(self._offsets[number])

    def name(self, row: int) -> str:
        """How an episode is called in errors: its shard and key."""
        index, row = self.find(row)
        return f"{index.storage.name(index.rows[row].shard)}: {index.rows[row].key}"

    def __str__(self) -> str:
        return " + ".join(str(part.storage) for part in self.parts)


def _meaning(latents: LatentFormat | None) -> object:
    """What must be equal for latents to go into one batch."""
    return latents and (latents.digest, latents.shape, latents.height, latents.width)


def _said(latents: LatentFormat | None) -> str:
    if latents is None:
        return "videos"
    return f"latents of {latents.height}x{latents.width} by tokenizer {latents.digest[:16]}"
