"""Recipe section of evaluations: on which episodes, under which actions, by which measures.

No torch here.
"""

from collections.abc import Iterator
from typing import Literal

from cosmos_wds.config import Settings, at_least

Wrong = Literal["shuffled", "zero", "negated", "shifted"]
Measure = Literal["psnr", "psnr_grey", "ssim", "latent_l2", "lpips", "fvd", "fid"]
WEIGHED = ("lpips", "fvd", "fid")
"""Measures that are networks of their own: each has a key of its name for its weights."""


class EvalSettings(Settings):
    """Rollouts of episodes that training has not seen, and how close they come."""

    split: str = "val"
    """Of the shards: where the episodes are."""
    list: str = ""
    """A text file with the keys of the episodes, one a line; or the name of a shipped one."""
    episodes: int = 24
    """Without a list: how many, spread evenly over the split; 0: all."""
    actions: int = 16
    """Of a rollout: it has one frame more."""
    wrong: tuple[Wrong, ...] = ("shuffled", "zero", "negated", "shifted")
    """What else than their own actions rollouts are made under (rollout/wrong.py)."""
    measures: tuple[Measure, ...] = ()
    """None: psnr, psnr_grey, latent_l2, and ssim where scikit-image is installed."""
    lpips: str = ""
    """TorchScript files, or hf://OWNER/NAME/FILE: LPIPS; I3D, for FVD; Inception, for FID."""
    fvd: str = ""
    fid: str = ""
    seed: int = 0
    """Of the rollouts' noise."""
    films: int = 6
    """Episodes that are shown as videos."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, episodes=0, actions=1, films=1)
        if self.episodes == 1:
            yield "episodes = 1: two or more, since each is rolled out under another one's actions"
        if not 0 <= self.seed < 2**32:
            yield f"seed = {self.seed}: a whole number from 0 to 4294967295"
        if "shuffled" not in self.wrong:
            yield f"wrong = {[*self.wrong]}: needs shuffled, which the control score compares with"
        for name in WEIGHED:
            if name in self.measures and not getattr(self, name):
                yield f'measures: {name} needs its weights; set {name} = "FILE" in [eval]'
