"""How weights are optimised: optimiser, schedule, batch; said once for pre-training and fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

__all__ = ["Recipe", "require_seed"]

_SEEDS = 1 << 31


def require_seed(seed: int) -> None:
    """Refuse a seed that not every generator of random numbers takes.

    Raises:
        InputError: it does not lie in 0 .. 2^31 - 1.
    """
    if not 0 <= seed < _SEEDS:
        raise InputError(f"The seed lies in 0 .. {_SEEDS - 1}, not {seed}.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser and learning-rate schedule. Times are in epochs and may be fractions.

    Raises:
        InputError: a number is out of its range.
    """

    epochs: float = 100.0
    """Passes over the data."""
    batch: int = 20
    """Samples a step, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Parts a batch is computed in, to save memory; the gradient is the mean over the parts."""
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"
    """Adam, AdamW, or SGD with Nesterov momentum betas[0]."""
    learning_rate: float = 1e-4
    """Peak."""
    weight_decay: float = 0.0
    """Not applied to biases, norms and single numbers."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    schedule: Literal["constant", "cosine", "cosine-restarts", "step-decay"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_epochs: float = 0.0
    """Linear rise from 1 % of the peak."""
    restart_epochs: float = 10.0
    """Period of cosine-restarts."""
    decay: float = 0.96
    """Factor per epoch of step-decay."""
    clip_norm: float | None = None
    """Largest gradient norm; None for no limit."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; losses stay in fp32. Ignored on the CPU."""

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.batch >= 1 and self.accumulate >= 1 and self.learning_rate > 0):
            raise InputError("Epochs, batch, accumulate and the learning rate must be above 0.")
        if self.batch % self.accumulate:
            raise InputError(f"A batch of {self.batch} cannot be computed in {self.accumulate} equal parts.")
        if self.warmup_epochs < 0 or self.restart_epochs <= 0 or self.weight_decay < 0:
            raise InputError("The warm-up and weight decay must be 0 or more, the restart period above 0.")

    def learning_rate_at(self, epoch: float) -> float:
        """Learning rate at a point in time, 0 <= epoch <= epochs; a pure function, so a resumed run agrees."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * max(0.01, epoch / self.warmup_epochs)
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "step-decay":
            return self.learning_rate * self.decay ** int(epoch)
        if self.schedule == "cosine-restarts":
            turn = (epoch - self.warmup_epochs) % self.restart_epochs / self.restart_epochs
        else:
            turn = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(turn, 1.0)))
