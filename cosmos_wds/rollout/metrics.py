"""How close generated frames are to the truth. No torch."""

import numpy as np

ROUNDING = 1 / 12
"""Mean square error of rounding to whole levels: below it two frames count as equal (58.9 dB)."""


def psnr(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of uint8 frames (..., H, W, 3) -> (...) float64."""
    error = square_error(frames, truth)
    return 10 * np.log10(255**2 / np.maximum(error, ROUNDING))


def square_error(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean square difference of uint8 frames (..., H, W, 3), in levels -> (...) float64."""
    assert frames.dtype == truth.dtype == np.uint8 and frames.shape[-3:] == truth.shape[-3:]
    difference = frames.astype(np.float32) - truth
    return np.square(difference).mean(axis=(-3, -2, -1), dtype=np.float64)


def shown_steps(steps: int) -> list[int]:
    """Of steps 1 .. `steps`, those that tables name: powers of two, and the last."""
    powers = [2**i for i in range(steps.bit_length()) if 2**i < steps]
    return [*powers, steps]
