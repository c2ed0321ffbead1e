"""BYOL: predict how a slowly following encoder sees the other view; no negatives (Grill et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.distributed import JointBatchNorm1d
from .augment import ViewOptions
from .base import MethodInfo, Moment, Preset
from .contrastive import (
    CPU_CONTRACT,
    CPU_RECIPE,
    GPU_RECIPE,
    WHOLE_SLICE,
    Contrastive,
    Momentum,
    cosine,
    mlp,
    spread,
)

__all__ = ["BYOL", "BYOLOptions", "decay_at"]


@dataclass(frozen=True, kw_only=True)
class BYOLOptions(ViewOptions):
    """Options of BYOL."""

    dimensions: int = 256
    """Of an embedding."""
    hidden: int = 4096
    """Width of the hidden layers of head and predictor."""
    decay: float = 0.996
    """How much of the following encoder stays at the first step; it rises to 1 at the last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimensions < 1 or self.hidden < 1 or not 0.0 <= self.decay < 1.0:
            raise InputError("dimensions and hidden must be 1 or more, decay in 0 .. 1, below 1.")


def decay_at(progress: float, first: float) -> float:
    """Decay of the following encoder: `first` at progress 0, 1 at progress 1, along a cosine."""
    return 1.0 - (1.0 - first) * (math.cos(math.pi * progress) + 1.0) / 2.0


class BYOL(Contrastive):
    """Online encoder, head and predictor; the following encoder and head give what is to be predicted."""

    info = MethodInfo(
        title="BYOL",
        advice="Without negatives, so neighbouring slices are never pushed apart.",
        citation="Grill, Strub, Altche et al.: Bootstrap Your Own Latent, NeurIPS 2020, arXiv:2006.07733",
    )
    options: BYOLOptions

    def __init__(self, backbone: Backbone, contract: InputContract, options: BYOLOptions) -> None:
        width = backbone.encoder.widths[-1]
        head = mlp(width, options.hidden, options.dimensions, JointBatchNorm1d)
        super().__init__(backbone, contract, options, head)
        self.predictor = mlp(options.dimensions, options.hidden, options.dimensions, JointBatchNorm1d)
        self.momentum = Momentum(self)

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """Numbers of BYOL on this project's slices (AdamW for LARS); one GPU; two cores."""
        published = replace(GPU_RECIPE, epochs=300, batch=256, warmup_epochs=10, precision="fp32")
        small = BYOLOptions(hidden=512, decay=0.99)
        return {
            "paper": Preset("unet2d_16", WHOLE_SLICE, published, BYOLOptions(smallest_area=0.08, flip=0.5)),
            "gpu": Preset("unet2d_16", WHOLE_SLICE, GPU_RECIPE, small),
            "cpu": Preset(
                "unet2d_16", CPU_CONTRACT, replace(CPU_RECIPE, batch=10), replace(small, dropout=False)
            ),
        }

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Squared distance of unit vectors, 2 - 2 cosine, each view predicting the other."""
        first, second = batch["views"].unbind(1)
        # Each view by itself, as published: batch norms see one view of each slice.
        online = [self.embed(view) for view in (first, second)]
        targets = [self.momentum(view) for view in (second, first)]
        agreement = [cosine(self.predictor(z), target) for z, target in zip(online, targets, strict=True)]
        return {
            "loss": torch.stack([2.0 - 2.0 * one.mean() for one in agreement]).sum(),
            "spread": spread(online[0]),
        }

    def after_step(self, moment: Moment) -> None:
        """Move the following encoder."""
        self.momentum.follow(self, decay_at(moment.progress, self.options.decay))
