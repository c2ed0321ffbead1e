"""Exponential moving averages of models: teachers and momentum encoders."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

__all__ = ["follow", "frozen_copy"]

_Model = TypeVar("_Model", bound=nn.Module)


def frozen_copy(model: _Model) -> _Model:
    """Copy a model in evaluation mode whose weights take no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move a copy towards the model: average <- decay average + (1 - decay) model.

    All state follows, parameters and floating buffers; whole-number buffers are copied.
    """
    state = model.state_dict()
    for name, kept in average.state_dict().items():
        if kept.dtype.is_floating_point:
            kept.lerp_(state[name].to(kept.dtype), 1.0 - decay)
        else:
            kept.copy_(state[name])
