"""What is computed differently on a CPU gives what PyTorch's own layers give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from medssl.backbones import cpu
from medssl.backbones.cpu import Dropout, LeakyInstanceNorm, channels_last
from torch import Tensor, nn
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _after_convolution(layer: Callable[[Tensor], Tensor], x: Tensor, dims: int) -> list[Tensor]:
    """Result, and gradients of input and weights, of a convolution and what follows it."""
    torch.manual_seed(1)
    convolution = (nn.Conv2d if dims == 2 else nn.Conv3d)(3, 4, 3, padding=1).double()
    x = x.clone().requires_grad_()
    y = layer(convolution(x))
    weights = torch.linspace(0.0, 1.0, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    assert x.grad is not None
    assert convolution.weight.grad is not None
    return [y.detach(), x.grad, convolution.weight.grad]


@pytest.mark.parametrize("size", [(6, 8), (4, 6, 8)])
@pytest.mark.parametrize("layout", [channels_last, Tensor.contiguous])
@pytest.mark.parametrize("slope", [0.2, 0.0])
def test_leaky_instance_norm_is_instance_norm_and_leaky_relu(
    size: tuple[int, ...], layout: Callable[[Tensor], Tensor], slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_CACHED_NUMBERS", 64)  # several parts a map
    x = layout(torch.randn(2, 3, *size, dtype=torch.float64))
    expected = _after_convolution(lambda y: F.leaky_relu(F.instance_norm(y), slope), x, len(size))
    for ours, theirs in zip(
        _after_convolution(LeakyInstanceNorm(slope), x, len(size)), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_leaky_instance_norm_of_a_constant_map_is_zero_and_so_is_its_gradient() -> None:
    x = torch.full((1, 2, 4, 4), 7.0, requires_grad=True)
    y = LeakyInstanceNorm(0.2)(x * 1.0)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("layout", [channels_last, Tensor.contiguous])
def test_dropout_keeps_the_mean_and_passes_back_what_it_let_through(
    layout: Callable[[Tensor], Tensor],
) -> None:
    x = layout(torch.ones(2, 5, 61, 67)).requires_grad_()
    y = Dropout(0.25)(x)
    assert y.unique().tolist() == pytest.approx([0.0, 4.0 / 3.0])
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)
    assert not torch.equal(Dropout(0.25)(x), y)


def test_dropout_repeats_with_the_seed_and_does_nothing_in_evaluation() -> None:
    x, layer = torch.rand(1, 3, 9, 9), Dropout(0.25)
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_changes_strides_and_no_value(channels: int) -> None:
    x = torch.randn(2, channels, 4, 6)
    laid_out = channels_last(x)
    assert torch.equal(laid_out, x)
    assert laid_out.stride() == (24 * channels, 1, 6 * channels, channels)
