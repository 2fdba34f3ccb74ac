"""Several workers that share each step. Imports torch.

Every worker holds the whole adapter and reads its share of the step's rows. Once a step the
gradients are summed over the workers; nothing else is exchanged. So a worker that runs out
of memory in the middle repeats its pass by itself, and no other one notices.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

_JOIN_SECONDS = 600.0


class Ranks:
    """This worker among the others."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size

    @property
    def by_torchrun(self) -> bool:
        """Whether torchrun started the workers, and no parent of ours."""
        return dist.is_torchelastic_launched()

    @property
    def local_rank(self) -> int:
        """This worker among those of its machine: the number of its GPU."""
        if self.by_torchrun:
            return dist.get_node_local_rank()  # pyright: ignore[reportPrivateImportUsage]
        return self.rank

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that logs and saves."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all workers."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def wait(self) -> None:
        """Wait until all workers are here."""
        if self.world_size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the group."""
        if self.world_size > 1:
            dist.destroy_process_group()


def join(device: torch.device, rank: int, world_size: int, meeting_point: Path) -> Ranks:
    """Meet the other workers of this attempt at the file ``meeting_point``.

    Under torchrun, which several machines need, its own environment says where to meet.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=_JOIN_SECONDS)
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend, timeout=patience)
        return Ranks(dist.get_rank(), dist.get_world_size())
    if world_size > 1:
        dist.init_process_group(
            backend,
            init_method=f"file://{meeting_point}",
            rank=rank,
            world_size=world_size,
            timeout=patience,
        )
    return Ranks(rank, world_size)
