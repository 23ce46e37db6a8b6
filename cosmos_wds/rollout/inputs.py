"""Files that a user names for a rollout: pictures, and rows of numbers as actions.

H rows, W columns at the model's size, N actions, A numbers an action.
"""

from pathlib import Path

import numpy as np
from rich.markup import escape

from cosmos_wds.console import warn
from cosmos_wds.data.actions import ActionContract, integrate
from cosmos_wds.data.video import decode, resize
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import WindowSettings

VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
LARGEST_STEP = 0.5  # metres or radians between two frames: beyond it, numbers look scaled


def rollout_actions(
    contract: ActionContract,
    state: np.ndarray,
    action: np.ndarray,
    *,
    window: WindowSettings,
    count: int,
) -> np.ndarray:
    """The `count` actions of a rollout from an episode's first frame, (count, A), physical units.

    `state` (T, 7) and `action` (T-1, 7) are the episode's. Each sampler call is a window of its
    own, so a contract whose poses are seen from the window's first frame starts anew with each.
    """
    k, each = window.interval, window.frames - 1
    parts = [
        contract.window_actions(
            state, action, start=at * k, frames=min(each, count - at) + 1, interval=k
        )
        for at in range(0, count, each)
    ]
    return np.concatenate(parts).astype(np.float64)


def chained(contract: ActionContract, rows: np.ndarray, window: WindowSettings) -> np.ndarray:
    """Rows (N, A) as a user gives them -> as the contract means them, physical units.

    Each row's pose is seen from the frame before it. For a contract that sees poses from a window's
    first frame, the rows of each sampler call are joined up from there.
    """
    if not contract.accumulate:
        return rows
    states = integrate(np.zeros(len(contract.names)), rows)
    every = window.model_copy(update={"interval": 1})  # rows are already one a generated frame
    return rollout_actions(contract, states, rows, window=every, count=len(rows))


def read_array(path: Path, contract: ActionContract) -> np.ndarray:
    """Actions (N, A) in physical units from a .npy. Raises DataError when they cannot be used."""
    if not path.is_file():
        raise DataError(f"{path}: no such file of actions")
    try:
        with open(path, "rb") as file:
            rows = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(f"{path}: not a .npy array of numbers: {reason}") from None
    if rows.dtype.kind not in "fiu":
        raise DataError(f"{path}: not an array of numbers but of {rows.dtype}")
    width = len(contract.names)
    if rows.ndim != 2 or rows.shape[1] != width:
        shape = f"(N, {rows.shape[1]})" if rows.ndim == 2 else str(rows.shape)
        raise DataError(
            f"{path}: actions are {shape}; the model takes {width} numbers a row: "
            f"{' '.join(contract.names)}"
        )
    if not len(rows):
        raise DataError(f"{path}: holds no action")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: {rows[row, column]} in row {row}, column {column} ({contract.names[column]})"
        )
    return rows.astype(np.float64)


def warn_if_scaled(rows: np.ndarray, whose: str, contract: ActionContract) -> None:
    """Warn of large numbers: physical units are small, what the network sees is twenty times them.

    `whose` names the rows (N, A).
    """
    largest = np.abs(rows).max(axis=0)
    for name, unit, value in zip(contract.names, contract.units, largest, strict=True):
        if unit in ("m", "rad") and value > LARGEST_STEP:
            warn(
                f"{escape(whose)}: {name} moves by {value:.3g} {unit} in one step; actions are "
                "taken in physical units, and the model's own scale is applied to them"
            )
            return


def read_picture(path: Path) -> np.ndarray:
    """An image, or a video's first frame, as (H, W, 3) uint8. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such image or video")
    if path.suffix.lower() in VIDEOS:
        picture: np.ndarray = decode(path, [0])[0]
        return picture
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, and not a video by its name") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: damaged or unusable image: {error}") from None


def fitted(pictures: np.ndarray, window: WindowSettings) -> np.ndarray:
    """A picture or several, (..., any, any, 3) uint8, at the size that the model sees."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    is_exact, height = window.resize == "exact", window.picture_height
    shown: np.ndarray = resize(flat, height, window.width, exact=is_exact)
    return shown.reshape(*pictures.shape[:-3], *shown.shape[-3:])
