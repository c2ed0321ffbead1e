"""What SparK and AnatoMask share: errors by patch, and the network from sparse maps back to the volume.

A mask is True where masked, on the grid of patches of 16 x 16 x 16 voxels.

Letters: B batch, C channels, S spatial axes (D, H, W), G grid of patches (D/16, H/16, W/16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.sparse import normalise, visible_at
from ..backbones.stunet import PATCH, STUNetEncoder
from ..errors import InputError
from .pictures import reconstruction_picture

__all__ = ["PatchTargets", "ReconstructionHead", "Reconstructor", "block_picture", "patch_errors"]

_SMALLEST_VARIANCE = 1e-6
_MOST_FUSED = 64  # channels; composing two kernels costs more than it saves beyond
_INNER = (3, 5, 7)  # axes within a patch, of what _by_patch gives


@dataclass(frozen=True, eq=False)
class PatchTargets:
    """A volume whose every patch has mean 0 and deviation 1, and what was taken out."""

    normalised: Tensor
    """(B, C, *S) float32; zero on constant patches."""
    mean: Tensor
    """(B, C, *G)."""
    variance: Tensor
    """(B, C, *G), unbiased."""

    @classmethod
    def of(cls, image: Tensor) -> PatchTargets:
        """Normalise (B, C, *S)."""
        patches = _by_patch(image.float())
        variance, mean = torch.var_mean(patches, dim=_INNER, keepdim=True)
        normalised = ((patches - mean) * torch.rsqrt(variance + _SMALLEST_VARIANCE)).reshape(image.shape)
        return cls(normalised, mean.squeeze(_INNER), variance.squeeze(_INNER))

    def restore(self, normalised: Tensor) -> Tensor:
        """Bring (B, C, *S) of normalised patches back to the image's intensities."""
        scale = torch.sqrt(self.variance + _SMALLEST_VARIANCE)
        return normalised * _to_voxels(scale) + _to_voxels(self.mean)


