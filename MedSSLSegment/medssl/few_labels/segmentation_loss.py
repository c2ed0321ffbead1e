"""Loss of a segmentation network where only some voxels, and only some classes, are known.

Axis letters: B samples, N classes (0 is the background), S the spatial axes, V all voxels of a sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..datasets.data import IGNORE

__all__ = ["LossName", "segmentation_loss"]

LossName = Literal["dice", "dice+ce"]
_SMOOTH = 1.0
"""Keeps the Dice of an absent class defined (PolyCL's own loss adds it too)."""


def segmentation_loss(logits: Tensor, target: Tensor, known: Tensor, name: LossName = "dice+ce") -> Tensor:
    """Dice over the batch, with or without cross-entropy.

    A segment that a case does not have labels for may hide in its background: there, "background" means
    "background or that segment", so neither answer is punished.

    Args:
        logits: (B, N, *S).
        target: (B, *S) uint8 class indices, IGNORE where nobody vouched.
        known: (B, N) bool, the classes the sample's case was annotated for.
        name: "dice" for 1 - Dice, "dice+ce" for that and the cross-entropy.

    Returns:
        A scalar in fp32; 0 with a zero gradient when no voxel is vouched for.
    """
    log_p = _merge_unknown(logits.float().flatten(2), known)  # (B, N, V)
    labels = target.flatten(1).long()  # (B, V)
    vouched = labels != IGNORE
    labels = labels.where(vouched, 0)
    truth = torch.zeros_like(log_p).scatter_(1, labels[:, None], 1.0)
    weight = (vouched[:, None] & known[..., None]).to(log_p.dtype)  # (B, N, V)
    loss = _dice_loss(log_p.exp() * weight, truth * weight, weight)
    if name == "dice+ce":
        picked = log_p.gather(1, labels[:, None])[:, 0]
        loss = loss - torch.where(vouched, picked, 0.0).sum() / vouched.sum().clamp(min=1)
    return loss


def _merge_unknown(logits: Tensor, known: Tensor) -> Tensor:
    """(B, N, V) log-probabilities; those of unknown classes join the background's and become 0 themselves.

    A value of 0 (probability 1) at an unknown class keeps it out of the logarithm; its weight is 0.
    """
    log_p = logits.log_softmax(1)
    if bool(known.all()):
        return log_p
    hidden = ~known[..., None]
    joins = hidden.clone()
    joins[:, 0] = True
    background = log_p.masked_fill(~joins, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([background, log_p[:, 1:].masked_fill(hidden[:, 1:], 0.0)], dim=1)


def _dice_loss(found: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """1 - mean Dice of the segments that any sample of the batch was annotated for."""
    overlap = (found * true).sum((0, 2))[1:]
    size = (found.sum((0, 2)) + true.sum((0, 2)))[1:]
    taught = (weight.sum((0, 2)) > 0)[1:].to(found.dtype)
    dice = (2.0 * overlap + _SMOOTH) / (size + _SMOOTH)
    return ((1.0 - dice) * taught).sum() / taught.sum().clamp(min=1.0)
