"""MAE: masked autoencoder on a plain vision transformer (He et al., arXiv 2111.06377).

The encoder sees a quarter of the patches; a small transformer makes the others' pixels from what it says.
B batch, C channels, N patches, n of them visible, D width of a token, P numbers in a patch (p^2 C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..backbones.vit import VitEncoder, sincos_positions, transformer_blocks
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.recipe import Recipe
from .base import Anchor, Method, MethodInfo, Moment, Preset
from .crops import random_crop
from .masking import (
    masked_mean,
    normalised_patches,
    patch_scale,
    patchify,
    patchwise,
    random_mask,
    unpatchify,
    visible_indices,
)
from .pictures import looking, reconstruction_picture

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = [
    "MAE",
    "MAEOptions",
    "MaskedAutoencoder",
    "ct_slices",
    "quick_recipe",
    "vit_encoder",
    "vit_recipe",
]


@dataclass(frozen=True, kw_only=True)
class MAEOptions:
    """What can be set of MAE.

    Raises:
        InputError: a number is out of its range.
    """

    ratio: float = 0.75
    """Share of patches masked."""
    normalise: bool = True
    """Compare patches of mean 0 and deviation 1 each; False compares the input's own numbers."""
    decoder_width: int = 512
    """Of the decoder's tokens; a multiple of 4."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Of the decoder's attention."""
    smallest_area: float = 0.2
    """A crop of this part of the slice, up to all of it, is scaled to the input's size."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0 or not 0.0 < self.smallest_area <= 1.0:
            raise InputError("The masked share and the smallest area must lie between 0 and 1.")
        if min(self.decoder_width, self.decoder_depth, self.decoder_heads) < 1 or (
            self.decoder_width % 4 or self.decoder_width % self.decoder_heads
        ):
            raise InputError(
                "The decoder's width must be a multiple of 4 and of its heads, its depth 1 or more."
            )


class MaskedAutoencoder(nn.Module):
    """What stands on the encoder: mask tokens, blocks, and a linear map to pixels; and the loss.

    Args:
        encoder: it is used, not owned.
        options: decoder and loss.
    """

    def __init__(self, encoder: VitEncoder, options: MAEOptions) -> None:
        super().__init__()
        self.options = options
        self.patch = encoder.patch
        width = options.decoder_width
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = transformer_blocks(width, options.decoder_depth, options.decoder_heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, encoder.patch**2 * encoder.in_channels)
        nn.init.normal_(self.mask_token, std=0.02)
        for layer in (self.embed, self.pixels):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def draw_mask(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, N) bool; int(N (1 - ratio)) patches of every image stay visible."""
        patches = images.shape[-2] * images.shape[-1] // self.patch**2
        return random_mask(len(images), patches, self.options.ratio, generator)

    def forward(self, encoder: VitEncoder, images: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) images and their (B, N) mask to (B, N, P) patches, in the space of the targets."""
        kept = visible_indices(mask)
        seen = self.embed(encoder.tokens(images, kept))  # (B, n, width)
        tokens = self.mask_token.to(seen.dtype).expand(*mask.shape, -1)
        tokens = tokens.scatter(1, kept[..., None].expand_as(seen), seen)  # (B, N, width)
        rows, columns = (side // self.patch for side in images.shape[-2:])
        tokens = tokens + sincos_positions(rows, columns, seen.shape[2], seen.device).to(seen.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        result: Tensor = self.pixels(self.norm(tokens)).float()
        return result

    def loss(self, made: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean squared difference over the masked patches; visible ones do not count."""
        targets = patchify(images, self.patch).float()
        if self.options.normalise:
            targets = normalised_patches(targets)
        return masked_mean((made - targets).square().mean(2), mask)

    def picture(self, encoder: VitEncoder, images: Tensor, mask: Tensor) -> NDArray[np.uint8]:
        """Rows of image, visible patches, and the image with its masked patches as made."""
        patches = patchify(images, self.patch).float()
        made = self(encoder, images, mask)
        if self.options.normalise:
            mean, deviation = patch_scale(patches)
            made = made * deviation + mean
        size = (images.shape[-2], images.shape[-1])
        joined = unpatchify(torch.where(mask[..., None], made, patches), self.patch, size)
        hidden = patchwise(mask, self.patch, size)
        return reconstruction_picture(images, images.masked_fill(hidden, float("nan")), joined)


