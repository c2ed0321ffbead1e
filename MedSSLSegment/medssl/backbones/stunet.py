"""STU-Net, a scalable 3D U-Net of residual blocks (Huang et al., 2023, arXiv:2304.06716), dense or on masked volumes.

The encoder is one code path: `encoder(x)` reads the whole volume, `encoder(x, masked=...)` only what is visible, with
the same weights (AnatoMask, section 3.2; SparK). Six stages; the last keeps the resolution of the fifth, so that every
side need only be a multiple of 16, as in AnatoMask's blocks of 112 x 112 x 128 voxels.

Letters: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Backbone, BackboneSpec, Decoder, Encoder
from .cpu import channels_last
from .sparse import Visible, normalise, visible_at

__all__ = ["PATCH", "SPECS", "STUNetDecoder", "STUNetEncoder", "stunet"]

PATCH = 16
"""Voxels along each side of what can be masked: one voxel of the deepest maps."""

_STRIDES = (1, 2, 2, 2, 2, 1)
_SLOPE = 0.01


class ResidualBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm; the input is added before the last ReLU (leaky ones)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride, 1)
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, 1, 1)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1, stride) if project else nn.Identity()

    def forward(self, x: Tensor, visible: Visible | None = None) -> Tensor:
        """(B, C, *S) to (B, out_channels, *S / stride); masked voxels of both are zero."""
        y = F.leaky_relu_(normalise(self.conv1(x), self.norm1, visible), _SLOPE)
        y = normalise(self.conv2(y), self.norm2, visible)
        beside = self.shortcut(x)
        if visible is not None and beside is not x:  # a projection's bias reaches masked voxels too
            beside = beside * visible.voxels.to(beside.dtype)
        return F.leaky_relu_(y + beside, _SLOPE)


class Stage(nn.Module):
    """Residual blocks of which the first changes width and resolution."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, stride: int = 1) -> None:
        super().__init__()
        first = ResidualBlock(in_channels, out_channels, stride, project=True)
        self.blocks = nn.ModuleList(
            [first, *(ResidualBlock(out_channels, out_channels) for _ in range(depth - 1))]
        )

    def forward(self, x: Tensor, visible: Visible | None = None) -> Tensor:
        """(B, C, *S) to (B, out_channels, *S / stride)."""
        for block in self.blocks:
            x = block(x, visible)
        return x


class STUNetEncoder(Encoder):
    """STU-Net's context path.

    Args:
        in_channels: of the input.
        widths: channels of the six stages.
        depth: residual blocks in each stage.
    """

    spatial_dims = 3
    strides = (1, 2, 4, 8, 16, 16)
    divisor = PATCH
    stem = ("stages.0.blocks.0.conv1.weight", "stages.0.blocks.0.shortcut.weight")

    def __init__(self, in_channels: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.widths = tuple(widths)
        inputs = (in_channels, *widths[:-1])
        self.stages = nn.ModuleList(
            Stage(wide_in, wide_out, depth, stride)
            for wide_in, wide_out, stride in zip(inputs, widths, _STRIDES, strict=True)
        )

    def forward(
        self,
        x: Tensor,
        masked: Tensor | None = None,
        *,
        stages: int | None = None,
        pooled_statistics: bool = False,
    ) -> list[Tensor]:
        """Feature maps, finest first.

        Args:
            x: (B, in_channels, *S), each side a multiple of 16.
            masked: (B, *S / 16) bool, True for each patch of 16 x 16 x 16 voxels that must not be read. Masked voxels
                of every map are exactly zero. None reads everything.
            stages: how many to run; None for all six.
            pooled_statistics: with a mask, norms see the visible voxels of the whole batch instead of each sample's.

        Returns:
            One (B, widths[n], *S / strides[n]) per stage.
        """
        sights: dict[int, Visible] = {}
        if masked is not None:
            sights = {
                stride: visible_at(
                    masked, [side // stride for side in x.shape[2:]], x.dtype, pooled=pooled_statistics
                )
                for stride in self.strides[:stages]
            }
            x = x.masked_fill(sights[1].voxels == 0, 0.0)  # unlike a product, it stops infinity and NaN
        x = _laid_out(x)
        maps: list[Tensor] = []
        for stage, stride in zip(self.stages[:stages], self.strides, strict=False):
            x = stage(x, sights.get(stride))
            maps.append(x)
        return maps


def _laid_out(x: Tensor) -> Tensor:
    """Put channels last where convolutions are faster so: on the CPU (three times, backward) and in half precision."""
    if x.device.type == "cpu" or torch.is_autocast_enabled(x.device.type):
        return channels_last(x)
    return x


class STUNetDecoder(Decoder):
    """STU-Net's way up: nearest-neighbour scaling and a 1 x 1 x 1 convolution, then residual blocks on both maps.

    Args:
        widths: channels of the encoder's stages.
        depth: residual blocks in each stage.
    """

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.width = widths[0]
        deep_to_fine = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.upward = nn.ModuleList(nn.Conv3d(deep, fine, 1) for deep, fine in deep_to_fine)
        self.stages = nn.ModuleList(Stage(2 * fine, fine, depth) for _, fine in deep_to_fine)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's six maps, finest first, to (B, width, *S)."""
        x = features[-1]
        for upward, stage, beside in zip(self.upward, self.stages, features[-2::-1], strict=True):
            # The 1 x 1 x 1 convolution commutes with copying voxels, and costs an eighth before it.
            x = F.interpolate(upward(x), size=beside.shape[2:], mode="nearest")
            x = stage(torch.cat([x, beside], dim=1))
        return x


def stunet(in_channels: int, *, widths: Sequence[int], depth: int) -> Backbone:
    """Build an STU-Net without its output layer; the weights are random."""
    return Backbone(STUNetEncoder(in_channels, widths, depth), STUNetDecoder(widths, depth))


_SOURCE = "Huang et al., STU-Net, 2023, arXiv:2304.06716"

SPECS: dict[str, BackboneSpec] = {
    "stunet_tiny": BackboneSpec(
        title="STU-Net of half the S width, 3.6 M: 3D on two CPU cores",
        spatial_dims=3,
        build=partial(stunet, widths=(8, 16, 32, 64, 128, 128), depth=1),
        source=_SOURCE,
        small=True,
    ),
    "stunet_s": BackboneSpec(
        title="STU-Net-S, 14.6 M: 3D on a small GPU",
        spatial_dims=3,
        build=partial(stunet, widths=(16, 32, 64, 128, 256, 256), depth=1),
        source=_SOURCE,
    ),
    "stunet_b": BackboneSpec(
        title="STU-Net-B, 58.3 M: 3D on one 24 GB GPU; AnatoMask's ablations",
        spatial_dims=3,
        build=partial(stunet, widths=(32, 64, 128, 256, 512, 512), depth=1),
        source=_SOURCE,
    ),
    "stunet_l": BackboneSpec(
        title="STU-Net-L, 440 M: 3D on an 80 GB GPU",
        spatial_dims=3,
        build=partial(stunet, widths=(64, 128, 256, 512, 1024, 1024), depth=2),
        source=_SOURCE,
    ),
    "stunet_h": BackboneSpec(
        title="STU-Net-H, 1457 M: 3D on several 80 GB GPUs; AnatoMask's best results",
        spatial_dims=3,
        build=partial(stunet, widths=(96, 192, 384, 768, 1536, 1536), depth=3),
        source=_SOURCE,
    ),
}
"""The sizes, by their name in `BACKBONES`."""
