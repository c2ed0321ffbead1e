"""SparK: masked image modelling for convolutional networks (Tian et al., 2023), in 3D on STU-Net.

The encoder reads the visible patches of a block through sparse convolutions; a light decoder reconstructs what was
masked. It is AnatoMask without its teacher, and the comparison that AnatoMask is measured against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.stunet import PATCH, STUNetEncoder
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.recipe import Recipe
from .base import Anchor, Method, MethodInfo, Moment, Preset
from .block_masks import count_masked, random_masks
from .blocks import block_anchors, draw_block
from .reconstruction import PatchTargets, ReconstructionHead, Reconstructor, block_picture, patch_errors

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = [
    "CPU_CONTRACT",
    "CPU_RECIPE",
    "GPU_CONTRACT",
    "GPU_RECIPE",
    "PAPER_CONTRACT",
    "SparK",
    "SparKOptions",
    "paper_recipe",
]


@dataclass(frozen=True, kw_only=True)
class SparKOptions:
    """How much is masked, and what reconstructs it.

    Raises:
        InputError: a number is out of its range.
    """

    mask_ratio: float = 0.6
    """Part of the patches that is masked."""
    stages: int = 6
    """Encoder stages that are pre-trained: 6 is all of them, 5 leaves the last random as the paper does."""
    decoder_width: int | None = None
    """Channels of the decoder's deepest map, a multiple of 16; None for the encoder's."""
    decoder_norm: Literal["instance", "batch"] = "instance"
    """Norm of the decoder, which is discarded after pre-training; the official code has batch norm."""
    decoder_fused: bool = True
    """Compute the decoder's transposed convolutions together with what follows: faster, other at the border."""
    official_norm: bool = False
    """Sparse norms see the visible voxels of the whole batch, as in the official code, not each sample's own."""
    blocks_per_scan: int | None = None
    """Blocks drawn from a scan in an epoch; None for as many as cover its slices."""
    flips: bool = True
    """Mirror blocks at random along each axis."""

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_ratio < 1.0:
            raise InputError(f"The mask ratio must lie between 0 and 1, not {self.mask_ratio}.")
        if self.blocks_per_scan is not None and self.blocks_per_scan < 1:
            raise InputError(f"At least one block a scan must be drawn, not {self.blocks_per_scan}.")


# Totals of the TotalSegmentator set that AnatoMask z-scores by are not published; these are round numbers near them.
PAPER_CONTRACT = InputContract(
    spatial_dims=3,
    size=(128, 112, 112),
    spacing_kji_mm=(1.5, 1.5, 1.5),
    window_hu=(-1000.0, 1600.0),
    mean_hu=-50.0,
    std_hu=500.0,
)
"""Input of the paper: 1.5 mm, blocks of 112 x 112 x 128 voxels, z-score."""
GPU_CONTRACT = InputContract(
    spatial_dims=3,
    size=(96, 96, 96),
    spacing_kji_mm=(2.0, 2.0, 2.0),
    window_hu=(-1000.0, 1600.0),
    mean_hu=-50.0,
    std_hu=500.0,
)
"""Input for one GPU of 24 GB."""
CPU_CONTRACT = InputContract(
    spatial_dims=3,
    size=(32, 48, 48),
    spacing_kji_mm=(4.0, 4.0, 4.0),
    window_hu=(-200.0, 400.0),
    mean_hu=100.0,
    std_hu=200.0,
)
"""Input for two CPU cores: soft tissue and bone at 4 mm."""
GPU_RECIPE = Recipe(
    epochs=300,
    batch=4,
    learning_rate=2e-4,
    weight_decay=1e-5,
    warmup_epochs=10,
    clip_norm=12.0,
    precision="bf16",
)
"""AdamW for one GPU of 24 GB."""
CPU_RECIPE = Recipe(
    epochs=60, batch=2, learning_rate=1e-3, weight_decay=1e-5, warmup_epochs=2, clip_norm=12.0
)
"""AdamW for two CPU cores."""


def paper_recipe(learning_rate: float) -> Recipe:
    """As AnatoMask's code trains: 1000 epochs in fp32, the SparK baseline at twice the learning rate."""
    return Recipe(
        epochs=1000,
        batch=4,
        learning_rate=learning_rate,
        weight_decay=1e-5,
        warmup_epochs=20,
        clip_norm=12.0,
    )


