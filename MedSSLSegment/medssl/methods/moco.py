"""MoCo v2: negatives come from a queue that a slowly following encoder has filled (He, Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.distributed import JointBatchNorm1d, gather
from .base import MethodInfo, Moment, Preset
from .contrastive import (
    CPU_CONTRACT,
    CPU_RECIPE,
    GPU_RECIPE,
    WHOLE_SLICE,
    Contrastive,
    ContrastiveOptions,
    Momentum,
    cosine,
    info_nce,
    mlp,
    spread,
    unit,
)

__all__ = ["MoCo", "MoCoOptions"]


@dataclass(frozen=True, kw_only=True)
class MoCoOptions(ContrastiveOptions):
    """Options of MoCo."""

    temperature: float = 0.2
    dimensions: int = 128
    hidden: int = 2048
    """Width of the head's hidden layer."""
    queue: int = 65536
    """Keys kept; far fewer than the slices there are, or a slice meets its own old keys as negatives."""
    momentum: float = 0.999
    """How much of the following encoder stays at each step; the shorter the run, the less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1 or self.queue < 1 or not 0.0 <= self.momentum < 1.0:
            raise InputError("hidden and queue must be 1 or more, momentum in 0 .. 1, below 1.")


class MoCo(Contrastive):
    """A query finds its key among the queue; queue and following encoder are saved with a run."""

    info = MethodInfo(
        title="MoCo v2",
        advice="Contrast with many negatives where only small batches fit.",
        citation="Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, 2020,"
        " arXiv:2003.04297",
    )
    options: MoCoOptions
    queue: Tensor

    def __init__(self, backbone: Backbone, contract: InputContract, options: MoCoOptions) -> None:
        width = backbone.encoder.widths[-1]
        # MoCo v2's encoder has batch norms; ours has none, and without one all embeddings come to lie together.
        head = mlp(width, options.hidden, options.dimensions, JointBatchNorm1d)
        super().__init__(backbone, contract, options, head)
        self.momentum = Momentum(self)
        self.register_buffer("queue", unit(torch.randn(options.queue, options.dimensions)))

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """Numbers of MoCo v2 on this project's slices; one GPU; two cores."""
        published = replace(
            GPU_RECIPE,
            epochs=200,
            batch=256,
            optimiser="sgd",
            learning_rate=0.03,
            warmup_epochs=0,
            precision="fp32",
        )
        small = MoCoOptions(hidden=256, queue=256, momentum=0.9, temperature=0.1, dropout=False)
        return {
            "paper": Preset("unet2d_16", WHOLE_SLICE, published, MoCoOptions(smallest_area=0.2)),
            "gpu": Preset(
                "unet2d_16", WHOLE_SLICE, GPU_RECIPE, MoCoOptions(hidden=512, queue=4096, momentum=0.99)
            ),
            "cpu": Preset("unet2d_16", CPU_CONTRACT, CPU_RECIPE, small),
        }

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """InfoNCE; the keys of all processes join the queue."""
        views = batch["views"]
        queries, keys = self.embed(views[:, 0]), unit(self.momentum(views[:, 1]))
        everyone = gather(keys)
        if self.training and moment.step == 0 and moment.part == 0:
            # Random vectors would be no negatives: untrained embeddings of slices all lie close together.
            self.queue = everyone.repeat(-(-self.options.queue // len(everyone)), 1)[: self.options.queue]
        metrics = {
            "loss": info_nce(queries, keys, self.queue, self.options.temperature),
            "positive_cosine": cosine(queries, keys).mean().detach(),
            "spread": spread(queries),
        }
        if self.training:
            self.queue = torch.cat([everyone, self.queue])[: self.options.queue]
        return metrics

    def after_step(self, moment: Moment) -> None:
        """Move the following encoder."""
        self.momentum.follow(self, self.options.momentum)
