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

SHARE, SHARE_COMPILED = 0.31, 0.55
"""Of the peak rate that a forward and backward pass reaches, as torch runs operations one by one
and with compiled blocks. From steps of the 7B on an H100 (recipes/bridge_1gpu.toml); matrix
products alone reach 0.78."""
CAST = 40
"""Bytes read and written for a parameter in a micro-batch, besides that: bfloat16 copies of float32
weights, made twice, and gradients turned back and added up. Measured there too: 74 ms."""
LAUNCH, LAUNCH_SELECTIVE, LAUNCH_COMPILED = 30e-6, 60e-6, 10e-6
"""Seconds for the CPU to start one of torch's operations: what small networks and batches wait for.
The first two were measured there, in a virtual machine; selective checkpointing looks at each
operation in Python. The last, for each operation that was there before compilation, is assumed."""
LINK = 25e9
"""Bytes a second assumed between a GPU and the CPU's memory, each way (PCIe 4.0 x16 less a bit)."""
HOST = 50e9
"""Bytes a second assumed of the CPU's memory, for one GPU's share."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory: float
    """Bytes: the total that nvidia-smi reports, or CUDA of the H100; of the B200, as it is sold."""
    float32: float
    """Operations a second of dense matrix products at best, in float32 (without TF32, which torch
    leaves off); in bfloat16 as rates.py knows it by the name."""
    bandwidth: float
    """Bytes a second of its memory."""

    def rate(self, precision: torch.dtype, *, compiled: bool) -> float:
        """Operations a second that training is assumed to reach."""
        peak = self.float32 if precision == torch.float32 else peak_flops(self.name)
        assert peak is not None
        return (SHARE_COMPILED if compiled else SHARE) * peak


def launch_seconds(checkpointing: str, *, compiled: bool) -> float:
    """Seconds for the CPU to start one of torch's operations."""
    if compiled:
        return LAUNCH_COMPILED
    return LAUNCH_SELECTIVE if checkpointing == "selective" else LAUNCH


GPUS = (
    Gpu("RTX 4090", 25.8e9, 82.6e12, 1.008e12),
    Gpu("A100 40 GB", 42.9e9, 19.5e12, 1.555e12),
    Gpu("L40S", 48.3e9, 91.6e12, 0.864e12),
    Gpu("A100 80 GB", 85.9e9, 19.5e12, 2.039e12),
    Gpu("H100", 85.0e9, 67e12, 3.35e12),
    Gpu("H200", 150.8e9, 67e12, 4.8e12),
    Gpu("B200", 180e9, 75e12, 7.7e12),
)
"""By memory."""
