"""Convolutional networks on partly masked volumes: what is masked is never read, and no statistic knows of it.

A masked volume goes through the same dense convolutions as a whole one; after each, masked voxels are set to zero
again, which is what a submanifold sparse convolution gives (SparK, section 3.1). The mask is an argument, never a
global: a teacher, a student and recomputation under activation checkpointing cannot mix theirs up.

Letters: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InputError

__all__ = ["Visible", "normalise", "visible_at"]


@dataclass(frozen=True, eq=False)
class Visible:
    """The voxels of one feature map that a network may read."""

    voxels: Tensor
    """(B, 1, *S): 1 where visible, 0 where masked."""
    count: Tensor
    """(B, 1, 1 ...) number of visible voxels of each sample, at least 1; (1, 1, 1 ...) of them all when pooled."""
    pooled: bool = False
    """Statistics are taken over the whole batch, as the official code does, instead of over each sample."""


def visible_at(masked: Tensor, size: Sequence[int], dtype: torch.dtype, *, pooled: bool = False) -> Visible:
    """Say what is visible of a feature map.

    Args:
        masked: (B, *grid) bool, True for each masked patch.
        size: *S of the feature map, a multiple of the grid.
        dtype: of the feature map.
        pooled: see `Visible.pooled`.

    Raises:
        InputError: the grid does not divide the size.
    """
    voxels = (~masked).unsqueeze(1)
    for axis, (cells, length) in enumerate(zip(masked.shape[1:], size, strict=True), start=2):
        if length % cells:
            raise InputError(
                f"A map of {tuple(size)} voxels cannot be cut into {tuple(masked.shape[1:])} patches."
            )
        voxels = voxels.repeat_interleave(length // cells, axis)
    axes = tuple(range(1, voxels.ndim))
    count = voxels.sum((0, *axes) if pooled else axes, dtype=torch.float32).clamp(min=1.0)
    return Visible(voxels.to(dtype), count.reshape(-1, *[1] * (voxels.ndim - 1)), pooled)


def normalise(
    x: Tensor, norm: nn.InstanceNorm3d, visible: Visible | None = None, fill: Tensor | None = None
) -> Tensor:
    """Instance norm whose statistics, in float32, are those of the visible voxels.

    Args:
        x: (B, C, *S); what its masked voxels hold does not matter.
        norm: gives weight, bias and eps.
        visible: None normalises over all voxels.
        fill: (1, C, 1 ...) value of masked voxels; zero when None.

    Returns:
        (B, C, *S).
    """
    shape = (1, -1, *[1] * (x.ndim - 2))
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            x, norm.weight.reshape(shape), norm.bias.reshape(shape), visible, norm.eps
        )
        if visible is not None and fill is not None:
            y = torch.addcmul(y, 1.0 - visible.voxels, fill.to(y.dtype))
        return y


class _Normalise(torch.autograd.Function):
    """x -> visible (weight (x - mean) / sqrt(var + eps) + bias), with one map kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, visible: Visible | None, eps: float
    ) -> Tensor:
        axes = _statistic_axes(x, visible)
        precise = torch.promote_types(x.dtype, torch.float32)
        if visible is None:
            count = torch.tensor(x[0, 0].numel(), dtype=precise, device=x.device)
            scaled = x - x.mean(axes, keepdim=True, dtype=precise)
        else:
            count = visible.count
            mean = (x * visible.voxels).sum(axes, keepdim=True, dtype=precise) / count
            scaled = (x - mean).mul_(visible.voxels)
        deviation = torch.rsqrt((scaled * scaled).sum(axes, keepdim=True) / count + eps)
        scaled *= deviation
        ctx.save_for_backward(scaled, weight, deviation, count)
        ctx.visible = visible
        if visible is None:
            return torch.addcmul(bias, scaled, weight).to(x.dtype)
        return (scaled * weight).addcmul_(visible.voxels, bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        scaled, weight, deviation, count = ctx.saved_tensors
        visible: Visible | None = ctx.visible
        gradient = gradients[0].to(scaled.dtype)
        if scaled.is_contiguous(memory_format=torch.channels_last_3d):
            gradient = gradient.contiguous(
                memory_format=torch.channels_last_3d
            )  # the next convolution's layout
        seen = gradient if visible is None else gradient * visible.voxels
        axes = _statistic_axes(seen, visible)
        along = (gradient * scaled).sum(axes, keepdim=True)
        total = seen.sum(axes, keepdim=True)
        # d/dx of the normalisation: what changes the mean or the deviation is taken out again.
        inner = torch.addcmul(seen - total / count, scaled, along / count, value=-1.0)
        if visible is not None:
            inner *= visible.voxels
        inner *= weight * deviation
        return (
            inner.to(gradients[0].dtype),
            along.sum(0, keepdim=True),
            total.sum(0, keepdim=True),
            None,
            None,
        )


def _statistic_axes(x: Tensor, visible: Visible | None) -> tuple[int, ...]:
    """Axes of (B, C, *S) that one statistic is taken over."""
    spatial = tuple(range(2, x.ndim))
    return (0, *spatial) if visible is not None and visible.pooled else spatial
