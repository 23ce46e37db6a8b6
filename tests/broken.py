"""A zoo of broken episodes in the Bridge layout, and of odd ones that are nevertheless good."""

import json
import re
import shutil
from pathlib import Path

from cosmos_wds.data.video import write_video
from tests.conftest import moving_frames, tiny_states, write_episode

NAN = float("nan")
FRAMES = 8
STATE = tiny_states(FRAMES).tolist()


def write_broken(root):
    """Write one episode of every kind of damage; returns {annotation: pattern of the reason}."""
    wanted = {}
    for name, (reason, damage) in DAMAGES.items():
        path = write_episode(root, "train", name, frames=FRAMES)
        damage(Path(root), path)
        wanted[f"annotation/train/{name}.json"] = re.compile(reason)
    write_episode(root, "train", "twin1", episode_id="same")
    write_episode(root, "train", "twin2", episode_id="same")
    twin = r"the same episode_id as annotation/train/twin1\.json"
    return {**wanted, "annotation/train/twin2.json": re.compile(twin)}


def write_odd(root):
    """Write good episodes that are unlike the others; returns {annotation: episode id}."""
    odd = {
        "unicode-Größe-手": {"episode_id": "Größe/手"},
        "dots.in.name": {"episode_id": "a.b.c"},
        "with space": {"texts": []},
        "x" * 120: {"episode_id": "long"},
        "six-columns": {"state": [row[:6] for row in STATE]},
        "wide-states": {"state": [row + row for row in STATE]},
        "no-action": {"action": None},
        "narrow-action": {"action": [[0.0] * 6] * 7},
        "original-path": {"episode_id": None, "original_path": "bridge/0/out.npy"},
        "unknown-keys": {"latent_videos": [{"nested": NAN}], "task": {"deep": [1, 2]}},
        "two-cameras": {"cameras": 2},
        "same-in-val": {"episode_id": "shared"},
    }
    made = {}
    for name, changes in odd.items():
        path = write_episode(root, "train", name, frames=FRAMES, **changes)
        table = json.loads(path.read_text())
        made[f"annotation/train/{name}.json"] = table.get("episode_id") or table["original_path"]
    long = write_episode(root, "train", "long-mp4", frames=FRAMES)
    _video(_frames(FRAMES + 1))(Path(root), long)
    made["annotation/train/long-mp4.json"] = json.loads(long.read_text())["episode_id"]
    write_episode(root, "val", "same-in-val", episode_id="shared")
    made["annotation/val/same-in-val.json"] = "shared"
    return made


def _annotation(**changes):
    """Damage by other keys; None removes one."""

    def damage(root, path):
        table = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))

    return damage


def _content(text):
    return lambda root, path: path.write_bytes(text)


def _video(change):
    """Damage by what `change` does to the video's path."""
    return lambda root, path: change(root / f"videos/train/{path.stem}/rgb.mp4")


def _cut(share):
    def change(video):
        video.write_bytes(video.read_bytes()[: int(video.stat().st_size * share)])

    return change


def _frames(count):
    return lambda video: write_video(video, moving_frames(count, 32, 48), fps=5)


def _link_out(video):
    outside = video.parents[4] / "outside.mp4"
    shutil.move(video, outside)
    video.symlink_to(outside)


def _as_folder(video):
    video.unlink()
    video.mkdir()


DAMAGES = {
    "not-json": ("^not JSON", _content(b"{'state'")),
    "cut-json": ("^not JSON", lambda root, path: path.write_bytes(path.read_bytes()[:200])),
    "empty-json": ("^not JSON", _content(b"")),
    "list-json": ("^not an annotation", _content(b"[]")),
    "no-state": ("^state: missing key", _annotation(state=None)),
    "no-gripper": (
        "^continuous_gripper_state: missing",
        _annotation(continuous_gripper_state=None),
    ),
    "no-videos": ("^videos: missing key", _annotation(videos=None)),
    "nan": ("^state: nan in row 1", _annotation(state=[STATE[0], [NAN] * 7, *STATE[2:]])),
    "ragged": ("^state: rows of different", _annotation(state=[STATE[0][:5], *STATE[1:]])),
    "narrow": ("^state: rows of 5", _annotation(state=[row[:5] for row in STATE])),
    "short-gripper": ("7 values for 8 states", _annotation(continuous_gripper_state=[0.0] * 7)),
    "one-frame": (
        "^state: 1 frame",
        _annotation(state=STATE[:1], continuous_gripper_state=[0.0]),
    ),
    "no-mp4": ("no such file", _video(Path.unlink)),
    "folder-mp4": ("no such file", _video(_as_folder)),
    "empty-mp4": (r"rgb\.mp4: empty video", _video(lambda video: video.write_bytes(b""))),
    "text-mp4": (r"rgb\.mp4: does not decode", _video(lambda video: video.write_text("hello"))),
    "cut-mp4": (r"rgb\.mp4: cut off", _video(_cut(0.6))),
    "cut-end-mp4": (r"rgb\.mp4: cut off", _video(_cut(0.99))),
    "short-mp4": (r"rgb\.mp4: 5 frames for 8 states", _video(_frames(5))),
    "link-out": ("is a link out of the data folder", _video(_link_out)),
    "path-out": ("leads out of", _annotation(videos=[{"video_path": "../../outside.mp4"}])),
}
