"""How alike two sets of videos are: Fréchet distances of what a network sees in them.

fvd   each video is one sample: its generated frames through an I3D (Unterthiner et al. 2018)
fid   each generated frame is one sample, through an Inception (Heusel et al. 2017)

The distance is torchmetrics'. The networks are TorchScript: the released ones of StyleGAN-V
(i3d_torchscript.pt) and of StyleGAN3 (inception-2015-12-05.pt) take uint8 pictures, resize them
themselves and are asked for features; any other is given float32 in 0..255 at the model's size.

V videos, F frames of each, D numbers that a network sees, n samples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosmos_wds.console import track
from cosmos_wds.errors import CheckpointError
from cosmos_wds.rollout.networks import load_network

KINDS = ("fvd", "fid")
ASKED = {"rescale": True, "resize": True, "return_features": True}
"""What the released networks are told; `rescale`, `resize` are I3D's."""
VIDEOS, FRAMES = 4, 32
"""Samples that a network sees together."""


class Given(nn.Module):
    """In place of a network: hands on features that are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: np.ndarray, truth: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to samples (n, D) and (m, D), two or more of each."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=Given(truth.shape[1]))
    for samples, is_real in ((truth, True), (features, False)):
        distance.update(torch.from_numpy(np.asarray(samples, np.float64)), real=is_real)
    return float(distance.compute())


def set_scores(
    kind: str,
    weights: str,
    videos: Mapping[str, np.ndarray],
    truth: np.ndarray,
    device: torch.device,
) -> dict[str, float]:
    """Each row's distance from the truth; all are (V, F, H, W, 3) uint8 without given frames.

    Raises UserError when the network is missing, or cannot look at such videos.
    """
    network = load_network(weights, device)
    told = {"truth": truth, **videos}
    found = {
        row: _features(kind, network, video, weights)
        for row, video in track(told.items(), kind.upper(), total=len(told))
    }
    return {row: frechet_distance(found[row], found["truth"]) for row in videos}


@torch.inference_mode()
def _features(kind: str, network: Any, videos: np.ndarray, origin: str) -> np.ndarray:
    """(V, F, H, W, 3) uint8 -> samples (n, D)."""
    asked = {name: ASKED[name] for name in _arguments(network) if name in ASKED}
    device = next(iter([*network.parameters(), *network.buffers()]), torch.empty(0)).device
    if kind == "fvd":
        samples = torch.from_numpy(np.ascontiguousarray(videos)).permute(0, 4, 1, 2, 3)
    else:
        flat = videos.reshape(-1, *videos.shape[-3:])
        samples = torch.from_numpy(np.ascontiguousarray(flat)).permute(0, 3, 1, 2)
    found = []
    for part in samples.split(VIDEOS if kind == "fvd" else FRAMES):
        shown = part.to(device)
        try:
            seen = network(shown if asked and kind == "fid" else shown.float(), **asked)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:160]
            shape = tuple(part.shape[1:])
            raise CheckpointError(
                f"{origin}: does not take {kind.upper()}'s samples of {shape}: {reason}"
            ) from None
        found.append(seen.double().flatten(1).cpu().numpy())
    return np.concatenate(found)


def _arguments(network: Any) -> list[str]:
    """Names of the arguments of a TorchScript network."""
    return [argument.name for argument in network.forward.schema.arguments]
