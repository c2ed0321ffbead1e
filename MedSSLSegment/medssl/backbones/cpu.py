"""Parts of convolutional networks that are computed differently on a CPU, where memory and not arithmetic is scarce.

The result is the same; what differs is how often a map is read and written, and in which order its numbers lie.

Letters: B batch, C channels, S spatial axes, N their number of places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["Dropout", "LeakyInstanceNorm", "channels_last"]

_BYTE_VALUES = 256
_CACHED_NUMBERS = 2**16  # of a map; a few maps of them fit into a core's second cache


def channels_last(x: Tensor) -> Tensor:
    """(B, C, *S) with the channels of one place side by side in memory, which convolutions on a CPU are faster on.

    A single channel lies so already, but convolutions only take notice of its strides.
    """
    B, C, *S = x.shape
    return x.movedim(1, -1).reshape(-1).view(B, *S, C).movedim(-1, 1)


class LeakyInstanceNorm(nn.Module):
    """Instance norm without weights, then a leaky ReLU, in one.

    On a CPU it overwrites its input, which nothing else may need (a convolution does not need what it gave), keeps one
    map for the backward pass, and gives channels last.

    Args:
        slope: of negative values.
        eps: added to the variance.
    """

    def __init__(self, slope: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.slope, self.eps = slope, eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) to the same."""
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or not self.slope > 0.0:
            return F.leaky_relu(F.instance_norm(x, eps=self.eps), self.slope, inplace=True)
        if x._base is not None or not x.is_contiguous(memory_format=_format(x)):
            x = x.clone(memory_format=_format(x))
        result: Tensor = _LeakyInstanceNorm.apply(x, self.slope, self.eps)  # type: ignore[no-untyped-call]
        return result


class Dropout(nn.Dropout):
    """Dropout that draws one random byte for each number: on a CPU ten times faster than drawing fractions.

    The probability is rounded to a multiple of 1 / 256, and what is kept is scaled by exactly what it was rounded to.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) to the same."""
        dropped = round(_BYTE_VALUES * self.p)
        if x.device.type != "cpu" or not self.training or not 0 < dropped < _BYTE_VALUES:
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        factor = torch.empty_like(x)  # in the order of memory of x
        flat = factor.as_strided((x.numel(),), (1,))
        drawn_bytes = words.view(torch.uint8)[: x.numel()]
        for part, drawn in zip(
            torch.split(flat, _CACHED_NUMBERS), torch.split(drawn_bytes, _CACHED_NUMBERS), strict=True
        ):
            torch.ge(drawn, dropped, out=part).mul_(_BYTE_VALUES / (_BYTE_VALUES - dropped))
        return x * factor


class _LeakyInstanceNorm(torch.autograd.Function):
    """In place; from y = f n, with f the slope of y's sign, the normalised n can be had again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, eps: float) -> Tensor:
        rows = _rows(x)
        mean = _sum(rows) / rows.shape[1]
        squares = torch.zeros_like(mean)
        for (part,) in _cached(rows):
            part.sub_(mean)
            squares += _sum(part.square())
        scale = torch.rsqrt(squares / rows.shape[1] + eps)
        for (part,) in _cached(rows):
            F.leaky_relu_(part.mul_(scale), slope)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, scale)
        ctx.slope = slope
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        y, scale = ctx.saved_tensors
        result = torch.empty_like(y)
        rows, given, made = _rows(y), _rows(gradients[0].contiguous(memory_format=_format(y))), _rows(result)
        along, level = torch.zeros_like(scale), torch.zeros_like(scale)
        for part, gradient, inner in _cached(rows, given, made):
            along += _sum(gradient * part)  # g f n = g y
            torch.ops.aten.leaky_relu_backward(gradient, part, ctx.slope, True, grad_input=inner)  # g f
            level += _sum(inner)
        # What changes the mean or the deviation is taken out: scale (g f - mean(g f) - n mean(g f n)).
        along *= -scale / rows.shape[1]
        level *= -scale / rows.shape[1]
        for part, inner in _cached(rows, made):
            other = torch.addcmul(level, F.leaky_relu(part, 1.0 / ctx.slope), along)
            torch.addcmul(other, inner, scale, out=inner)
        return result, None, None


def _rows(x: Tensor) -> Tensor:
    """View (B, C, *S) that lies channels last as (B, N, C)."""
    return x.movedim(1, -1).flatten(1, -2)


def _sum(rows: Tensor) -> Tensor:
    """(B, N, C) to (B, 1, C); a product with ones is faster than a sum over an axis that is not the last."""
    return rows.new_ones(rows.shape[0], 1, rows.shape[1]) @ rows


def _cached(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of maps (B, N, C), cut along N, that stay in the processor's cache while much is done to them."""
    places = max(1, _CACHED_NUMBERS // (rows[0].shape[0] * rows[0].shape[2]))
    return zip(*(torch.split(one, places, dim=1) for one in rows), strict=True)


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if x.ndim == 5 else torch.channels_last
