"""What to change in a recipe that does not fit a GPU, found by planning it again, so changed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from cosmos_wds.train.plan_gpus import Gpu
from cosmos_wds.train.plan_memory import least_memory
from cosmos_wds.train.plan_outline import Outline

MORE = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs that are tried."""
LEAST_EPS = 1e-8
"""Of [train] `eps` with adamw8bit (recipe_train.py)."""


@dataclass(frozen=True)
class Advice:
    """Settings of [train] with which a run fits."""

    changes: dict[str, Any]
    outline: Outline


def advise(outline: Outline, gpu: Gpu) -> Advice | None:
    """The fastest way to fit that changes least: on as many GPUs, else on the fewest that hold it.

    None when nothing that is tried fits.
    """
    for ranks in (outline.ranks, *(n for n in MORE if n > outline.ranks)):
        if outline.recipe.train.batch % ranks or ranks % outline.recipe.train.replicate:
            continue
        start = replace(outline, most=outline.recipe.train.batch)
        if ranks > outline.ranks:
            parallel = "ddp" if outline.recipe.lora.rank else "fsdp"
            start = start.changed(ranks=ranks, parallel=parallel, accumulate=1, offload=False)
        fitting = _fastest(start, gpu)
        if fitting:
            before, after = outline.recipe.train, fitting.recipe.train
            names = type(before).model_fields
            changes = {
                n: getattr(after, n) for n in names if getattr(after, n) != getattr(before, n)
            }
            return Advice(changes, fitting)
    return None


def _fastest(outline: Outline, gpu: Gpu) -> Outline | None:
    """On the same number of ranks."""
    possible = [o for o in _variants(outline) if least_memory(o.split, o.parameters) < gpu.memory]
    # Fewest changes first, of those that differ by some percent only.
    for variant in sorted(possible, key=lambda o: float(f"{o.seconds(gpu):.1e}")):
        for estimate in _smaller_batches(variant):
            if estimate.memory.total <= gpu.memory:
                exact = replace(estimate, most=0)
                if exact.memory.total <= gpu.memory:
                    return exact
    return None


def _variants(outline: Outline) -> list[Outline]:
    """With less memory on the GPU; the fewest changes first."""
    settings = outline.recipe.train
    checkpointing: tuple[dict[str, Any], ...] = (
        {},
        *({"checkpointing": kind} for kind in ("selective", "full")),
    )
    in_8_bits = {"optimizer": "adamw8bit", "eps": max(settings.eps, LEAST_EPS)}
    choices = [checkpointing, ({}, in_8_bits)]
    if settings.ema != "none":
        choices.append(({}, {"ema_device": "cpu"}))
    if outline.ranks == 1:
        choices.append(({}, {"offload": True, "parallel": "single"}))
    elif not outline.recipe.lora.rank:
        choices.append(({}, {"parallel": "fsdp"}))
    merged = [{k: v for part in parts for k, v in part.items()} for parts in product(*choices)]
    return [outline.changed(**changes) for changes in sorted(merged, key=len)]


def _smaller_batches(outline: Outline) -> Iterator[Outline]:
    """The same with more and more, smaller and smaller micro-batches."""
    settings = outline.recipe.train
    share = settings.batch // outline.ranks
    for count in range(settings.accumulate, share + 1):
        if share % count == 0:
            yield outline.changed(accumulate=count)
