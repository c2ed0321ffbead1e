"""MedSSL-ViT: masked image modelling and contrast between anatomical regions.

The source is an abstract without architecture, losses or settings; this is an instance of what it describes, not a
reproduction: MAE, and two crops of a slice whose common regions are to be recognised. A region is a cell of a coarse
grid over the slice, in a tenth of the scan's height; the same place in another patient neither attracts nor repels.

B batch, C channels, R regions of a slice, D width of a token, h w rows and columns of patches, E size of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.base import Backbone
from ..backbones.vit import VitEncoder
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.distributed import gather
from .base import Anchor, Method, MethodInfo, Moment, Preset
from .crops import random_crop
from .mae import MAEOptions, MaskedAutoencoder, ct_slices, quick_recipe, vit_encoder, vit_recipe
from .pictures import looking

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = ["MedSSLViT", "MedSSLViTOptions", "region_averages", "region_contrast", "regions_in_view"]

_DECILES = 10


@dataclass(frozen=True, kw_only=True)
class MedSSLViTOptions(MAEOptions):
    """What can be set of MedSSL-ViT: what can be of MAE, and the contrast between regions."""

    contrast_weight: float = 1.0
    """lambda: of the contrast between regions."""
    grid: int = 4
    """Cells a slice is divided into along each side."""
    least_inside: float = 0.5
    """Part of a cell that both crops must show for it to count."""
    embedding: int = 128
    """E: numbers in an embedding."""
    temperature: float = 0.2
    """Of the contrast."""
    flip: float = 0.0
    """Probability of exchanging left and right; 0 keeps left and right organs apart."""
    jitter: float = 0.2
    """Each view's numbers are multiplied by 1 - jitter .. 1 + jitter and raised by -jitter .. jitter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid < 1 or self.temperature <= 0.0 or not 0.0 < self.least_inside <= 1.0:
            raise InputError("The grid must have a cell, the temperature and least part inside be above 0.")
        if not 0.0 <= self.flip <= 1.0 or not 0.0 <= self.jitter < 1.0:
            raise InputError("flip must lie in 0 .. 1, jitter in 0 .. 1, below 1.")
        if self.embedding < 1 or self.contrast_weight < 0:
            raise InputError("embedding must be 1 or more, contrast_weight 0 or more.")


