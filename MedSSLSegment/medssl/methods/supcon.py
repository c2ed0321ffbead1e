"""SupCon: slices that agree in whether they show the organ are alike (Khosla et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
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
    spread,
    sup_con,
)

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = ["SupCon", "SupConOptions"]


@dataclass(frozen=True, kw_only=True)
class SupConOptions(ContrastiveOptions):
    """Options of SupCon."""

    temperature: float = 0.07
    """Of the loss."""


class SupCon(Contrastive):
    """Supervised contrastive loss over the batch of all processes; the label of a slice is presence of the organ."""

    info = MethodInfo(
        title="SupCon",
        advice="The weakly supervised baseline: two groups of slices, with and without the organ.",
        citation="Khosla, Teterwak, Wang et al.: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362",
        supervision="presence",
    )
    options: SupConOptions

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """With PolyCL's published schedule (its own settings are not stated); one GPU; two cores."""
        return {
            "paper": Preset("unet2d_16", WHOLE_SLICE, PUBLISHED_RECIPE, SupConOptions()),
            "gpu": Preset("unet2d_16", WHOLE_SLICE, GPU_RECIPE, SupConOptions()),
            "cpu": Preset("unet2d_16", CPU_CONTRACT, CPU_RECIPE, SupConOptions(dropout=False)),
        }

    def anchors(self, volumes: UnlabelledVolumes) -> Sequence[Anchor]:
        """Every slice once."""
        present = np.concatenate([volumes.presence(n) for n in range(len(volumes.scans))])
        if present.all() or not present.any():
            raise InputError(
                f"{self.info.title} compares slices with and without the organ, but"
                f" {'every' if present.any() else 'no'} slice shows it; use whole scans that end beyond the organ."
            )
        return super().anchors(volumes)

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """{"views": (2, C, H, W), "present": bool}."""
        present = bool(volumes.presence(anchor.scan)[anchor.k])
        return {**super().draw(volumes, anchor, rng), "present": torch.tensor(present)}

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Positives outside the logarithm."""
        first, second = self.embed(batch["views"].transpose(0, 1).flatten(0, 1)).chunk(2)
        return {
            "loss": sup_con(first, second, batch["present"], self.options.temperature),
            "positive_cosine": cosine(first, second).mean().detach(),
            "spread": spread(first),
        }
