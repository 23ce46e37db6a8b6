"""What all tabs share: the model, what worlds may start from, and what a page is told of both."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosmos_wds.data.actions import NAMES, ActionContract
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.inspection.reach import spread
from cosmos_wds.play.messages import Rules
from cosmos_wds.recipe import Recipe
from cosmos_wds.rollout.action_log import weights_digest
from cosmos_wds.rollout.starts import GRIPPER, Start, Starts, open_starts
from cosmos_wds.train.run import LoadedRun

MOST_STARTS = 24
THUMBNAIL = 160
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class Playground:
    """A model and its starts."""

    run: LoadedRun
    contract: ActionContract
    starts: tuple[Start, ...]
    rules: Rules
    steps: int
    """Sampler steps per call."""
    checkpoint: str
    weights: str

    @property
    def fps(self) -> float:
        """Frames per second of the robot's time."""
        return self.contract.fps / self.run.recipe.window.interval

    def about(self) -> dict[str, Any]:
        """What a page is told first."""
        window = self.run.recipe.window
        limits = self.rules.limits
        return {
            "is": "hello",
            "model": f"{self.checkpoint} ({self.run.recipe.name})",
            "names": self.contract.names,
            "units": ["" if unit == "1" else unit for unit in self.contract.units],
            "low": limits.low.tolist(),
            "high": limits.high.tolist(),
            "held": [is_held(self.contract, name) for name in self.contract.names],
            "fps": self.fps,
            "height": window.picture_height,
            "width": window.width,
            "starts": [
                {"name": start.name, "text": start.text, "gripper": start.gripper}
                for start in self.starts
            ],
        }

    def thumbnails(self) -> list[bytes]:
        """The starts, small, as JPEG."""
        return [thumbnail(start.picture) for start in self.starts]


def open_playground(
    run: LoadedRun, starts: Starts, *, checkpoint: str, contract: ActionContract
) -> Playground:
    """Read the starts that are offered, evenly from all of them.

    Raises UserError when one cannot be read.
    """
    chosen = tuple(starts.read(number) for number in spread(len(starts.names), MOST_STARTS))
    return Playground(
        run=run,
        contract=contract,
        starts=chosen,
        rules=Rules(contract.names, starts.limits, len(chosen)),
        steps=run.recipe.infer.steps,
        checkpoint=checkpoint,
        weights=weights_digest(run.place) if run.place.file.exists() else "",
    )


def find_starts(
    recipe: Recipe,
    contract: ActionContract,
    *,
    shards: str | None,
    images: Sequence[Path],
    beside: Path | None = None,
) -> Starts:
    """Images, or a shard set; without either, the shards that the run was trained on.

    beside   the folder of the weights: where those shards are not here, its `starts/*.png`, which
             weights that ship with the package have

    Raises UserError when there is nothing to start from.
    """
    if shards and images:
        raise ConfigError("play: --shards and --image: give one of them")
    if shards or images:
        return open_starts(shards or images, contract=contract, recipe=recipe)
    own = recipe.data.shards
    place = own if isinstance(own, str) else own[0]
    try:
        return open_starts(place, contract=contract, recipe=recipe)
    except UserError as error:
        pictures = sorted(beside.glob("starts/*.png")) if beside else []
        if pictures:
            return open_starts(pictures, contract=contract, recipe=recipe)
        raise ConfigError(
            f"play: from which picture? The model's own shards cannot be had ({error}); name "
            "others with --shards FOLDER, or a picture with --image FILE"
        ) from None


def is_held(contract: ActionContract, name: str) -> bool:
    """Whether a number stays as it is when nothing is pressed: a gripper, and what may be a place
    rather than a motion."""
    return name == GRIPPER or (contract.frame == "recorded" and name not in NAMES)


def thumbnail(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8, small, as JPEG."""
    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    return content.getvalue()
