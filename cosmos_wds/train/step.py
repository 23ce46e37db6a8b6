"""One optimizer step: noise, loss, gradients, clipping; then weights and their average move."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cosmos_wds.data.episode import Batch
from cosmos_wds.diffusion.noise import draw
from cosmos_wds.train.distribute import gradients_stay
from cosmos_wds.train.optim import lr_factor, set_lr
from cosmos_wds.train.training import Work


@dataclass(frozen=True)
class Found:
    """What a batch gave: its mean loss over all ranks, over this one, and the gradient's norm."""

    loss: float
    mine: float
    norm: float
    """Before clipping."""


def gradients(work: Work, batch: Batch) -> Found:
    """Leave the clipped gradients of the mean loss of a global batch, of which this is our share.

    Every rank calls it; afterwards nothing has moved yet.
    """
    total = backward(work, batch)
    parameters = list(work.parameters.values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, work.recipe.train.clip)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    mine, size = torch.stack([total, norm.double()]).tolist()
    loss = work.ranks.total(mine) / work.recipe.train.batch
    return Found(loss=loss, mine=mine / len(batch.key), norm=size)


def update(work: Work, found: Found) -> float:
    """Move the weights along their gradients, and the average after them; returns the lr."""
    settings = work.recipe.train
    lr = settings.lr * lr_factor(
        work.step, steps=settings.steps, warmup=settings.warmup, decay_to=settings.decay_to
    )
    set_lr(work.optimizer, lr)
    work.ema.wait()  # it may still be reading the weights
    work.optimizer.step()
    work.optimizer.zero_grad(set_to_none=True)
    work.ema.update(work.parameters, work.step)
    work.step += 1
    work.recent.append([found.loss, found.norm])
    return lr


def backward(work: Work, batch: Batch) -> Tensor:
    """Leave the gradients of the mean loss, micro-batch by micro-batch.

    Returns the sum of the windows' losses in float64, where it hardly depends on their order: runs
    on any number of ranks report the same.
    """
    recipe, device = work.recipe, work.ranks.device
    count = recipe.train.accumulate
    rows = len(batch.key) // count
    draws = draw(
        recipe.diffusion,
        seed=recipe.seed,
        step=work.step,
        lanes=work.lanes,
        latent_shape=work.latent_shape,
    )
    total = torch.zeros((), dtype=torch.float64, device=device)
    for i in range(count):
        part = slice(i * rows, (i + 1) * rows)
        latent = encoded(work, batch, part)
        with gradients_stay(work.model) if i + 1 < count else nullcontext():
            # A weight is used once in a pass: a cache of its copies would keep all of them until
            # the pass ends, also those that checkpointing makes again.
            with torch.autocast(
                device.type,
                work.precision,
                enabled=work.precision != torch.float32,
                cache_enabled=False,
            ):
                losses = work.model(
                    latent,
                    action=batch.action[part].to(device, non_blocking=True),
                    fps=batch.fps[part].to(device, non_blocking=True),
                    draws=draws.part(part).to(device),
                )
            (losses.mean() / count).backward()
        total += losses.detach().double().sum()
    return total


@torch.no_grad()
def encoded(work: Work, batch: Batch, part: slice) -> Tensor:
    """Some of the batch's windows as float32 latents (B, C, T, h, w) on the run's device."""
    if batch.latent is not None:
        return batch.latent[part].to(work.ranks.device, non_blocking=True).float()
    assert batch.video is not None and work.tokenizer is not None
    video = batch.video[part].to(work.ranks.device, non_blocking=True)
    return work.tokenizer.encode(video.contiguous())
