"""What a user asks of a rollout: a first frame, and actions from a recording, an array or words.

first       an image, or a video, of which the first frame is taken; left out, the recording's own
annotation  a recording: ROOT/annotation/SPLIT/ID.json in the Bridge layout
npy         rows of numbers in a .npy, each pose seen from the frame before it, whatever the model's
            contract
script      actions in words (script.py)

H rows, W columns at the model's size, T frames of a recording, N actions, A numbers an action.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cosmos_wds.console import say
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Episode, Recording, Video
from cosmos_wds.data.storage import storage
from cosmos_wds.data.video import decode, probe
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.recipe import Recipe, WindowSettings
from cosmos_wds.rollout.inputs import (
    chained,
    fitted,
    read_array,
    read_picture,
    rollout_actions,
    warn_if_scaled,
)
from cosmos_wds.rollout.script import is_pose, read_script
from cosmos_wds.sources.bridge import BridgeSource


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a rollout is made of, as the user names it; None: not named."""

    first: Path | None = None
    """An image or a video."""
    annotation: Path | None = None
    """A recording, for what is not named otherwise."""
    npy: Path | None = None
    script: str | None = None
    count: int | None = None
    """At most so many actions."""

    @property
    def own_actions(self) -> str:
        """How the actions that replace a recording's are called; empty when there are none."""
        return str(self.npy) if self.npy else "the script" if self.script is not None else ""


@dataclass(frozen=True)
class Inputs:
    """What one rollout starts from, at the model's size."""

    first: np.ndarray
    """(H, W, 3) uint8"""
    actions: np.ndarray
    """(N, A) float64, physical units, as the model's contract means them"""
    truth: np.ndarray | None
    """(N+1, H, W, 3) uint8: the recording itself, when asked for"""


def read_inputs(
    asked: Asked, *, contract: ActionContract, recipe: Recipe, with_truth: bool = False
) -> Inputs:
    """Read a first frame and actions. Raises UserError naming what is wrong with which file."""
    if asked.annotation is not None:
        return _of_recording(asked, asked.annotation, contract, recipe, with_truth)
    name = asked.own_actions
    if asked.first is None:
        raise ConfigError(f"{name}: holds actions only; name the first frame too")
    if with_truth:
        raise ConfigError(f"{name}: holds no recording to compare with; name an annotation")
    rows = given_actions(asked, contract, recipe.call_window)
    return Inputs(fitted(read_picture(asked.first), recipe.window), rows, None)


def given_actions(
    asked: Asked,
    contract: ActionContract,
    window: WindowSettings,
    levels: np.ndarray | None = None,
    *,
    quiet: bool = False,
) -> np.ndarray:
    """The actions (N, A) of a .npy or of a script, as the contract means them.

    levels   (A,) where the script's levels begin: of a recording; None: unknown
    window   of a sampler call
    quiet    what there is to say of them has been said

    Raises UserError.
    """
    if asked.npy:
        rows = read_array(asked.npy, contract)
    else:
        assert asked.script is not None
        rows = read_script(asked.script, contract, levels=levels)
    if not quiet:
        warn_if_scaled(rows, asked.own_actions, contract)
    if not quiet and not asked.npy:
        _tell_start(contract, levels)
    return chained(contract, rows[: asked.count], window)


def _tell_start(contract: ActionContract, levels: np.ndarray | None) -> None:
    """Say where the script found the gripper, which its words may not name."""
    if is_pose(contract):
        begins = "the gripper is open" if levels is None else "the gripper is as in the recording"
    else:
        begins = "all is 0" if levels is None else "all is as in the recording's first action"
    say(f"script: before its first word, {begins}")


def start_of(contract: ActionContract, state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where a script's levels begin in a recording of `state` (T, S) and `action` (T-1, A)."""
    start = np.array(action[0], np.float64)
    if is_pose(contract):
        has_gripper = state.ndim == 2 and state.shape[1] == len(contract.names)
        start[-1] = np.clip(state[0, -1] if has_gripper else start[-1], 0, 1)
    return start


def _of_recording(
    asked: Asked, path: Path, contract: ActionContract, recipe: Recipe, with_truth: bool
) -> Inputs:
    episode, window = read_annotation(path), recipe.window
    if window.stacked:
        raise ConfigError(
            f"{path}: the model sees {len(window.cameras)} cameras one below the other; give it "
            "a first frame of that kind, and actions as .npy"
        )
    video = _video(episode, window.cameras[0], path)
    if with_truth and asked.own_actions:
        raise ConfigError(f"{path}: shows its own actions, not those of {asked.own_actions}")
    try:
        rows = _recorded(episode, contract, recipe, asked)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    truth = _recording(video, window, len(rows)) if with_truth else None
    if asked.first is None:
        picture = decode(video.read(), [0], name=video.name)[0]
    else:
        picture = read_picture(asked.first)
    return Inputs(fitted(picture, window), rows, truth)


def _recorded(
    episode: Episode, contract: ActionContract, recipe: Recipe, asked: Asked
) -> np.ndarray:
    """The actions (N, A) to roll an annotation's first frame out under.

    Raises DataError that does not name the file.
    """
    if asked.own_actions:
        levels = _levels(episode, contract)
        return given_actions(asked, contract, recipe.call_window, levels)
    interval = recipe.window.interval
    count = (len(episode.state) - 1) // interval
    if count < 1:
        raise DataError(f"{len(episode.state)} frames hold no action at interval {interval}")
    count = min(count, asked.count or count)
    if recipe.infer.actions == "recorded" and contract.signal == "state":
        return chained(contract, _command(episode, contract, interval)[:count], recipe.call_window)
    rows = contract.episode_actions(episode)
    return rollout_actions(contract, episode.state, rows, window=recipe.call_window, count=count)


def _levels(episode: Episode, contract: ActionContract) -> np.ndarray | None:
    """`start_of` an annotation, where it has what the contract speaks of."""
    try:
        return start_of(contract, episode.state, contract.episode_actions(episode))
    except DataError:
        return None


def _command(episode: Episode, contract: ActionContract, interval: int) -> np.ndarray:
    """The rows of an annotation's `action`, each the change of a pose. Raises DataError."""
    commanded = replace(contract, signal="command", frame="recorded")
    commanded.check(episode)
    if interval != 1:
        raise DataError(f'interval = {interval}: [infer] actions = "recorded" needs interval = 1')
    return commanded.episode_actions(episode).astype(np.float64)


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
    return fitted(decode(content, wanted, name=video.name), window)
