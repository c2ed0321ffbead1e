"""U-Nets for slices: the narrow one of PolyCL and the classic one of AMLP.

Letters: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Backbone, BackboneSpec, Decoder, Encoder
from .cpu import Dropout, LeakyInstanceNorm, channels_last

__all__ = ["POLYCL", "SPECS", "Style", "UNetDecoder", "UNetEncoder", "double_conv", "norm"]


@dataclass(frozen=True, kw_only=True)
class Style:
    """What the two convolutions of a stage are made of, and how the decoder doubles its resolution."""

    norm: Literal["instance", "batch"] = "instance"
    """Instance norm without weights or running statistics, or batch norm."""
    slope: float = 0.2
    """Of the leaky ReLU for negative values; 0 makes it a ReLU."""
    dropout: float = 0.0
    """Probability that a number behind a stage is set to 0 while training."""
    up: Literal["bilinear", "transposed"] = "bilinear"
    """Interpolation, which has no weights, or 2 x 2 transposed convolutions that halve the channels."""


POLYCL = Style(dropout=0.25)
AMLP = Style(norm="batch", slope=0.0, up="transposed")


def norm(width: int, style: Style) -> nn.Module:
    """The style's norm over `width` channels."""
    return nn.BatchNorm2d(width) if style.norm == "batch" else nn.InstanceNorm2d(width)


def double_conv(in_channels: int, width: int, style: Style) -> nn.Sequential:
    """Twice (3 x 3 convolution, norm, leaky ReLU); (B, in_channels, H, W) to (B, width, H, W)."""
    layers: list[nn.Module] = []
    for channels in (in_channels, width):
        bias = style.norm != "batch"  # batch norm has one of its own
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
        if style.norm == "instance":
            layers += [LeakyInstanceNorm(style.slope), nn.Identity()]  # weights are named by their place
        else:
            layers += [norm(width, style), nn.LeakyReLU(style.slope, inplace=True)]
    if style.dropout:
        layers.append(Dropout(style.dropout))
    return nn.Sequential(*layers)


class UNetEncoder(Encoder):
    """Stages of two convolutions with 2 x 2 max pooling between them."""

    spatial_dims = 2

    def __init__(self, in_channels: int, widths: Sequence[int], style: Style) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.widths = tuple(widths)
        self.strides = tuple(2**n for n in range(len(widths)))
        self.divisor = self.strides[-1]
        self.stem = ("stages.0.0.weight",)
        self.stages = nn.ModuleList(double_conv(a, b, style) for a, b in pairwise((in_channels, *widths)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to (B, widths[n], H / 2**n, W / 2**n), finest first."""
        if x.device.type == "cpu":
            x = channels_last(x)
        maps = [self.stages[0](x)]
        for stage in self.stages[1:]:
            maps.append(stage(F.max_pool2d(maps[-1], 2)))
        return maps


class UNetDecoder(Decoder):
    """Doubles the resolution, joins the encoder's map of that resolution, and convolves twice.

    Args:
        widths: channels of the encoder's maps, finest first.
        targets: channels after each doubling, coarsest first; a level finer than all maps joins nothing.
        style: norm, activation and way of doubling.
    """

    def __init__(self, widths: Sequence[int], targets: Sequence[int], style: Style) -> None:
        super().__init__()
        deepest, *skips = reversed(widths)
        skips += [0] * (len(targets) - len(skips))
        self.width = targets[-1]
        self.ups = nn.ModuleList()
        self.stages = nn.ModuleList()
        for (coarse, target), skip in zip(pairwise((deepest, *targets)), skips, strict=True):
            transposed = style.up == "transposed"
            self.ups.append(
                nn.ConvTranspose2d(coarse, target, 2, stride=2)
                if transposed
                else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            )
            self.stages.append(double_conv((target if transposed else coarse) + skip, target, style))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, finest first, to (B, width, H, W)."""
        x, *skips = reversed(features)
        for up, stage, skip in zip_longest(self.ups, self.stages, skips):
            x = up(x)
            x = stage(x if skip is None else torch.cat([x, skip], dim=1))
        return x


def _unet(in_channels: int, first: int, style: Style) -> Backbone:
    """U-Net of five levels, whose channels double from `first`."""
    widths = [first * 2**n for n in range(5)]
    return Backbone(UNetEncoder(in_channels, widths, style), UNetDecoder(widths, widths[-2::-1], style))


_POLYCL_PAPER = "PolyCL: five levels, instance norm, leaky ReLU 0.2, dropout 0.25, bilinear upsampling"
_AMLP_PAPER = "AMLP, section 4.1: five levels, two 3 x 3 convolutions, 2 x 2 max pooling, 2 x 2 transposed"

SPECS = {
    "unet2d_16": BackboneSpec(
        title="U-Net, 16 to 256 channels (2 M weights): light and quick, PolyCL's own",
        spatial_dims=2,
        build=lambda in_channels: _unet(in_channels, 16, POLYCL),
        source=_POLYCL_PAPER,
    ),
    "unet2d_4": BackboneSpec(
        title="U-Net, 4 to 64 channels (0.1 M weights): PolyCL's, for a quick trial on the CPU",
        spatial_dims=2,
        build=lambda in_channels: _unet(in_channels, 4, POLYCL),
        source=_POLYCL_PAPER,
        small=True,
    ),
    "unet2d_64": BackboneSpec(
        title="U-Net, 64 to 1024 channels (31 M weights): the classic one, AMLP's own",
        spatial_dims=2,
        build=lambda in_channels: _unet(in_channels, 64, AMLP),
        source=_AMLP_PAPER,
    ),
    "unet2d_64_small": BackboneSpec(
        title="U-Net, 4 to 64 channels (0.1 M weights): AMLP's, for a quick trial on the CPU",
        spatial_dims=2,
        build=lambda in_channels: _unet(in_channels, 4, AMLP),
        source=_AMLP_PAPER,
        small=True,
    ),
}
