"""Vision Transformer with a UNETR-style decoder for slices: MedSSL-ViT, MAE.

Letters: B batch, C channels, H W rows and columns of pixels, h w of patches, N = h w tokens row by row, n of them kept,
D width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Backbone, BackboneSpec, Decoder, Encoder
from .unet2d import Style, double_conv

__all__ = [
    "SPECS",
    "UnetrDecoder",
    "VitEncoder",
    "sincos_positions",
    "to_grid",
    "to_tokens",
    "transformer_blocks",
]

_STYLE = Style(slope=0.01)
_LONGEST_WAVE = 10000.0


@dataclass(frozen=True, kw_only=True)
class _Size:
    patch: int
    """Rows and columns of a patch; a power of 2."""
    width: int
    """Of a token; a multiple of 4."""
    depth: int
    """Blocks."""
    heads: int
    """Of the attention."""
    decoder_width: int
    """Channels at full resolution."""


def sincos_positions(rows: int, columns: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Fixed positions of a grid of patches: half the numbers tell the row, half the column.

    Args:
        rows: of the grid.
        columns: of the grid.
        width: of a token; a multiple of 4.
        device: where the result lies.

    Returns:
        (rows * columns, width) float32, row by row, each number in -1 .. 1.
    """
    rates = _LONGEST_WAVE ** -(torch.arange(width // 4, device=device, dtype=torch.float32) / (width // 4))
    y, x = (torch.arange(n, device=device, dtype=torch.float32)[:, None] * rates for n in (rows, columns))
    y_waves = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(rows, columns, -1)
    x_waves = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(rows, columns, -1)
    return torch.cat([y_waves, x_waves], dim=-1).flatten(0, 1)  # (N, D)


def to_tokens(grid: Tensor) -> Tensor:
    """(B, D, h, w) to (B, N, D), positions added."""
    rows, columns = grid.shape[-2:]
    tokens = grid.flatten(2).transpose(1, 2)  # (B, N, D)
    return tokens + sincos_positions(rows, columns, grid.shape[1], grid.device).to(grid.dtype)


def to_grid(tokens: Tensor, columns: int) -> Tensor:
    """(B, N, D) to (B, D, h, w) for w columns."""
    batch, _, width = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, width, -1, columns)


def transformer_blocks(width: int, depth: int, heads: int) -> nn.ModuleList:
    """Pre-norm transformer blocks with an MLP of 4 x width; each maps (B, N, width) to the same shape."""
    from ..foundation.runtime import ensure_torchvision_operators

    ensure_torchvision_operators()
    from timm.layers.norm import LayerNorm
    from timm.models.vision_transformer import Block

    blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return blocks


class VitEncoder(Encoder):
    """Plain vision transformer without a class token, positions fixed, so any grid of patches will do.

    Its maps are the image itself, then the tokens after evenly spaced blocks (of 12 with patches of 16: 3, 6, 9, 12),
    the last of them normalised. There is one such tap per doubling from patches to pixels.
    """

    spatial_dims = 2
    fixed_size = True

    def __init__(self, in_channels: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        count = patch.bit_length() - 1
        self.in_channels = in_channels
        self.widths = (in_channels, *[width] * count)
        self.strides = (1, *[patch] * count)
        self.divisor = patch
        self.stem = ("patch_embed.weight",)
        self.width = width
        self.patch = patch
        self.taps = tuple(round(depth * number / count) for number in range(1, count + 1))
        self.patch_embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(width, -1))
        self.blocks = transformer_blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to the image (B, C, H, W) and one (B, D, h, w) per tap, in the order of the blocks."""
        maps = [x]
        tokens = to_tokens(self.patch_embed(x))
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in self.taps:
                seen = self.norm(tokens) if number == len(self.blocks) else tokens
                maps.append(to_grid(seen, x.shape[-1] // self.patch))
        return maps

    def tokens(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """See only some of the patches.

        Args:
            x: (B, C, H, W).
            kept: (B, n) indices of the patches seen, row by row; None for all.

        Returns:
            (B, n, D) tokens after the last block and the final norm, in the order of `kept`.
        """
        tokens = to_tokens(self.patch_embed(x))
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, self.width))  # (B, n, D)
        for block in self.blocks:
            tokens = block(tokens)
        result: Tensor = self.norm(tokens)
        return result


class UnetrDecoder(Decoder):
    """UNETR's decoder in 2D: every tap is raised to a resolution of its own and joined on the way up.

    Args:
        widths: channels of the encoder's maps: of the image, then of each tap.
        width: channels at full resolution; they double with each level.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        image, *taps = widths
        doublings = len(taps)
        targets = [width * 2**level for level in range(doublings)]
        self.width = width
        self.skips = nn.ModuleList([double_conv(image, width, _STYLE)])
        for level in range(1, doublings):  # tap `level` rises from 1 / 2**doublings to 1 / 2**level
            self.skips.append(_raise(taps[level - 1], targets[level], doublings - level))
        wider = [*targets[1:], taps[-1]]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in zip(wider, targets, strict=True)
        )
        self.joins = nn.ModuleList(double_conv(2 * target, target, _STYLE) for target in targets)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps to (B, width, H, W)."""
        x = features[-1]
        for level in reversed(range(len(self.joins))):
            skip = self.skips[level](features[level])
            x = self.joins[level](torch.cat([skip, self.ups[level](x)], dim=1))
        return x


def _raise(in_channels: int, width: int, doublings: int) -> nn.Sequential:
    """Doublings of resolution by transposed convolution, two convolutions after each but the first."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(in_channels, width, 2, stride=2)]
    for _ in range(doublings - 1):
        layers += [nn.ConvTranspose2d(width, width, 2, stride=2), double_conv(width, width, _STYLE)]
    return nn.Sequential(*layers)


def _vit(in_channels: int, size: _Size) -> Backbone:
    encoder = VitEncoder(in_channels, patch=size.patch, width=size.width, depth=size.depth, heads=size.heads)
    return Backbone(encoder, UnetrDecoder(encoder.widths, size.decoder_width))


_BASE = _Size(patch=16, width=768, depth=12, heads=12, decoder_width=16)
_SMALL = _Size(patch=16, width=384, depth=12, heads=6, decoder_width=16)
_TINY = _Size(patch=8, width=96, depth=4, heads=3, decoder_width=8)
_SOURCE = "ViT (blocks of timm), positions and initial weights as in MAE, decoder as in UNETR"

SPECS = {
    "vit_b16": BackboneSpec(
        title="ViT-B, patches of 16 (86 M weights in the encoder): large data sets and a large GPU",
        spatial_dims=2,
        build=lambda in_channels: _vit(in_channels, _BASE),
        source=_SOURCE,
    ),
    "vit_s16": BackboneSpec(
        title="ViT-S, patches of 16 (22 M weights in the encoder): one GPU",
        spatial_dims=2,
        build=lambda in_channels: _vit(in_channels, _SMALL),
        source=_SOURCE,
    ),
    "vit_tiny": BackboneSpec(
        title="ViT of 4 blocks, patches of 8 (0.5 M weights in the encoder): a quick trial on the CPU",
        spatial_dims=2,
        build=lambda in_channels: _vit(in_channels, _TINY),
        source=_SOURCE,
        small=True,
    ),
}
