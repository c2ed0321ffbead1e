"""Several processes, one batch: what a loss over all samples of a step needs (torchrun starts the processes).

With one process everything here is the identity. Every process must hold equally many samples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["JointBatchNorm1d", "gather", "own_rows", "rank", "world_size"]


def rank() -> int:
    """Number of this process, 0 .. world_size() - 1."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _running() else 1


def gather(rows: Tensor) -> Tensor:
    """Join the rows of all processes, in the order of their ranks; gradients flow back to every process.

    The gradient that a process gets for its rows is the sum over the losses of all processes. Averaging the weights'
    gradients over the processes, as DistributedDataParallel does, then gives the gradient of the mean loss.

    Args:
        rows: (B, ...), of one shape in all processes.

    Returns:
        (world_size() * B, ...).
    """
    if world_size() == 1:
        return rows
    joined: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return joined


def own_rows(joined: Tensor) -> Tensor:
    """This process's part, (B, ...), of what `gather` gave."""
    count = len(joined) // world_size()
    return joined[rank() * count : (rank() + 1) * count]


class JointBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation of (B, C) over the samples of all processes; on the CPU too, unlike SyncBatchNorm."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C) to (B, C)."""
        if not self.training:
            return super().forward(input)
        return own_rows(super().forward(gather(input)))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return own_rows(total)


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