class MAE(Method):
    """Make the pixels of masked patches from the visible quarter."""

    info: ClassVar[MethodInfo] = MethodInfo(
        title="MAE",
        advice="Vision transformers; the plain baseline of masked image modelling.",
        citation="He, Chen, Xie, Li, Dollar and Girshick, Masked Autoencoders Are Scalable Vision Learners, 2021,"
        " arXiv 2111.06377",
    )

    def __init__(self, backbone: Backbone, contract: InputContract, options: MAEOptions) -> None:
        super().__init__(backbone, contract, options)
        self.options: MAEOptions = options
        self.autoencoder = MaskedAutoencoder(vit_encoder(backbone, contract, self.info.title), options)
        backbone.decoder.requires_grad_(False)  # it takes no part

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """By name: "paper", "gpu", "cpu"."""
        small = MAEOptions(decoder_width=64, decoder_depth=2, decoder_heads=4)
        return {
            "paper": Preset("vit_b16", ct_slices(224, 1.5), vit_recipe(800, 256, 40), MAEOptions()),
            "gpu": Preset("vit_s16", ct_slices(224, 1.5), vit_recipe(100, 128, 10, "bf16"), MAEOptions()),
            "cpu": Preset("vit_tiny", ct_slices(64, 4.0), quick_recipe(), small),
        }

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """A part of a slice, scaled to the input's size."""
        image = torch.from_numpy(volumes.image(self.contract, anchor.scan, anchor.k))
        rows, columns = image.shape[-2:]
        crop = random_crop(rows, columns, self.options.smallest_area, rng)
        return {"image": crop.taken(image, self.contract.size)}

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Mean squared error over masked patches."""
        images = batch["image"]
        mask = self.autoencoder.draw_mask(images, moment.generator(images.device))
        return {"loss": self.autoencoder.loss(self.autoencoder(self._encoder, images, mask), images, mask)}

    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8]:
        """Rows of image, visible patches, reconstruction."""
        images = batch["image"][:4]
        mask = self.autoencoder.draw_mask(images, moment.generator(images.device))
        with looking(self):
            return self.autoencoder.picture(self._encoder, images, mask)

    @property
    def _encoder(self) -> VitEncoder:
        return vit_encoder(self.backbone, self.contract, self.info.title)


def vit_encoder(backbone: Backbone, contract: InputContract, method: str) -> VitEncoder:
    """The backbone's encoder, if it is a plain vision transformer that the input fits.

    Raises:
        InputError: it is not, or the input's size is no multiple of the patch.
    """
    encoder = backbone.encoder
    if not isinstance(encoder, VitEncoder):
        raise InputError(f"{method} needs a plain vision transformer such as vit_s16 or vit_tiny.")
    if any(side % encoder.patch for side in contract.size):
        raise InputError(f"The size {contract.size} is not a multiple of the patch of {encoder.patch}.")
    return encoder


def ct_slices(side: int, spacing_mm: float) -> InputContract:
    """Square CT slices in a window that shows soft tissue and bone."""
    return InputContract(
        size=(side, side),
        spacing_kji_mm=(None, spacing_mm, spacing_mm),
        window_hu=(-200.0, 400.0),
        mean_hu=100.0,
        std_hu=200.0,
    )


def vit_recipe(
    epochs: int, batch: int, warmup_epochs: int, precision: Literal["fp32", "bf16"] = "fp32"
) -> Recipe:
    """The recipe of MAE's authors: the learning rate grows with the batch, 1.5e-4 for 256 samples."""
    return Recipe(
        epochs=epochs,
        batch=batch,
        learning_rate=1.5e-4 * batch / 256,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        warmup_epochs=warmup_epochs,
        clip_norm=1.0,
        precision=precision,
    )


def quick_recipe() -> Recipe:
    """For a small transformer on the CPU."""
    return replace(vit_recipe(20, 8, 1), learning_rate=1e-3)
