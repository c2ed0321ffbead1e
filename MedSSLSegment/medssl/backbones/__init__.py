"""Networks by name. A new family is a new file here with its `SPECS`, and a line below."""

from __future__ import annotations

from ..errors import InputError
from . import resunet, segformer, stunet, transunet, unet2d, vit
from .base import Backbone, BackboneSpec, Decoder, Encoder

__all__ = ["BACKBONES", "Backbone", "BackboneSpec", "Decoder", "Encoder", "build_backbone"]

BACKBONES: dict[str, BackboneSpec] = {
    **unet2d.SPECS,
    **resunet.SPECS,
    **transunet.SPECS,
    **vit.SPECS,
    **segformer.SPECS,
    **stunet.SPECS,
}
"""Every backbone by name; heavy packages are imported when one is built."""


def build_backbone(name: str, in_channels: int = 1) -> Backbone:
    """Build a backbone with random weights.

    Raises:
        InputError: there is none of that name; the message lists them.
    """
    if name not in BACKBONES:
        raise InputError(f"There is no backbone '{name}'; choose one of {', '.join(BACKBONES)}.")
    return BACKBONES[name].build(in_channels)
