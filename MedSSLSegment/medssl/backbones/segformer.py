"""SegFormer's Mix Transformer with a U-Net decoder, both of segmentation-models-pytorch (TCS-MAE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from .base import Backbone, BackboneSpec, Decoder, Encoder

__all__ = ["SPECS", "SegFormerDecoder", "SegFormerEncoder"]

_DECODER = (512, 256, 128, 128, 128)
_TINY_DECODER = (64, 32, 16, 16, 16)
_TINY: Mapping[str, Any] = {
    "out_channels": [3, 0, 16, 32, 48, 64],
    "embed_dims": [16, 32, 48, 64],
    "num_heads": [1, 2, 3, 4],
    "depths": [1, 1, 1, 1],
    "drop_path_rate": 0.0,
}
"""What differs from MiT-B0."""


class SegFormerEncoder(Encoder):
    """Mix Transformer; its level at half the resolution has no channels.

    Args:
        in_channels: of the image.
        settings: arguments of the Mix Transformer.
    """

    spatial_dims = 2
    strides = (2, 4, 8, 16, 32)
    divisor = 32
    stem = ("transformer.patch_embed1.proj.weight",)

    def __init__(self, in_channels: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        from segmentation_models_pytorch.encoders.mix_transformer import MixVisionTransformerEncoder

        self.in_channels = in_channels
        self.widths = tuple(settings["out_channels"][1:])
        self.transformer = MixVisionTransformerEncoder(in_chans=in_channels, **settings)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to (B, widths[n], H / strides[n], W / strides[n]), finest first."""
        maps: list[Tensor] = self.transformer(x)[1:]  # the first of them is the image
        return maps


class SegFormerDecoder(Decoder):
    """U-Net decoder with nearest-neighbour upsampling, batch norm and ReLU.

    Args:
        widths: channels of the encoder's maps, finest first.
        targets: channels after each doubling, coarsest first.
    """

    def __init__(self, widths: Sequence[int], targets: Sequence[int]) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self.width = targets[-1]
        self.unet = UnetDecoder((0, *widths), tuple(targets))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, finest first, to (B, width, H, W)."""
        batch, _, rows, columns = features[0].shape
        image = features[0].new_empty((batch, 0, 2 * rows, 2 * columns))  # only its size is read
        result: Tensor = self.unet([image, *features])
        return result


def _segformer(
    in_channels: int, size: str, decoder: Sequence[int], changes: Mapping[str, Any] = MappingProxyType({})
) -> Backbone:
    from ..foundation.runtime import ensure_torchvision_operators

    ensure_torchvision_operators()
    from segmentation_models_pytorch.encoders.mix_transformer import mix_transformer_encoders

    encoder = SegFormerEncoder(in_channels, {**mix_transformer_encoders[size]["params"], **changes})
    return Backbone(encoder, SegFormerDecoder(encoder.widths, decoder))


_SOURCE = "SegFormer (arXiv 2105.15203) with TCS-MAE's decoder; code of segmentation-models-pytorch"

SPECS = {
    "mit_b0_unet": BackboneSpec(
        title="SegFormer MiT-B0 U-Net (3 M weights in the encoder): light, for one GPU",
        spatial_dims=2,
        build=lambda in_channels: _segformer(in_channels, "mit_b0", _DECODER),
        source=_SOURCE,
    ),
    "mit_b1_unet": BackboneSpec(
        title="SegFormer MiT-B1 U-Net (13 M weights in the encoder): one GPU",
        spatial_dims=2,
        build=lambda in_channels: _segformer(in_channels, "mit_b1", _DECODER),
        source=_SOURCE,
    ),
    "mit_b2_unet": BackboneSpec(
        title="SegFormer MiT-B2 U-Net (24 M weights in the encoder): TCS-MAE's own",
        spatial_dims=2,
        build=lambda in_channels: _segformer(in_channels, "mit_b2", _DECODER),
        source=_SOURCE,
    ),
    "mit_tiny_unet": BackboneSpec(
        title="Mix Transformer of 4 blocks with a U-Net decoder (0.3 M weights): a quick trial on the CPU",
        spatial_dims=2,
        build=lambda in_channels: _segformer(in_channels, "mit_b0", _TINY_DECODER, _TINY),
        source=_SOURCE,
        small=True,
    ),
}
