"""How close videos come to the truth, frame by frame, in several measures.

psnr        of all three colours together, dB (rollout/metrics.py)
psnr_grey   of grey pictures, dB
ssim        of grey pictures: scikit-image's, a window of 7 x 7 pixels that all count the same
latent_l2   mean square difference of latents: what the network generated, not its pictures encoded
            again, against the encoded recording
lpips       a network's, in TorchScript: (n, 3, H, W) in [-1, 1] twice -> (n, ...)

Data range 255; grey is what Pillow makes of RGB (ITU-R 601-2 luma, rounded). E episodes, N steps
ahead; the given frame, number 0, counts nowhere. C latent channels, h x w latent pixels.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import torch
from torch import Tensor

from cosmos_wds.errors import CheckpointError
from cosmos_wds.recipe_eval import EvalSettings
from cosmos_wds.rollout.metrics import psnr
from cosmos_wds.rollout.networks import load_network
from cosmos_wds.train.extras import require

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Frames (E, N, H, W, 3) uint8 and the true ones -> (E, N) float64."""
LUMA = (19595, 38470, 7471)
"""Pillow's weights of red, green and blue, in 65536ths."""
BATCH = 16
"""Frames that a network looks at together."""


def wanted_measures(settings: EvalSettings) -> tuple[str, ...]:
    """What [eval] asks for; without `measures`, all that needs no weights and is installed.

    Raises ConfigError when a library that is needed is missing.
    """
    if not settings.measures:
        found = ("psnr", "psnr_grey", "ssim", "latent_l2")
        return tuple(name for name in found if name != "ssim" or has_skimage())
    if "ssim" in settings.measures:
        require("scikit-image", "[eval] measures: ssim", extra="eval")
    for name in ("fvd", "fid"):
        if name in settings.measures:
            require("torchmetrics", f"[eval] measures: {name}", extra="eval")
    return tuple(dict.fromkeys(settings.measures))


def has_skimage() -> bool:
    """Whether scikit-image is installed."""
    try:
        distribution("scikit-image")
    except PackageNotFoundError:
        return False
    return True


def frame_measures(
    names: Sequence[str], settings: EvalSettings, device: torch.device
) -> dict[str, Measure]:
    """Those of the names that compare frames with frames. Raises UserError for missing weights."""
    made: dict[str, Measure] = {"psnr": psnr, "psnr_grey": psnr_grey, "ssim": ssim}
    if "lpips" in names:
        made["lpips"] = lpips(settings.lpips, device)
    return {name: made[name] for name in names if name in made}


def grey(frames: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) uint8, to the level as Pillow's convert("L")."""
    total = frames.astype(np.uint32) @ np.array(LUMA, np.uint32)
    return ((total + 0x8000) >> 16).astype(np.uint8)


def psnr_grey(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`psnr` of grey pictures."""
    return psnr(*(grey(video)[..., None] for video in (frames, truth)))


def ssim(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) of grey pictures, by scikit-image."""
    from skimage.metrics import structural_similarity

    pairs = (grey(video).reshape(-1, *video.shape[-3:-1]) for video in (frames, truth))
    values = [structural_similarity(a, b, data_range=255) for a, b in zip(*pairs, strict=True)]
    return np.array(values, np.float64).reshape(frames.shape[:-3])


def latent_l2(latents: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean square difference of latents (E, N, C, h, w) -> (E, N)."""
    return np.square(latents - truth).mean(axis=(-3, -2, -1), dtype=np.float64)


def lpips(weights: str, device: torch.device) -> Measure:
    """LPIPS (Zhang et al. 2018) by a network of the user's. Raises UserError when it cannot be had.

    Made once where the package lpips runs, with a and b (1, 3, H, W) in [-1, 1]:
    torch.jit.trace(lpips.LPIPS(net="alex").eval(), (a, b)).save(FILE)
    """
    network = load_network(weights, device)

    @torch.inference_mode()
    def measure(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
        values = []
        flat = (video.reshape(-1, *video.shape[-3:]) for video in (frames, truth))
        for pair in zip(*(_batches(video) for video in flat), strict=True):
            a, b = (batch.to(device).float() / 127.5 - 1 for batch in pair)
            try:
                found = network(a, b).double().reshape(len(a), -1).mean(1)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1][:160]
                raise CheckpointError(
                    f"{weights}: not a network of two pictures (n, 3, H, W): {reason}"
                ) from None
            values.append(found.cpu().numpy())
        return np.concatenate(values).reshape(frames.shape[:-3])

    return measure


def _batches(frames: np.ndarray) -> list[Tensor]:
    """Frames (n, H, W, 3) -> tensors (b, 3, H, W) uint8."""
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    return list(video.split(BATCH))