def _by_patch(volume: Tensor) -> Tensor:
    """View (B, C, *S) as (B, C, D/16, 16, H/16, 16, W/16, 16)."""
    depth, height, width = (side // PATCH for side in volume.shape[2:])
    return volume.reshape(*volume.shape[:2], depth, PATCH, height, PATCH, width, PATCH)


def _to_voxels(grid: Tensor) -> Tensor:
    """(B, C, *G) to (B, C, *S)."""
    return F.interpolate(grid, scale_factor=PATCH, mode="nearest")


def patch_errors(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of every patch and channel: two (B, C, *S) to (B, C, *G) float32."""
    return _by_patch((reconstruction.float() - target).square()).mean(_INNER)


class ReconstructionHead(nn.Module):
    """SparK's way from sparse maps to the volume: masked places are filled with learnt tokens, then a light U-Net.

    The encoder's map at full resolution is not used, so nothing is computed from it.

    Args:
        encoder: whose maps are taken.
        stages: how many of its stages ran.
        width: channels of the deepest map after filling, a multiple of 16; None takes the encoder's.
        norm: of the decoder.
        pooled_statistics: see `STUNetEncoder.forward`.
        fuse: compute two convolutions as one where that is faster; see `_Up`.

    Raises:
        InputError: the width is not a multiple of 16, or there are fewer than five stages.
    """

    def __init__(
        self,
        encoder: STUNetEncoder,
        *,
        stages: int,
        width: int | None = None,
        norm: Literal["instance", "batch"] = "instance",
        pooled_statistics: bool = False,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        if not 5 <= stages <= len(encoder.widths):
            raise InputError(
                f"The encoder is pre-trained up to stage 5 or {len(encoder.widths)}, not {stages}."
            )
        width = width or encoder.widths[stages - 1]
        if width % 16:
            raise InputError(f"The decoder's width must be a multiple of 16, not {width}.")
        self.stages = stages
        self.pooled_statistics = pooled_statistics
        self.levels = (stages - 1, 3, 2, 1)
        self.fills = nn.ModuleList(
            _Fill(encoder.widths[level], width >> n, kernel=1 if n == 0 else 3)
            for n, level in enumerate(self.levels)
        )
        self.ups = nn.ModuleList(_Up(width >> n, norm, fuse) for n in range(len(self.levels)))
        self.to_voxels = nn.Conv3d(width >> len(self.levels), encoder.in_channels, 1)

    def forward(self, maps: Sequence[Tensor], masked: Tensor) -> Tensor:
        """The encoder's maps, finest first, and the mask (B, *G), to the reconstruction (B, C, *S)."""
        x: Tensor | None = None
        for level, fill, up in zip(self.levels, self.fills, self.ups, strict=True):
            filled = fill(maps[level], masked, self.pooled_statistics)
            x = up(filled if x is None else x + filled)
        result: Tensor = self.to_voxels(x)
        return result


class _Fill(nn.Module):
    """Norm over what is visible, a learnt token where masked, and a convolution to the decoder's width."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(in_channels, affine=True)
        self.token = nn.Parameter(torch.zeros(1, in_channels, 1, 1, 1))
        nn.init.trunc_normal_(self.token, std=0.02)
        keep = kernel == 1 and in_channels == out_channels
        self.project = (
            nn.Identity() if keep else nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2)
        )

    def forward(self, x: Tensor, masked: Tensor, pooled_statistics: bool) -> Tensor:
        visible = visible_at(masked, x.shape[2:], x.dtype, pooled=pooled_statistics)
        result: Tensor = self.project(normalise(x, self.norm, visible, fill=self.token))
        return result


class _Up(nn.Module):
    """Twice the resolution, half the width.

    Nothing lies between the transposed convolution and the next, so where channels are few the two are computed as one
    convolution at the coarse resolution, which is several times faster. Only the outermost voxels then differ: what the
    transposed convolution would give beyond the border is no longer zero.
    """

    def __init__(self, channels: int, norm: Literal["instance", "batch"], fuse: bool) -> None:
        super().__init__()
        self.fuse = fuse and channels <= _MOST_FUSED
        self.scale = nn.ConvTranspose3d(channels, channels, 4, stride=2, padding=1)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv3d(channels, channels // 2, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self._fused(x) if self.fuse else self.conv1(self.scale(x))
        y = F.relu6(_apply_norm(y, self.norm1), inplace=True)
        return _apply_norm(self.conv2(y), self.norm2)

    def _fused(self, x: Tensor) -> Tensor:
        """conv1(scale(x)) up to a constant of each channel, which the norm takes away."""
        B, C, D, H, W = x.shape
        kernel = F.conv3d(self.scale.weight, self.conv1.weight, padding=2)  # (in, out, 6, 6, 6), stride 2
        taps = kernel.reshape(C, C, 3, 2, 3, 2, 3, 2).flip(2, 4, 6)
        taps = taps.permute(3, 5, 7, 1, 0, 2, 4, 6).reshape(8 * C, C, 3, 3, 3)
        parts = F.conv3d(x, taps, padding=1).reshape(B, 2, 2, 2, C, D, H, W)
        woven = parts.permute(0, 5, 1, 6, 2, 7, 3, 4).reshape(B, 2 * D, 2 * H, 2 * W, C)
        return woven.movedim(-1, 1)


def _norm(kind: Literal["instance", "batch"], channels: int) -> nn.Module:
    return nn.BatchNorm3d(channels) if kind == "batch" else nn.InstanceNorm3d(channels, affine=True)


def _apply_norm(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.InstanceNorm3d):
        return normalise(x, norm)
    result: Tensor = norm(x)
    return result


class Reconstructor(nn.Module):
    """An encoder and its head: blocks from what is visible of them."""

    def __init__(self, encoder: STUNetEncoder, head: ReconstructionHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Tensor, masked: Tensor) -> Tensor:
        """(B, C, *S) and a mask (B, *G) to the reconstruction (B, C, *S), normalised by patch."""
        maps = self.encoder(
            image, masked, stages=self.head.stages, pooled_statistics=self.head.pooled_statistics
        )
        result: Tensor = self.head(maps, masked)
        return result


def block_picture(
    image: Tensor, masked: Tensor, reconstruction: Tensor, targets: PatchTargets
) -> NDArray[np.uint8]:
    """(H, W, 3): middle slices of the blocks, what the network saw of them, and what it made of that.

    Args:
        image: (B, C, *S).
        masked: (B, *G) bool.
        reconstruction: (B, C, *S) normalised by patch.
        targets: of the image.
    """
    hidden = _to_voxels(masked[:, None].float()) > 0
    restored = torch.where(hidden, targets.restore(reconstruction.float()), image)
    seen = image.masked_fill(hidden, float("nan"))
    middle = image.shape[2] // 2
    return reconstruction_picture(image[:, :, middle], seen[:, :, middle], restored[:, :, middle])
