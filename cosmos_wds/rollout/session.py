"""Worlds that advance one frame at a time: for environments, for play, and for what play recorded.

R worlds, A numbers of an action, C latent channels, T frames of a sampler call's window, h x w
latent pixels, H x W pixels.

A model generates T-1 frames together, and a session is told one action after the other. So each
step samples the whole window anew from its given frame, the *anchor*: under the actions so far, and
then standing still with the gripper as it is. Step k of a window keeps frame k; frame T-1 becomes
the next anchor. The noise is the window's, so that its frames belong together. By then every action
is known: anchors are the frames that `rollout` makes of the same actions, and so is every frame of
a model of T = 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.diffusion.guardrail import guarded
from cosmos_wds.diffusion.rollout import decoded, rollout_noise, sample_window
from cosmos_wds.errors import DataError
from cosmos_wds.rollout.inputs import chained
from cosmos_wds.rollout.ready import ready
from cosmos_wds.rollout.rollout import seeds_and_numbers
from cosmos_wds.train.run import LoadedRun


@dataclass(frozen=True)
class World:
    """One world between two steps."""

    anchor: Tensor
    """(C, h, w): the given frame of the window that it is in"""
    frame: np.ndarray
    """(H, W, 3) uint8: the current one, as it is shown"""
    seed: int
    number: int
    done: int = 0
    """Frames generated before this window."""
    actions: tuple[np.ndarray, ...] = field(default=())
    """Of this window so far, (A,) each, seen from the frame before"""


class Session:
    """R worlds that advance one frame at a time, each wherever it is in its window.

    A world's frames depend on its seed, first frame and actions; what runs beside it changes them
    by rounding only.
    """

    def __init__(
        self,
        run: LoadedRun,
        first: np.ndarray,
        *,
        seed: int | Sequence[int],
        steps: int | None = None,
    ) -> None:
        """Begin from first frames (R, any, any, 3) uint8, resized to the model's size.

        seed   one for all worlds, which then have noise of their own by their number; or each one's
        steps  sampler steps per call; None: the recipe's

        Raises CheckpointError for a model without an action contract, Blocked when the guardrail
        refuses a first frame.
        """
        self._model = ready(run, steps)
        seeds = zip(*seeds_and_numbers(seed, None, len(first)), strict=True)
        self._worlds = self._begun(first, [*seeds])

    @property
    def frames(self) -> np.ndarray:
        """The current frames, (R, H, W, 3) uint8, as the guardrail lets them through."""
        return np.stack([world.frame for world in self._worlds])

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Advance every world by one frame.

        actions   (R, A) in physical units, each pose seen from the frame before it, whatever the
                  model's contract; a gripper is absolute, 0 closed to 1 open
        result    (R, H, W, 3) uint8

        Raises DataError for actions that are none, Blocked when the guardrail refuses a frame; the
        worlds are then where they were.
        """
        rows = self._checked(actions)
        worlds = [
            replace(world, actions=(*world.actions, row))
            for world, row in zip(self._worlds, rows, strict=True)
        ]
        with self._model.computing():
            batch = self._model.recipe.infer.batch
            latents = torch.cat(
                [self._sampled(worlds[i : i + batch]) for i in range(0, len(worlds), batch)]
            )
            pictures = decoded(self._model.run.tokenizer, latents[:, :, None])[:, 0]
            shown = self._guarded(pictures)
            self._worlds = [
                self._advanced(*parts)
                for parts in zip(worlds, latents, pictures, shown, strict=True)
            ]
        return self.frames

    def reset(
        self, rows: Sequence[int], first: np.ndarray, seed: Sequence[int] | None = None
    ) -> None:
        """Let worlds begin anew from first frames (len(rows), any, any, 3) uint8.

        seed   a new one for each; None: they keep theirs

        Raises Blocked when the guardrail refuses a first frame; nothing is then changed.
        """
        kept = [(self._worlds[row].seed, self._worlds[row].number) for row in rows]
        begun = self._begun(first, kept if seed is None else [(int(one), 0) for one in seed])
        for row, world in zip(rows, begun, strict=True):
            self._worlds[row] = world

    def _begun(self, first: np.ndarray, seeds: Sequence[tuple[int, int]]) -> list[World]:
        pictures = self._model.fitted(np.asarray(first))
        with self._model.computing():
            anchors = self._model.encoded(pictures)
        parts = zip(anchors, self._guarded(pictures), seeds, strict=True)
        return [World(anchor, frame, *seed) for anchor, frame, seed in parts]

    def _guarded(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (R, H, W, 3), each as a rollout of one frame."""
        return guarded(self._model.recipe.infer.guardrail, pictures[:, None])[:, 0]

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        names = self._model.contract.names
        rows = np.asarray(actions, np.float64)
        wanted = (len(self._worlds), len(names))
        if rows.shape != wanted:
            raise DataError(
                f"actions are {rows.shape}; {wanted[0]} worlds take {wanted}: {' '.join(names)}"
            )
        if not np.isfinite(rows).all():
            world, column = np.argwhere(~np.isfinite(rows))[0]
            raise DataError(f"action of world {world}: {names[column]} = {rows[world, column]}")
        return rows

    def _sampled(self, worlds: Sequence[World]) -> Tensor:
        """The next frame of each world, (B, C, h, w)."""
        model, window = self._model, self._model.recipe.call_window
        rows = np.stack(
            [
                chained(model.contract, planned(model.contract, world, window.frames - 1), window)
                for world in worlds
            ]
        )
        anchors = torch.stack([world.anchor for world in worlds])
        shape = (anchors.shape[1], window.frames, *anchors.shape[2:])
        kind = model.recipe.infer.noise
        noise = [
            rollout_noise(w.done + 1, shape, kind=kind, seed=w.seed, numbers=[w.number])
            for w in worlds
        ]
        latents = sample_window(
            model.run.denoiser,
            anchors,
            model.scaled(rows),
            fps=model.fps(len(worlds)),
            noise=torch.cat(noise).to(model.device),
            infer=model.recipe.infer,
        )
        return torch.stack(
            [latent[:, len(w.actions)] for latent, w in zip(latents, worlds, strict=True)]
        )

    def _advanced(
        self, world: World, latent: Tensor, picture: np.ndarray, shown: np.ndarray
    ) -> World:
        """A world after a step: in its window, or at the beginning of the next."""
        each = self._model.recipe.call_window.frames - 1
        if len(world.actions) < each:
            return replace(world, frame=shown)
        through_pixels = self._model.recipe.infer.recondition == "pixels"
        anchor = self._model.encoded(picture[None])[0] if through_pixels else latent
        return replace(world, anchor=anchor, frame=shown, done=world.done + each, actions=())


def planned(contract: ActionContract, world: World, count: int) -> np.ndarray:
    """A window's `count` actions (count, A): those so far, then standing still."""
    still = np.zeros(len(contract.names))
    if "gripper" in contract.names:
        column = contract.names.index("gripper")
        still[column] = world.actions[-1][column]
    return np.stack([*world.actions, *[still] * (count - len(world.actions))])
