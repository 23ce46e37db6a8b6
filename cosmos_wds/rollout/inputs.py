"""What a user names for a rollout: a first frame, and actions from an annotation or an array.

first     an image, or a video, of which the first frame is taken; left out, the annotation's
actions   ROOT/annotation/SPLIT/ID.json in the Bridge layout, or rows of numbers in a .npy, each
          pose seen from the frame before it, whatever the model's contract
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosmos_wds.console import warn
from cosmos_wds.data.actions import ActionContract, integrate
from cosmos_wds.data.episode import Episode, Recording, Video
from cosmos_wds.data.storage import storage
from cosmos_wds.data.video import decode, probe, resize
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.sources.bridge import BridgeSource

VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
LARGEST_STEP = 0.5  # metres or radians between two frames: beyond it, numbers look scaled


@dataclass(frozen=True)
class Inputs:
    """What one rollout starts from, at the model's size."""

    first: np.ndarray
    """(H, W, 3) uint8"""
    actions: np.ndarray
    """(N, A) float64, physical units"""
    truth: np.ndarray | None
    """(N+1, H, W, 3) uint8: the recording itself, when asked for"""


def read_inputs(
    first: Path | None,
    actions: Path,
    *,
    contract: ActionContract,
    window: WindowSettings,
    with_truth: bool = False,
) -> Inputs:
    """Read a first frame and actions. Raises UserError naming what is wrong with which file."""
    if actions.suffix == ".npy":
        if first is None:
            raise ConfigError(f"{actions}: holds actions only; name the first frame too")
        if with_truth:
            raise ConfigError(f"{actions}: holds no recording to compare with; name an annotation")
        rows = chained(contract, read_array(actions, contract), window)
        return Inputs(_fit(read_picture(first), window), rows, None)
    episode = read_annotation(actions)
    if window.stacked:
        raise ConfigError(
            f"{actions}: the model sees {len(window.cameras)} cameras one below the other; give it "
            "a first frame of that kind, and actions as .npy"
        )
    video = _video(episode, window.cameras[0], actions)
    count = (len(episode.state) - 1) // window.interval
    if count < 1:
        raise DataError(
            f"{actions}: {len(episode.state)} frames hold no action at interval {window.interval}"
        )
    try:
        rows = contract.episode_actions(episode)
    except DataError as error:
        raise DataError(f"{actions}: {error}") from None
    rows = rollout_actions(contract, episode.state, rows, window=window, count=count)
    truth = _recording(video, window, count) if with_truth else None
    if first is None:
        picture = decode(video.read(), [0], name=video.name)[0]
    else:
        picture = read_picture(first)
    return Inputs(_fit(picture, window), rows, truth)


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


def read_annotation(path: Path) -> Episode:
    """The episode of an annotation in the Bridge layout. Raises DataError when it is not one."""
    if not path.is_file():
        raise DataError(f"{path}: no such annotation")
    if path.suffix != ".json":
        raise DataError(f"{path}: actions come from an annotation (.json) or an array (.npy)")
    parents = path.absolute().parents
    if len(parents) < 3 or parents[1].name != "annotation":
        raise DataError(
            f"{path}: an annotation lies in ROOT/annotation/SPLIT/, and its videos below ROOT"
        )
    split = parents[0].name
    recording = Recording(split, path.stem, f"annotation/{split}/{path.name}")
    return BridgeSource(storage(parents[2])).read(recording)


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
    _warn_if_scaled(rows, path, contract)
    return rows.astype(np.float64)


def _warn_if_scaled(rows: np.ndarray, path: Path, contract: ActionContract) -> None:
    """Physical units are small numbers; those that the network sees are twenty times as large."""
    largest = np.abs(rows).max(axis=0)
    for name, unit, value in zip(contract.names, contract.units, largest, strict=True):
        if unit in ("m", "rad") and value > LARGEST_STEP:
            warn(
                f"{path}: {name} moves by {value:.3g} {unit} in one step; actions are taken in "
                "physical units, and the model's own scale is applied to them"
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


def _video(episode: Episode, camera: int, path: Path) -> Video:
    if camera not in episode.videos:
        raise DataError(
            f"{path}: has no camera {camera}, which the model was trained on; cameras here: "
            f"{', '.join(map(str, sorted(episode.videos)))}"
        )
    return episode.videos[camera]


def _recording(video: Video, window: WindowSettings, count: int) -> np.ndarray:
    """Frames 0, k, 2k, ... of the video at the model's size, (count + 1, H, W, 3)."""
    content = video.read()
    probe(content, name=video.name)  # a damaged one must not pass for the truth
    wanted = range(0, count * window.interval + 1, window.interval)
    frames = decode(content, wanted, name=video.name)
    return resize(frames, window.height, window.width)


def _fit(picture: np.ndarray, window: WindowSettings) -> np.ndarray:
    fitted: np.ndarray = resize(picture[None], window.height, window.width)[0]
    return fitted
