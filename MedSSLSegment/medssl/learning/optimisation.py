"""What the training loops share: optimiser and precision of a recipe, seeds of a step, order of an epoch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from .recipe import Recipe

__all__ = ["autocast", "epoch_order", "gradient_scaler", "make_optimiser", "seed_step", "set_learning_rate"]

_ORDER, _STEP = 0x0DE2, 0x57E9
"""Keep the streams of random numbers apart that are seeded by (seed, epoch) and by (seed, step)."""


def make_optimiser(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Optimise every parameter that takes a gradient; biases, norms and single numbers without weight decay."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type == "cuda" for p in parameters)
    if recipe.optimiser == "sgd":
        momentum = recipe.betas[0]
        return torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=fused
        )
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=fused)


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this learning rate in the next step."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """Precision of the forward pass; the CPU computes in fp32 whatever the recipe says."""
    if device.type != "cuda" or recipe.precision == "fp32":
        return nullcontext()
    kind = torch.bfloat16 if recipe.precision == "bf16" else torch.float16
    return torch.autocast(device.type, kind)


def gradient_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Keeps fp16 gradients from vanishing; does nothing in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and recipe.precision == "fp16")


def seed_step(seed: int, step: int, rank: int = 0, part: int = 0) -> None:
    """Seed PyTorch's global generators (dropout), so that a resumed run repeats an uninterrupted one."""
    state = np.random.SeedSequence([_STEP, seed, step, rank, part]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Shuffle 0 .. count - 1, differently in every epoch and alike in every run of a seed."""
    order: list[int] = np.random.default_rng([_ORDER, seed, epoch]).permutation(count).tolist()
    return order