class SparK(Method):
    """Reconstruct randomly masked patches.

    Args:
        backbone: an STU-Net.
        contract: 3D, each side a multiple of 16.
        options: see `SparKOptions`.

    Raises:
        InputError: the backbone cannot read masked volumes, or the size is not a multiple of 16.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="SparK",
        advice="3D; the plain masked-reconstruction encoder, a quarter cheaper than AnatoMask.",
        citation="Tian et al., Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked"
        " Modeling, ICLR 2023, arXiv:2301.03580",
    )
    options: SparKOptions

    def __init__(self, backbone: Backbone, contract: InputContract, options: SparKOptions) -> None:
        super().__init__(backbone, contract, options)
        if not isinstance(backbone.encoder, STUNetEncoder):
            raise InputError(
                "SparK and AnatoMask need a backbone that reads masked volumes: one of stunet_*."
            )
        if contract.spatial_dims != 3 or any(side % PATCH for side in contract.size):
            raise InputError(f"Every side of a block must be a multiple of {PATCH}, not {contract.size}.")
        self.head = ReconstructionHead(
            backbone.encoder,
            stages=options.stages,
            width=options.decoder_width,
            norm=options.decoder_norm,
            pooled_statistics=options.official_norm,
            fuse=options.decoder_fused,
        )

    @property
    def student(self) -> Reconstructor:
        """The network that is trained; a view, so that the encoder's weights are stored once."""
        encoder = self.backbone.encoder
        assert isinstance(encoder, STUNetEncoder)  # checked when it was given
        return Reconstructor(encoder, self.head)

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """As published (with AnatoMask's backbone and data), for a 24 GB GPU, and for two CPU cores."""
        paper = SparKOptions(
            stages=5, decoder_norm="batch", decoder_fused=False, official_norm=True, blocks_per_scan=1
        )
        return {
            "paper": Preset("stunet_b", PAPER_CONTRACT, paper_recipe(2e-4), paper),
            "gpu": Preset("stunet_b", GPU_CONTRACT, GPU_RECIPE, SparKOptions()),
            "cpu": Preset("stunet_tiny", CPU_CONTRACT, CPU_RECIPE, SparKOptions(decoder_width=32)),
        }

    def anchors(self, volumes: UnlabelledVolumes) -> Sequence[Anchor]:
        """Middles of the segments that blocks are drawn from."""
        return block_anchors(volumes, self.contract.size[0], self.options.blocks_per_scan)

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """ "image" (C, *size) and "padded" (*grid) bool."""
        return draw_block(
            volumes,
            self.contract,
            anchor,
            rng,
            per_scan=self.options.blocks_per_scan,
            flips=self.options.flips,
        )

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Reconstruction loss of the masked patches."""
        targets = PatchTargets.of(batch["image"])
        masked, facts = self.choose_mask(batch, targets, moment)
        reconstruction = self.student(batch["image"], masked)
        errors = patch_errors(reconstruction, targets.normalised).mean(1)
        return {"loss": (errors * masked).sum() / masked.sum().clamp(min=1), **facts}

    def choose_mask(
        self, batch: Mapping[str, Tensor], targets: PatchTargets, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mask patches at random.

        Returns:
            (B, *grid) bool, True where masked, and scalars to log.
        """
        padded = batch["padded"]
        count = count_masked(padded, self.options.mask_ratio)
        return random_masks(padded, count, moment.generator(padded.device)), {}

    @torch.no_grad()
    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8]:
        """Blocks, their visible patches, and their reconstruction."""
        image = batch["image"]
        targets = PatchTargets.of(image)
        masked, _ = self.choose_mask(batch, targets, moment)
        reconstruction = self.student(image, masked)
        return block_picture(image, masked, reconstruction, targets)

    def transferable(self) -> dict[str, Tensor]:
        """Weights of the stages that were trained; the decoder, and with `stages` = 5 the sixth, were not."""
        trained = tuple(f"encoder.stages.{n}." for n in range(self.options.stages))
        return {name: tensor for name, tensor in super().transferable().items() if name.startswith(trained)}
