"""GPUs that a run may be planned for: what their makers publish, and how long work takes on them.

A100   NVIDIA A100 Tensor Core GPU datasheet (SXM)
H100   NVIDIA H100 Tensor Core GPU datasheet (SXM; half of the figures "with sparsity")
H200   NVIDIA H200 Tensor Core GPU datasheet (SXM; half of the figures "with sparsity")
B200   NVIDIA DGX B200 and HGX B200 datasheets (an eighth of 8 GPUs, half of "with sparsity")
4090   NVIDIA Ada GPU Architecture whitepaper, appendix A (bfloat16 with float32 sums)
L40S   NVIDIA L40S datasheet
"""

from dataclasses import dataclass

import torch

from cosmos_wds.train.rates import peak_flops

SHARE = 0.4
"""Of the peak rate that training is assumed to reach; large transformers reach 0.3 to 0.5 of it."""
LAUNCH = 5e-6
"""Seconds assumed for the CPU to start one of torch's operations: what small networks wait for."""
LINK = 25e9
"""Bytes a second assumed between a GPU and the CPU's memory, each way (PCIe 4.0 x16 less a bit)."""
HOST = 50e9
"""Bytes a second assumed of the CPU's memory, for one GPU's share."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory: float
    """Bytes; decimal GB as it is sold."""
    float32: float
    """Operations a second of dense matrix products at best, in float32 (without TF32, which torch
    leaves off); in bfloat16 as rates.py knows it by the name."""
    bandwidth: float
    """Bytes a second of its memory."""

    def rate(self, precision: torch.dtype) -> float:
        """Operations a second that training is assumed to reach."""
        peak = self.float32 if precision == torch.float32 else peak_flops(self.name)
        assert peak is not None
        return SHARE * peak


GPUS = (
    Gpu("RTX 4090", 24e9, 82.6e12, 1.008e12),
    Gpu("A100 40 GB", 40e9, 19.5e12, 1.555e12),
    Gpu("L40S", 48e9, 91.6e12, 0.864e12),
    Gpu("A100 80 GB", 80e9, 19.5e12, 2.039e12),
    Gpu("H100", 80e9, 67e12, 3.35e12),
    Gpu("H200", 141e9, 67e12, 4.8e12),
    Gpu("B200", 180e9, 75e12, 7.7e12),
)
"""By memory."""
