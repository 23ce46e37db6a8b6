"""A process group of this process alone, for tests that want DTensors and no other process."""

from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


@contextmanager
def mesh_of_one():
    """A mesh of one rank; the group ends with it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()
