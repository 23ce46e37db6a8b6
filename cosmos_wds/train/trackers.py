"""Where a run's numbers and pictures go besides its own files: TensorBoard, W&B, trackio.

Each is an extra of its own name. What it keeps on this machine lies in the run's folder, and a run
that goes on goes on there:

    tensorboard/    event files; what a resumed run comes to again replaces what was there
    wandb/          W&B's files; tracker.json keeps the run's id
    trackio/        trackio's database and pictures, unless TRACKIO_DIR names another place
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Protocol

import numpy as np

from cosmos_wds.config import first_line, write_text
from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.extras import require

TRACKER = "tracker.json"


class Tracker(Protocol):
    """What a run asks of a tracker."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name after `step` steps."""
        ...

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Log pictures (H, W, 3) uint8 by name after `step` steps."""
        ...

    def close(self) -> None:
        """Bring everything to its place and end."""
        ...


def check_tracker(recipe: Recipe) -> None:
    """Raise ConfigError when the package of the recipe's tracker is not installed."""
    kind = recipe.watch.tracker
    if kind != "none":
        require(kind, f'[watch] tracker = "{kind}"')


def open_tracker(recipe: Recipe, step: int) -> Tracker | None:
    """The recipe's tracker, going on after `step`; None for "none". On rank zero alone.

    Raises ConfigError when it cannot start.
    """
    kind = recipe.watch.tracker
    return None if kind == "none" else _OPENERS[kind](recipe, step)


class _TensorBoard:
    """Event files. Steps after the one that a run goes on from are hidden when it comes again."""

    def __init__(self, recipe: Recipe, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = recipe.run_folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run at W&B, or with WANDB_MODE=offline in files that `wandb sync` sends later.

    Curves are drawn over `step`: W&B's own counter cannot go back to the step of a checkpoint.
    """

    def __init__(self, recipe: Recipe, _step: int) -> None:
        import wandb

        self._wandb = wandb
        folder = recipe.run_folder.resolve()
        try:
            self._run = wandb.init(
                project=recipe.project,
                group=recipe.group,
                name=recipe.name,
                id=_kept_id(folder),
                resume="allow",
                dir=folder,
                config=recipe.model_dump(mode="json"),
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            told = first_line(error).rstrip(".")
            raise ConfigError(f"wandb: {told}; or set WANDB_MODE=offline") from None
        self._run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        images = {name: self._wandb.Image(picture) for name, picture in pictures.items()}
        self._run.log({**images, "step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A local trackio run, found again by its name."""

    def __init__(self, recipe: Recipe, _step: int) -> None:
        # Read when trackio is imported, and by its dashboard.
        os.environ.setdefault("TRACKIO_DIR", str(recipe.run_folder.resolve() / "trackio"))
        import trackio

        self._trackio = trackio
        with redirect_stdout(sys.stderr):  # stdout is for what the command was asked for
            self._run = trackio.init(
                project=recipe.project,
                group=recipe.group,
                name=recipe.name,
                config=recipe.model_dump(mode="json"),
                resume="allow",
                embed=False,
            )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        images = {name: self._trackio.Image(picture) for name, picture in pictures.items()}
        self._run.log(images, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


_OPENERS: dict[str, Callable[[Recipe, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def _kept_id(folder: Path) -> str:
    """The run's id at W&B, made once and kept in its folder."""
    path = folder / TRACKER
    if not path.is_file():
        write_text(path, json.dumps({"wandb": secrets.token_hex(4)}) + "\n")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["wandb"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: holds no W&B id; delete it to begin a new W&B run") from None
