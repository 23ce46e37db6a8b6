"""Shards -> latents: a second set of the same episodes, encoded once for all trainings.

It has the splits, shards and keys of the shard set, and says in index.json, under `latents`, which
tokenizer made it, of which pixels, and of which shard set (LatentFormat). Writing it is planned,
continued and published as run.py does for recordings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import EpisodeRow, LatentFormat, ShardIndex
from cosmos_wds.data.looks import Rejected
from cosmos_wds.data.publish import Done
from cosmos_wds.data.storage import Storage, storage
from cosmos_wds.data.workers import cores
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.model.tokenizers import open_tokenizer
from cosmos_wds.pipeline import LatentSettings, Pipeline
from cosmos_wds.prepare.engines import LocalEngine
from cosmos_wds.prepare.latent_job import LatentJob
from cosmos_wds.prepare.run import complete
from cosmos_wds.prepare.summary import Summary


def write_latents(pipeline: Pipeline, *, strict: bool = False, dry_run: bool = False) -> Summary:
    """Write the latent set of a pipeline's shards, or complete it; a finished one is left alone.

    An episode that does not decode is listed in rejected.jsonl; with `strict` it is an error.
    Raises CheckpointError for what is no tokenizer, ConfigError for pixels that it does not take,
    DataError for shards that cannot be read, latents that float16 does not hold, or a folder that
    cannot be written or holds something else.
    """
    settings = pipeline.latents
    plan = make_plan(ShardIndex.read(pipeline.shards.path), settings)
    engine = LocalEngine(pipeline.shards.workers or cores(), most=plan.gpus or None)
    return complete(plan, storage(settings.path), engine, strict=strict, dry_run=dry_run)


@dataclass(frozen=True)
class LatentPlan:
    """A shard set, and how it is encoded."""

    index: ShardIndex
    latents: LatentFormat
    place: str
    """The tokenizer, as `open_tokenizer` takes it."""
    gpus: int

    rejected = ()
    knows_bytes = True
    is_threaded = False

    @property
    def contract(self) -> ActionContract:
        return self.index.contract

    def jobs(self, where: Storage, *, strict: bool = False) -> list[LatentJob]:
        jobs = []
        for split, shards in self.index.splits.items():
            rows: dict[str, list[EpisodeRow]] = {shard.name: [] for shard in shards}
            for row in self.index.split(split).rows:
                rows[row.shard].append(row)
            jobs += [
                LatentJob(
                    source=self.index.storage,
                    contract=self.contract,
                    storage=where,
                    split=split,
                    number=number,
                    rows=tuple(rows[shard.name]),
                    latents=self.latents,
                    place=self.place,
                    gpus=self.gpus,
                    strict=strict,
                )
                for number, shard in enumerate(shards)
            ]
        return jobs

    def differences(self, index: ShardIndex) -> list[str]:
        if index.latents is None:
            return ["what they hold (videos then, latents now)"]
        before, now = vars(index.latents), vars(self.latents)
        return [
            f"{key} (was {_short(before[key])}, is {_short(now[key])})"
            for key in now
            if before[key] != now[key]
        ]

    def all_rejected(self, done: Done) -> tuple[Rejected, ...]:
        return tuple(entry for _, result in done for entry in result.rejected)

    def about(self, done: Done) -> Mapping[str, Any]:  # noqa: ARG002 (nothing comes up in writing)
        table = self.index.table
        return {
            "concerns": table.get("concerns", []),
            "source": table.get("source", {}),
            "latents": vars(self.latents),
        }


def make_plan(index: ShardIndex, settings: LatentSettings) -> LatentPlan:
    """Look at the shards and the tokenizer, and whether they fit. Raises as `write_latents`."""
    if index.latents:
        raise DataError(f"{index.storage}: holds latents; name the shards that they were made from")
    gpus = _count_gpus(settings.device)
    kind, tokenizer = open_tokenizer(settings.tokenizer)
    factor, height, width = tokenizer.factor, settings.height, settings.width
    if height % factor or width % factor:
        raise ConfigError(
            f"[latents] height = {height}, width = {width}: {settings.tokenizer} takes multiples "
            f"of {factor}"
        )
    latents = LatentFormat(
        tokenizer=kind,
        digest=tokenizer.digest,
        shards=index.digest,
        camera=settings.camera,
        height=height,
        width=width,
        shape=(tokenizer.channels, height // factor, width // factor),
        batch=settings.batch,
    )
    return LatentPlan(index, latents, settings.tokenizer, gpus)


def _count_gpus(device: str) -> int:
    """How many GPUs encode; 0 leaves it to the CPU."""
    found = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and not found:
        raise ConfigError('[latents] device = "cuda", but torch sees no GPU; use "auto" or "cpu"')
    return found


def _short(value: Any) -> str:
    return str(value)[:16]
