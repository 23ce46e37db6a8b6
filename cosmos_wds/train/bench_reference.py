"""A loader written as the reference's is (spec.md a), to measure ours against.

Map-style over a folder in the Bridge layout: all annotations are parsed at the start, in 32
threads; each sample reads its JSON again, opens its video with decord, seeks its frames, resizes
each in float and truncates; torch's DataLoader shuffles and collates in the training process, which
is the only way in which the reference's first version runs.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from cosmos_wds.data.actions import relative_actions
from cosmos_wds.data.video import decode
from cosmos_wds.errors import DataError
from cosmos_wds.recipe import WindowSettings

SCALE = np.array([20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 1.0])


class ReferenceSet(Dataset[dict[str, Any]]):
    """Windows of all annotations of a split; a sample is the reference's dictionary."""

    def __init__(self, root: Path, split: str, window: WindowSettings) -> None:
        """Raises DataError when the folder holds no annotations."""
        self.root, self.window = root, window
        paths = [str(path) for path in (root / "annotation" / split).glob("*.json")]
        if not paths:
            raise DataError(
                f"{root}: no annotation/{split}/*.json; --recordings names the folder of the "
                "recordings, in the Bridge layout, that the shards were made of"
            )
        with ThreadPoolExecutor(32) as threads:
            found = list(threads.map(self._windows, paths))
        self.samples = sorted(sample for windows in found for sample in windows)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        path, first = self.samples[number]
        window = self.window
        label = json.loads(Path(path).read_bytes())
        frames = [first + i * window.interval for i in range(window.frames)]
        return {
            "action": torch.from_numpy(_actions(label, frames)),
            "video": self._video(label, frames),
            "annotation_file": path,
            "__key__": path,
            "t5_text_embeddings": torch.zeros(512, 1024, dtype=torch.bfloat16),
            "t5_text_mask": torch.ones(512, dtype=torch.int64),
            "fps": 4,
            "image_size": torch.full((4,), 256.0),
            "num_frames": window.frames,
            "padding_mask": torch.zeros(1, 256, 256),
        }

    def _windows(self, path: str) -> list[tuple[str, int]]:
        length = len(json.loads(Path(path).read_bytes())["state"])
        span = (self.window.frames - 1) * self.window.interval
        return [(path, first) for first in range(length - span)]

    def _video(self, label: dict[str, Any], frames: list[int]) -> Tensor:
        """(3, T, H, W) uint8."""
        path = self.root / label["videos"][self.window.cameras[0]]["video_path"]
        pictures = torch.from_numpy(decode(path, frames)).permute(0, 3, 1, 2)
        size = (self.window.height, self.window.width)
        return torch.stack([_resized(picture, size) for picture in pictures], dim=1)


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, height, width) uint8, which truncates."""
    x = (picture.float() / 255)[None]
    y = interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)[0]
    return (y * 255).clamp(0, 255).to(torch.uint8)


def _actions(label: dict[str, Any], frames: list[int]) -> np.ndarray:
    """(T-1, 7) float32."""
    pose = np.array(label["state"])[frames, :6]
    gripper = np.array(label["continuous_gripper_state"])[frames, None]
    return (relative_actions(np.concatenate([pose, gripper], axis=1)) * SCALE).astype(np.float32)


def reference_loader(
    root: Path, split: str, window: WindowSettings, batch: int
) -> DataLoader[dict[str, Any]]:
    """The reference's loader: random order, no workers."""
    return DataLoader(
        ReferenceSet(root, split, window),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(0),
    )
