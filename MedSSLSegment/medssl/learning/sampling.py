"""Which samples a step trains on: a function of the seed and the step alone, whatever the number of workers.

A sample's key is (epoch, index). Its random numbers come from (seed, epoch, index); the order of an epoch's indices
from (seed, epoch). So a resumed run, and one with other loader processes, draws exactly the same batches.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ..datasets.data import UnlabelledVolumes
from ..errors import InputError
from ..methods.base import Method
from .optimisation import epoch_order

__all__ = ["Samples", "StepPlan", "load_parts"]

Key = tuple[int, int]
"""(epoch, index)"""


class Samples(Dataset[dict[str, Tensor]]):
    """Samples of a method by key."""

    def __init__(self, method: Method, volumes: UnlabelledVolumes, seed: int) -> None:
        self.anchors = method.anchors(volumes)
        if not self.anchors:
            raise InputError("There is no slice or block to train on in these volumes.")
        self._method = method
        self._volumes = volumes
        self._seed = seed

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.anchors)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Draw a sample; an index beyond the last anchor starts again with other random numbers."""
        epoch, index = key
        rng = np.random.default_rng([self._seed, epoch, index])
        return self._method.draw(self._volumes, self.anchors[index % len(self.anchors)], rng)


@dataclass(frozen=True)
class StepPlan(Sampler[list[Key]]):
    """Keys of the samples of steps first .. last - 1, part by part, as one of several processes computes them.

    A part's samples are shared out in rows: rank 0 has the first, so joining the processes' samples in the order of
    their ranks gives what one process would compute alone. An epoch's last samples that fill no batch are left out;
    where there are fewer samples than a batch needs, each is drawn several times.

    Raises:
        InputError: the batch cannot be shared out.
    """

    samples: int
    """Of an epoch."""
    batch: int
    """Samples of a step, over all processes and parts."""
    seed: int
    first: int = 0
    last: int = 0
    accumulate: int = 1
    """Parts of a step."""
    rank: int = 0
    world: int = 1
    """Processes."""

    def __post_init__(self) -> None:
        if self.batch % (self.accumulate * self.world):
            raise InputError(
                f"A batch of {self.batch} cannot be shared out equally to {self.world} processes in"
                f" {self.accumulate} parts; change --batch or --accumulate."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, at least 1."""
        return max(1, self.samples // self.batch)

    def __len__(self) -> int:
        """Parts in all."""
        return (self.last - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of each part."""
        order: list[int] = []
        known = -1
        share = self.batch // (self.accumulate * self.world)
        for step in range(self.first, self.last):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != known:
                order, known = self._order(epoch), epoch
            for part in range(self.accumulate):
                start = within * self.batch + (part * self.world + self.rank) * share
                yield [(epoch, index) for index in order[start : start + share]]

    def _order(self, epoch: int) -> list[int]:
        turns = -(-self.batch // self.samples) if self.samples < self.batch else 1
        return [
            index + turn * self.samples
            for turn in range(turns)
            for index in epoch_order(self.samples, self.seed, epoch * turns + turn)
        ]


def load_parts(
    samples: Samples, plan: StepPlan, workers: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Draw the parts of a plan, in order.

    Args:
        samples: drawn in this process, or in `workers` others.
        plan: which samples.
        workers: processes that draw ahead; 0 for none.
        device: batches for a GPU are pinned in memory, so that they travel while it computes.

    Yields:
        Samples stacked by name, (B, ...), on the CPU.
    """
    return iter(
        DataLoader(
            samples,
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=default_collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_the_parent,
        )
    )


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process saves and then ends the workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
