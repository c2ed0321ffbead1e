"""TransUNet: a ResNet whose deepest map is the input of a vision transformer, and a U-Net decoder.

Letters: B batch, C channels, H W rows and columns of pixels, h w of the grid of tokens, D width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .base import Backbone, BackboneSpec, Decoder, Encoder
from .unet2d import Style, UNetDecoder
from .vit import to_grid, to_tokens, transformer_blocks

__all__ = ["SPECS", "TransUNetDecoder", "TransUNetEncoder"]

_STYLE = Style(norm="batch", slope=0.0)


@dataclass(frozen=True, kw_only=True)
class _Size:
    stem: int
    """Channels of the first convolution."""
    layers: tuple[int, int, int]
    """Bottleneck blocks at 1/4, 1/8 and 1/16 of the resolution."""
    channels: tuple[int, int, int]
    """After each of them; multiples of 4 x groups."""
    groups: int
    """Of the group norm."""
    width: int
    """Of a token; a multiple of 4."""
    depth: int
    """Transformer blocks."""
    heads: int
    """Of the attention."""
    decoder: tuple[int, int, int, int, int]
    """Channels after the tokens' convolution and after each doubling."""


class TransUNetEncoder(Encoder):
    """ResNet-v2 with group norm and standardised convolutions, then a transformer over its deepest map.

    Positions are fixed sines and cosines, so that any grid will do, where the original learns those of one grid.
    """

    spatial_dims = 2
    fixed_size = True

    def __init__(self, in_channels: int, size: _Size) -> None:
        super().__init__()
        blocks = transformer_blocks(size.width, size.depth, size.heads)
        from timm.layers.norm_act import GroupNormAct
        from timm.layers.std_conv import StdConv2dSame
        from timm.models.resnetv2 import ResNetV2

        self.in_channels = in_channels
        self.widths = (size.stem, *size.channels[:2], size.width)
        self.strides = (2, 4, 8, 16)
        self.divisor = 16
        self.stem = ("resnet.stem.conv.weight",)
        self.resnet = ResNetV2(
            layers=list(size.layers),
            channels=size.channels,
            num_classes=0,
            in_chans=in_channels,
            global_pool="",
            stem_chs=size.stem,
            stem_type="same",
            preact=False,
            norm_layer=partial(GroupNormAct, num_groups=size.groups),
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
        self.embed = nn.Conv2d(size.channels[-1], size.width, 1)
        self.blocks = blocks
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to three maps of the ResNet and the tokens' (B, D, H / 16, W / 16)."""
        resnet: Any = self.resnet
        maps = [resnet.stem.norm(resnet.stem.conv(x))]
        x = resnet.stem.pool(maps[0])
        for stage in resnet.stages:
            x = stage(x)
            maps.append(x)
        maps[-1] = self._attend(self.embed(maps[-1]))
        return maps

    def _attend(self, grid: Tensor) -> Tensor:
        """(B, D, h, w) through the transformer."""
        tokens = to_tokens(grid)
        for block in self.blocks:
            tokens = block(tokens)
        return to_grid(self.norm(tokens), grid.shape[-1])


class TransUNetDecoder(Decoder):
    """One convolution of the tokens, then a U-Net decoder whose last level joins nothing.

    Args:
        widths: channels of the encoder's maps, finest first.
        targets: channels after the tokens' convolution and after each doubling.
    """

    def __init__(self, widths: Sequence[int], targets: Sequence[int]) -> None:
        super().__init__()
        self.width = targets[-1]
        self.narrow = nn.Sequential(
            nn.Conv2d(widths[-1], targets[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(targets[0]),
            nn.ReLU(inplace=True),
        )
        self.unet = UNetDecoder((*widths[:-1], targets[0]), targets[1:], _STYLE)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, finest first, to (B, width, H, W)."""
        result: Tensor = self.unet([*features[:-1], self.narrow(features[-1])])
        return result


def _transunet(in_channels: int, size: _Size) -> Backbone:
    encoder = TransUNetEncoder(in_channels, size)
    return Backbone(encoder, TransUNetDecoder(encoder.widths, size.decoder))


_R50_B16 = _Size(
    stem=64,
    layers=(3, 4, 9),
    channels=(256, 512, 1024),
    groups=32,
    width=768,
    depth=12,
    heads=12,
    decoder=(512, 256, 128, 64, 16),
)
_SMALL = _Size(
    stem=8,
    layers=(1, 1, 1),
    channels=(32, 64, 96),
    groups=4,
    width=96,
    depth=2,
    heads=3,
    decoder=(64, 48, 32, 16, 8),
)

SPECS = {
    "transunet_r50_b16": BackboneSpec(
        title="TransUNet, R50 and ViT-B/16 (105 M weights): PolyCL's largest network",
        spatial_dims=2,
        build=lambda in_channels: _transunet(in_channels, _R50_B16),
        source="TransUNet (arXiv 2102.04306); ResNet-v2 and transformer blocks of timm",
    ),
    "transunet_small": BackboneSpec(
        title="TransUNet in small (0.4 M weights): for a quick trial on the CPU",
        spatial_dims=2,
        build=lambda in_channels: _transunet(in_channels, _SMALL),
        source="TransUNet, narrow and shallow",
        small=True,
    ),
}
