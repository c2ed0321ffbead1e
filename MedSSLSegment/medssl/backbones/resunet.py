"""PolyCL's ResU-Net: a ResNet-18 with a narrow stem, and the U-Net's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Backbone, BackboneSpec, Encoder
from .unet2d import POLYCL, Style, UNetDecoder, norm

__all__ = ["SPECS", "ResNetEncoder", "ResUNetDecoder"]

_WIDTHS = (32, 64, 128, 256, 512)
_PAPER = replace(POLYCL, dropout=0.0)
_CODE = Style(norm="batch", slope=0.0)


class ResidualBlock(nn.Module):
    """ResNet's basic block; (B, in_channels, H, W) to (B, width, H / stride, W / stride)."""

    def __init__(self, in_channels: int, width: int, stride: int, style: Style) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False),
            norm(width, style),
            nn.LeakyReLU(style.slope, inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width, style),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, width, 1, stride=stride, bias=False), norm(width, style)
            )
        self.activation = nn.LeakyReLU(style.slope)

    def forward(self, x: Tensor) -> Tensor:
        """Convolutions plus shortcut."""
        result: Tensor = self.activation(self.convolutions(x) + self.shortcut(x))
        return result


class ResNetEncoder(Encoder):
    """ResNet of two basic blocks a level; 7 x 7 convolution and 3 x 3 max pooling first.

    Args:
        in_channels: of the image.
        widths: channels of the stem and of each level.
        style: norm and activation.
    """

    spatial_dims = 2

    def __init__(self, in_channels: int, widths: Sequence[int], style: Style) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.widths = tuple(widths)
        self.strides = tuple(2 ** (n + 1) for n in range(len(widths)))
        self.divisor = self.strides[-1]
        self.stem = ("first.0.weight",)
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False),
            norm(widths[0], style),
            nn.LeakyReLU(style.slope, inplace=True),
        )
        self.levels = nn.ModuleList()
        for number, (before, width) in enumerate(pairwise(widths)):
            stride = 2 if number else 1  # the pooling has already halved the first level
            self.levels.append(
                nn.Sequential(
                    ResidualBlock(before, width, stride, style), ResidualBlock(width, width, 1, style)
                )
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to (B, widths[n], H / 2**(n+1), W / 2**(n+1)), finest first."""
        maps = [self.first(x)]
        x = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class ResUNetDecoder(UNetDecoder):
    """The U-Net's decoder up to half the resolution; the last doubling is interpolated."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, finest first, to (B, width, H, W)."""
        return F.interpolate(super().forward(features), scale_factor=2, mode="bilinear", align_corners=True)


def _resunet(in_channels: int, widths: Sequence[int], style: Style) -> Backbone:
    return Backbone(ResNetEncoder(in_channels, widths, style), ResUNetDecoder(widths, widths[-2::-1], POLYCL))


SPECS = {
    "resunet18_32": BackboneSpec(
        title="ResU-Net, ResNet-18 and U-Net decoder (14 M weights): PolyCL's stronger network",
        spatial_dims=2,
        build=lambda in_channels: _resunet(in_channels, _WIDTHS, _PAPER),
        source="PolyCL, as in the paper: instance norm and leaky ReLU",
    ),
    "resunet18_32_bn": BackboneSpec(
        title="ResU-Net with batch norm and ReLU in its encoder, as in PolyCL's code",
        spatial_dims=2,
        build=lambda in_channels: _resunet(in_channels, _WIDTHS, _CODE),
        source="PolyCL, as in its code",
    ),
    "resunet18_4": BackboneSpec(
        title="ResU-Net, 4 to 64 channels (0.2 M weights): for a quick trial on the CPU",
        spatial_dims=2,
        build=lambda in_channels: _resunet(in_channels, (4, 8, 16, 32, 64), _PAPER),
        source="PolyCL, an eighth of its width",
        small=True,
    ),
}
