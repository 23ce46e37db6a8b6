"""Recipe section of rollouts: sampler, conditioning, noise, how it runs. No torch here."""

import re
from collections.abc import Iterator
from typing import Literal

from cosmos_wds.config import Settings, at_least

MODULE_FUNCTION = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+")
WRITTEN_SO = "write it as module:function; the function blur of faces.py is faces:blur"
"""How a guardrail is named, and what is said of one that is not."""
MOST_GUIDANCE = 100.0


class InferSettings(Settings):
    """Rollouts (spec.md section f)."""

    steps: int = 35
    """Sampler steps per call; one more denoiser call ends it."""
    augment_sigma: float = 0.001
    """Noise on the given frame."""
    batch: int = 8
    """Rollouts that run together."""
    weights: Literal["ema", "reg"] = "ema"
    noise: Literal["per_frame", "reference"] = "per_frame"
    """`reference` uses the same noise for every frame of a rollout."""
    frames_per_call: int = 0
    """Frames that a sampler call generates together; 0: as many as in training."""
    recondition: Literal["latent", "pixels"] = "latent"
    """What the next call starts from: the generated latent itself; or its picture, decoded, cut to
    uint8 and encoded again, as the reference does."""
    actions: Literal["contract", "recorded"] = "contract"
    """What a recording is rolled out under: its actions as the contract means them, which may be
    computed from states; or the rows of its `action`, as the reference does (spec.md f.3)."""
    guidance: float = 0.0
    """On actions: how far predictions are moved away from those without actions; 0: not at all."""
    precision: Literal["", "float32", "bfloat16"] = ""
    """Of the network's computations; empty: as in training."""
    compile: bool = False
    """Compile the blocks, one by one."""
    guardrail: str = ""
    """`module:function` that every rollout's frames pass through (diffusion/guardrail.py)."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, steps=1, batch=1, frames_per_call=0)
        if self.guardrail and not MODULE_FUNCTION.fullmatch(self.guardrail):
            yield f"guardrail = {self.guardrail!r}: {WRITTEN_SO}"
        if not 0 <= self.augment_sigma < 0.002:
            yield f"augment_sigma = {self.augment_sigma}: from 0 up to, not including, 0.002"
        if not 0 <= self.guidance <= MOST_GUIDANCE:
            yield f"guidance = {self.guidance}: from 0 to {MOST_GUIDANCE:g}; 0 turns it off"
