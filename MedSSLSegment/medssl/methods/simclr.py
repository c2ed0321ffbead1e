"""SimCLR: two views of a slice are alike, all other views of the batch are not (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .augment import input_range, random_view
from .base import Anchor, MethodInfo, Moment, Preset
from .contrastive import (
    CPU_CONTRACT,
    CPU_RECIPE,
    GPU_RECIPE,
    PUBLISHED_RECIPE,
    WHOLE_SLICE,
    Contrastive,
    ContrastiveOptions,
    cosine,
    nt_xent,
    spread,
)

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = ["SimCLR", "SimCLROptions"]


@dataclass(frozen=True, kw_only=True)
class SimCLROptions(ContrastiveOptions):
    """Options of SimCLR."""

    asymmetric: bool = False
    """As in PolyCL's published baseline: the slice itself is the anchor, one view of it the positive."""


class SimCLR(Contrastive):
    """Normalised-temperature cross-entropy over the batch of all processes."""

    info = MethodInfo(
        title="SimCLR",
        advice="The plain contrastive baseline; wants large batches.",
        citation="Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual"
        " Representations, ICML 2020, arXiv:2002.05709",
    )
    options: SimCLROptions

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """PolyCL's published baseline (its temperature is not stated); one GPU; two cores."""
        baseline = SimCLROptions(
            asymmetric=True, smallest_area=0.08, angle_deg=0.0, flip=0.5, noise=0.0, blur_px=0.0
        )
        return {
            "paper": Preset("unet2d_16", WHOLE_SLICE, PUBLISHED_RECIPE, baseline),
            "gpu": Preset("unet2d_16", WHOLE_SLICE, GPU_RECIPE, SimCLROptions()),
            "cpu": Preset("unet2d_16", CPU_CONTRACT, CPU_RECIPE, SimCLROptions(dropout=False)),
        }

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """{"views": (2, C, H, W)}; asymmetric: the slice and one view of it."""
        if not self.options.asymmetric:
            return super().draw(volumes, anchor, rng)
        image = self.slice_image(volumes, anchor, rng)
        view = random_view(image, self.options, input_range(self.contract), rng)
        return {"views": torch.stack([image, view])}

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """NT-Xent."""
        first, second = self.embed(batch["views"].transpose(0, 1).flatten(0, 1)).chunk(2)
        return {
            "loss": nt_xent(first, second, self.options.temperature, not self.options.asymmetric),
            "positive_cosine": cosine(first, second).mean().detach(),
            "spread": spread(first),
        }
