"""What a step computes, what the device could compute, and what memory the process has held."""

import re

import torch

from cosmos_wds.model.describe import describe
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.meter import own_peak_bytes

PEAKS = {
    "B200": 2250.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "RTX A6000": 154.8,
    "MI300X": 1307.4,
}
"""Part of a GPU's name -> its dense bfloat16 TFLOP/s with float32 sums, as its maker states."""


def peak_flops(name: str) -> float | None:
    """Dense bfloat16 operations per second of a GPU by its name; None when that is unknown.

    A slice of one (MIG) and the slower kinds of the same number are unknown too.
    """
    words = re.split(r"[\s-]+", name)
    found = [part for part in PEAKS if _holds(words, part.split())]
    if not found or {"MIG", "Laptop", "D"} & {*words}:
        return None
    return PEAKS[max(found, key=len)] * 1e12


def _holds(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words)))


def device_peak(device: torch.device) -> float | None:
    """`peak_flops` of the device that a rank trains on; None for a CPU."""
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device))


def window_flops(recipe: Recipe, latent: tuple[int, int, int], action_dims: int) -> int:
    """Operations that training on one window takes: forward, and backward as two forward passes.

    latent   frames, height and width of the window's latent

    Counted on the meta device, as the model is: what checkpointing computes again does not count.
    With LoRA backward is one forward pass; the frozen weights get no gradients.
    """
    frames, height, width = latent
    facts = describe(
        recipe.model, action_dims=action_dims, frames=frames, height=height, width=width
    )
    return facts.cost.flops * (2 if recipe.lora.rank else 3)


def held_bytes(device: torch.device) -> int:
    """The most memory held so far: by torch on a GPU; else by this process (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return own_peak_bytes()