class MedSSLViT(Method):
    """Make masked patches, and recognise a region in two crops."""

    info: ClassVar[MethodInfo] = MethodInfo(
        title="MedSSL-ViT",
        advice="Vision transformers on many scans of one body part; MAE that also learns where it is.",
        citation="MedSSL-ViT (abstract: masked image modelling with anatomical-aware contrastive learning);"
        " settings as in He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377",
    )

    def __init__(self, backbone: Backbone, contract: InputContract, options: MedSSLViTOptions) -> None:
        super().__init__(backbone, contract, options)
        self.options: MedSSLViTOptions = options
        encoder = vit_encoder(backbone, contract, self.info.title)
        self.autoencoder = MaskedAutoencoder(encoder, options)
        backbone.decoder.requires_grad_(False)  # it takes no part
        self.projection = nn.Sequential(
            nn.Linear(encoder.width, encoder.width), nn.GELU(), nn.Linear(encoder.width, options.embedding)
        )
        self.projection.requires_grad_(options.contrast_weight > 0.0)

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """By name: "paper" (which states no settings: the reference instance), "gpu", "cpu"."""
        options = MedSSLViTOptions()
        small = replace(options, decoder_width=64, decoder_depth=2, decoder_heads=4)
        return {
            "paper": Preset("vit_b16", ct_slices(224, 1.5), vit_recipe(800, 256, 40), options),
            "gpu": Preset("vit_s16", ct_slices(224, 1.5), vit_recipe(100, 128, 10, "bf16"), options),
            "cpu": Preset("vit_tiny", ct_slices(64, 4.0), quick_recipe(), small),
        }

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """Two crops of a slice, where they lie in it, and where it lies in the scan."""
        image = torch.from_numpy(volumes.image(self.contract, anchor.scan, anchor.k))
        views, boxes = zip(*(self._view(image, rng) for _ in range(2)), strict=True)
        height = (anchor.k + 0.5) / volumes.scans[anchor.scan].shape_kji[0]
        return {
            "image": torch.stack(views),
            "boxes": torch.stack(boxes),
            "decile": torch.tensor(int(_DECILES * height)),
        }

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Reconstruction of both views, and contrast between regions of their whole images."""
        views = batch["image"].transpose(0, 1).flatten(0, 1)  # (2 B, C, H, W), first views first
        mask = self.autoencoder.draw_mask(views, moment.generator(views.device))
        pixels = self.autoencoder.loss(self.autoencoder(self._encoder, views, mask), views, mask)
        if not self.options.contrast_weight:
            return {"loss": pixels}
        contrast, shared = self._contrast(views, batch["boxes"].transpose(0, 1), batch["decile"])
        loss = pixels + self.options.contrast_weight * contrast
        return {"loss": loss, "pixels": pixels, "contrast": contrast, "regions": shared}

    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8]:
        """Rows of first view, visible patches, reconstruction."""
        views = batch["image"][:4, 0]
        mask = self.autoencoder.draw_mask(views, moment.generator(views.device))
        with looking(self):
            return self.autoencoder.picture(self._encoder, views, mask)

    @property
    def _encoder(self) -> VitEncoder:
        return vit_encoder(self.backbone, self.contract, self.info.title)

    def _view(self, image: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(C, *size) crop and its (4,) box: top, left, bottom, right; left and right exchanged if it is mirrored."""
        rows, columns = image.shape[-2:]
        crop = random_crop(rows, columns, self.options.smallest_area, rng)
        view = crop.taken(image, self.contract.size)
        top, left, bottom, right = crop.box(rows, columns)
        if rng.random() < self.options.flip:
            view, left, right = view.flip(-1), right, left
        gain, offset = (float(rng.uniform(-self.options.jitter, self.options.jitter)) for _ in range(2))
        return view * (1.0 + gain) + offset, torch.tensor([top, left, bottom, right])

    def _contrast(self, views: Tensor, boxes: Tensor, decile: Tensor) -> tuple[Tensor, Tensor]:
        """Contrast, and the mean number of regions that both views of a slice show."""
        rows, columns = (side // self._encoder.patch for side in views.shape[-2:])
        tokens = self._encoder.tokens(views)  # (2 B, N, D)
        maps = tokens.mT.reshape(*tokens.mT.shape[:2], rows, columns)  # (2 B, D, h, w)
        cells, inside = regions_in_view(boxes.flatten(0, 1), self.options.grid)
        embeddings = self.projection(region_averages(maps, cells)).float()  # (2 B, R, E)
        first, second = F.normalize(embeddings, dim=2).flatten(0, 1).chunk(2)  # (B R, E) each
        valid = (inside.view(2, len(decile), -1) >= self.options.least_inside).all(0)  # (B, R)
        keys = decile[:, None] * valid.shape[1] + torch.arange(valid.shape[1], device=decile.device)
        contrast = region_contrast(first, second, keys.flatten(), valid.flatten(), self.options.temperature)
        return contrast, valid.sum(1).float().mean()


def regions_in_view(boxes: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Where the cells of a grid over a slice lie in crops of it.

    Args:
        boxes: (B, 4) top, left, bottom, right of the crops as parts of the slice; mirrored where left > right.
        grid: cells along each side; R = grid^2 of them, row by row.

    Returns:
        (B, R, 4) top, left, bottom, right as parts of the crop, cut off at its border, and the (B, R) part of each
        cell that lies inside.
    """
    edges = torch.linspace(0.0, 1.0, grid + 1, device=boxes.device)
    start, stop = boxes[:, :2, None], boxes[:, 2:, None]  # (B, 2, 1): rows, columns
    placed = (edges - start) / (stop - start)  # (B, 2, grid + 1)
    low = torch.minimum(placed[..., :-1], placed[..., 1:])
    high = torch.maximum(placed[..., :-1], placed[..., 1:])
    cut_low, cut_high = low.clamp(0.0, 1.0), high.clamp(0.0, 1.0)
    share = (cut_high - cut_low) / (high - low)  # (B, 2, grid)
    inside = share[:, 0, :, None] * share[:, 1, None, :]  # (B, grid, grid)
    shape = (len(boxes), grid, grid)
    sides = [
        part[:, axis].unsqueeze(2 - axis).expand(shape) for part in (cut_low, cut_high) for axis in (0, 1)
    ]
    return torch.stack(sides, dim=-1).flatten(1, 2), inside.flatten(1)


def region_averages(maps: Tensor, cells: Tensor) -> Tensor:
    """Exact mean of feature maps, constant within each of their pixels, over boxes.

    Args:
        maps: (B, D, h, w).
        cells: (B, R, 4) top, left, bottom, right as parts of the map; an empty box gives 0.

    Returns:
        (B, R, D).
    """
    rows, columns = (
        _overlaps(cells[..., axis], cells[..., axis + 2], maps.shape[2 + axis]) for axis in (0, 1)
    )
    return torch.einsum("brh,brw,bdhw->brd", rows.to(maps.dtype), columns.to(maps.dtype), maps)


def region_contrast(first: Tensor, second: Tensor, keys: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Each region's embedding is to be most like the other view's of the same region of the same slice.

    Against it stand the other view's regions of other keys, from all slices and processes. Regions of the same key in
    other slices are the same anatomy: they count neither way.

    Args:
        first: (M, E) of unit length.
        second: (M, E), the same regions in the other views.
        keys: (M,) int64: equal for the same anatomy.
        valid: (M,) bool: whether both views show the region.
        temperature: above 0.

    Returns:
        Mean over the valid regions of both views; 0 where there are none.
    """
    first, second, keys, valid = gather(first), gather(second), gather(keys), gather(valid)
    likeness = first @ second.mT / temperature  # (M, M)
    own = torch.eye(len(keys), dtype=torch.bool, device=keys.device)
    candidates = own | ((keys[:, None] != keys) & valid[:, None] & valid)
    likeness = likeness.masked_fill(~candidates, -torch.inf)
    positive = likeness.diagonal()
    losses = likeness.logsumexp(1) + likeness.logsumexp(0) - 2.0 * positive
    return (losses * valid).sum() / (2 * valid.sum()).clamp(min=1)


def _overlaps(low: Tensor, high: Tensor, count: int) -> Tensor:
    """(B, R) intervals in 0 .. 1 to the (B, R, count) part of each that lies in every one of `count` equal pixels."""
    edges = torch.linspace(0.0, 1.0, count + 1, device=low.device)
    shared = torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])
    return shared.clamp(min=0.0) / (high - low)[..., None].clamp(min=1e-9)
