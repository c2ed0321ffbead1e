"""AnatoMask: mask what is hard to reconstruct, chosen by a teacher (Li et al., ECCV 2024).

A teacher, the moving average of the student, reconstructs a randomly masked block. The patches it does worst on, a
share that grows over training, are masked for the student together with random others.

Where the paper, its algorithm and its code differ, the text is followed (section 3.3): of the m masked patches,
floor(r m) are hard. Patches are ranked by their error in intensities; the official code compares an output that was
trained on normalised patches with the raw ones, which ranks by brightness and puts air first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.averaging import follow, frozen_copy
from .base import MethodInfo, Moment, Preset
from .block_masks import count_masked, first_of_order, random_masks
from .reconstruction import PatchTargets, patch_errors
from .spark import (
    CPU_CONTRACT,
    CPU_RECIPE,
    GPU_CONTRACT,
    GPU_RECIPE,
    PAPER_CONTRACT,
    SparK,
    SparKOptions,
    paper_recipe,
)

__all__ = ["AnatoMask", "AnatoMaskOptions", "harden_masks", "rank_patches"]

_EMA_RISE = 0.25  # part of the run over which the teacher slows down


@dataclass(frozen=True, kw_only=True)
class AnatoMaskOptions(SparKOptions):
    """How hard the masks become, and what the teacher calls hard.

    Raises:
        InputError: a number is out of its range.
    """

    hard_from: float = 0.0
    """Part of the masked patches that is chosen for hardness at the first step."""
    hard_to: float = 0.5
    """The same at the last step; it changes linearly."""
    rank_space: Literal["intensity", "normalised", "official"] = "intensity"
    """Patches are ranked by their error in intensities, in normalised patches, or of a normalised output against raw
    intensities as the official code does."""
    count_rule: Literal["text", "alg1", "code"] = "text"
    """Hard patches: a part of the masked ones (section 3.3), of all patches (algorithm 1), or as in the text with the
    official code's schedule by epoch, which starts above and overshoots."""
    export: Literal["student", "teacher"] = "student"
    """Whose encoder an encoder file holds: the student's, as the official code exports, or the teacher's."""
    ema_from: float = 0.999
    """Share of the teacher that stays at each step, at the first."""
    ema_to: float = 0.9999
    """The same from a quarter of the run on; it rises linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.mask_ratio if self.count_rule == "alg1" else 1.0
        if not (0.0 <= self.hard_from <= most and 0.0 <= self.hard_to <= most):
            raise InputError(
                f"The hard part must lie between 0 and {most}, not go from {self.hard_from} to {self.hard_to}."
            )
        if not (0.0 <= self.ema_from <= 1.0 and 0.0 <= self.ema_to <= 1.0):
            raise InputError("The teacher's shares must lie between 0 and 1.")

    def hard_part(self, moment: Moment) -> float:
        """r_t, the part that is chosen for hardness."""
        along = moment.progress
        if self.count_rule == "code":
            along = (moment.epoch + 1) / max(moment.epochs - 1, 1)
        return self.hard_from + (self.hard_to - self.hard_from) * along

    def ema_decay(self, moment: Moment) -> float:
        """Share of the teacher that stays after this step."""
        return self.ema_from + (self.ema_to - self.ema_from) * min(moment.progress / _EMA_RISE, 1.0)


class AnatoMask(SparK):
    """Reconstruct patches of which a growing part was the hardest for the teacher.

    It costs one pass of the teacher without gradients more than `SparK`.

    Args:
        backbone: an STU-Net; becomes the student.
        contract: 3D, each side a multiple of 16.
        options: see `AnatoMaskOptions`.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="AnatoMask",
        advice="3D CT or MR; the strongest of these encoders for many organs at once.",
        citation="Li et al., AnatoMask: Enhancing Medical Image Segmentation with Reconstruction-guided"
        " Self-masking, ECCV 2024, arXiv:2407.06468",
    )
    options: AnatoMaskOptions

    def __init__(self, backbone: Backbone, contract: InputContract, options: AnatoMaskOptions) -> None:
        super().__init__(backbone, contract, options)
        self.teacher = frozen_copy(self.student)

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """As published with the official code's parts, for a 24 GB GPU, and for two CPU cores."""
        paper = AnatoMaskOptions(
            stages=5, decoder_norm="batch", decoder_fused=False, official_norm=True, blocks_per_scan=1
        )
        small = AnatoMaskOptions(decoder_width=32, ema_from=0.99, ema_to=0.999)
        return {
            "paper": Preset("stunet_b", PAPER_CONTRACT, paper_recipe(1e-4), paper),
            "gpu": Preset("stunet_b", GPU_CONTRACT, replace(GPU_RECIPE, batch=2), AnatoMaskOptions()),
            "cpu": Preset("stunet_tiny", CPU_CONTRACT, CPU_RECIPE, small),
        }

    def train(self, mode: bool = True) -> AnatoMask:
        """Set the mode of all but the teacher, which never leaves evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def choose_mask(
        self, batch: Mapping[str, Tensor], targets: PatchTargets, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mask hard and random patches.

        Returns:
            (B, *grid) bool, True where masked, and the teacher's error to log.
        """
        options, padded, image = self.options, batch["padded"], batch["image"]
        generator = moment.generator(padded.device)
        first = random_masks(padded, count_masked(padded, options.mask_ratio), generator)
        with torch.inference_mode():
            reconstruction = self.teacher(image, first)
            rank = rank_patches(reconstruction, image, targets, options.rank_space)
        count, hard = self._counts(first, padded, moment)
        masked = harden_masks(first, rank, padded, count, hard, generator)
        return masked, {"hard_patches": hard.float().mean()}

    def _counts(self, first: Tensor, padded: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """(B,) patches to mask, and how many of them for their hardness."""
        part = self.options.hard_part(moment)
        count = first.flatten(1).sum(1)
        if self.options.count_rule != "alg1":
            return count, torch.floor(part * count).long()
        patches = (~padded).flatten(1).sum(1)
        hard = torch.ceil(part * patches)
        return (hard + torch.ceil((self.options.mask_ratio - part) * patches)).long(), hard.long()

    def transferable(self) -> dict[str, Tensor]:
        """Weights of the trained stages, of the student or of the teacher."""
        weights = super().transferable()
        if self.options.export == "student":
            return weights
        averaged = self.teacher.state_dict()
        return {name: averaged[name] for name in weights}

    def after_step(self, moment: Moment) -> None:
        """Move the teacher: parameters and norm statistics."""
        follow(self.teacher, self.student, self.options.ema_decay(moment))


def rank_patches(
    reconstruction: Tensor,
    image: Tensor,
    targets: PatchTargets,
    space: Literal["intensity", "normalised", "official"],
) -> Tensor:
    """Error of each patch that says how hard it is.

    Args:
        reconstruction: (B, C, *S) normalised by patch.
        image: (B, C, *S).
        targets: of the image.
        space: see `AnatoMaskOptions.rank_space`.

    Returns:
        (B, *grid) float32.
    """
    if space == "official":
        return patch_errors(reconstruction, image.float()).mean(1)
    errors = patch_errors(reconstruction, targets.normalised)
    if space == "intensity":
        # (y sqrt(var) + mean - x)^2 = var (y - (x - mean) / sqrt(var))^2: a constant patch is never hard
        errors = errors * targets.variance
    return errors.mean(1)


def harden_masks(
    first: Tensor, rank: Tensor, padded: Tensor, count: Tensor, hard: Tensor, generator: torch.Generator
) -> Tensor:
    """Mask the hardest of the patches that the teacher did not see, and others at random.

    Args:
        first: (B, *grid) bool, what was masked for the teacher.
        rank: (B, *grid), higher is harder.
        padded: (B, *grid) bool, never masked.
        count: (B,) patches to mask.
        hard: (B,) how many of them are the hardest of `first`.
        generator: on the device of the masks.

    Returns:
        (B, *grid) bool with `count` True in each sample.
    """
    hardest = first_of_order((-rank).masked_fill(~first, math.inf), hard)
    chance = torch.rand(first.shape, generator=generator, device=first.device)
    order = chance.masked_fill(padded, 2.0).masked_fill(hardest, -1.0)
    return first_of_order(order, count)
