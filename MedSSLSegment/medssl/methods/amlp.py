"""AMLP: adjustable masking lesion patches (Wang, Wang, Lukasiewicz and Xu, arXiv 2309.04312).

Patches of a slice fall into two clusters; those of the smaller one, the likely lesions, are masked first, and a growing
share of the slice with them. Where the paper's printed losses have no gradient (RRL averaged is always 1, CCL takes the
logarithm of a constant), the default is what its text describes and the printed form an option.

B batch, C channels, N patches, D numbers in a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.base import Backbone
from ..datasets.data import fit_slice
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.recipe import Recipe
from .base import Anchor, Method, MethodInfo, Moment, Preset, without_dropout
from .kmeans import TwoMeans, hashed_uniform, squared_distances, two_means
from .masking import masked_mean, patchify, patchwise
from .patch_labels import PatchLabels, slice_key
from .pictures import looking, reconstruction_picture

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = ["AMLP", "AMLPOptions", "mask_ratio"]

_LEAST_BODY = 0.05
_AIR_BELOW_HU = -500
_XI = 0.1  # eq. 3
_TINY = 1e-12
_MASK_SALT, _LABEL_SALT = 1, 2


@dataclass(frozen=True, kw_only=True)
class AMLPOptions:
    """What can be set of AMLP.

    Raises:
        InputError: a number is out of its range.
    """

    patch: int = 16
    """Side of a patch in pixels."""
    first_ratio: float = 0.25
    """Share of patches masked in the first epoch."""
    last_ratio: float = 0.80
    """Share masked in the last."""
    foreground: Literal["smaller", "larger", "brighter"] = "smaller"
    """Which of the two clusters is masked first."""
    rank: Literal["margin", "paper"] = "margin"
    """Order inside a cluster: most clearly foreground first, or farthest from the foreground's centre first."""
    fill: Literal["zero", "learned"] = "zero"
    """What stands in masked pixels: 0, or a learned number per channel."""
    rrl: Literal["weight", "detached", "paper"] = "weight"
    """Relative reconstruction loss: error weighted by itself over the mean; divided by a constant mean; eq. 1."""
    rrl_weight: float = 1.0
    """Of the relative reconstruction loss."""
    ccl: Literal["soft", "paper"] = "soft"
    """Category consistency: cross-entropy of the reconstruction's nearness to the two centres, or eq. 3."""
    ccl_weight: float = 0.1
    """Of the category consistency loss."""
    temperature: float = 0.1
    """Of the soft category."""
    dropout: bool = True
    """Keep the backbone's dropout while pre-training; AMLP's own U-Net has none."""

    def __post_init__(self) -> None:
        if not 0.0 < self.first_ratio <= self.last_ratio <= 1.0:
            raise InputError(
                "The share of masked patches must lie between 0 and 1 and rise,"
                f" not go from {self.first_ratio:g} to {self.last_ratio:g}."
            )
        if self.patch < 1 or not self.temperature > 0 or min(self.rrl_weight, self.ccl_weight) < 0:
            raise InputError("patch and temperature must be above 0, rrl_weight and ccl_weight 0 or more.")


def mask_ratio(epoch: int, epochs: int, first: float = 0.25, last: float = 0.80) -> float:
    """Share of patches to mask (eq. 5).

    Args:
        epoch: epochs done, 0 .. epochs - 1; the paper counts from 1.
        epochs: of the run; tau is such that the last epoch reaches `last`.
        first: in the first epoch.
        last: in the last epoch.
    """
    if epochs < 2:
        return first
    return first + (last - first) * math.log(min(epoch, epochs - 1) + 1) / math.log(epochs)


class Categories(NamedTuple):
    """Patches of a batch, told apart."""

    labels: Tensor
    """(B, N) int64: 1 foreground, 0 background."""
    centres: Tensor
    """(B, 2, D): of the background, of the foreground."""
    constant: Tensor
    """(B,) bool: nothing to tell apart."""


class AMLP(Method):
    """Reconstruct the patches most likely to show a lesion."""

    info: ClassVar[MethodInfo] = MethodInfo(
        title="AMLP",
        advice="U-Nets, small bright or dark structures; learns most from what differs from its surroundings.",
        citation="Wang, Wang, Lukasiewicz and Xu, AMLP: Adjustable Masking Lesion Patches for Self-Supervised"
        " Medical Image Segmentation, 2023, arXiv 2309.04312",
    )

    def __init__(self, backbone: Backbone, contract: InputContract, options: AMLPOptions) -> None:
        super().__init__(backbone, contract, options)
        if any(side % options.patch for side in contract.size):
            raise InputError(f"The size {contract.size} is not a multiple of the patch of {options.patch}.")
        patches = math.prod(side // options.patch for side in contract.size)
        if int(patches * options.first_ratio + 1e-9) < 1:
            raise InputError(f"{options.first_ratio:.0%} of {patches} patches is less than one.")
        self.options: AMLPOptions = options
        if not options.dropout:
            without_dropout(backbone)
        self.head = nn.Conv2d(backbone.decoder.width, contract.in_channels, kernel_size=1)
        self.labels = PatchLabels()
        self.fill = nn.Parameter(torch.zeros(contract.in_channels), requires_grad=options.fill == "learned")

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """By name: "paper", "gpu", "cpu"."""
        contract = InputContract(
            size=(144, 144),
            spacing_kji_mm=(1.0, 1.0, 1.0),
            scale="volume",
        )
        recipe = Recipe(
            epochs=800, batch=48, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40, schedule="cosine"
        )
        shorter = Recipe(
            epochs=200, batch=48, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=10, precision="bf16"
        )
        small = InputContract(
            size=(64, 64),
            spacing_kji_mm=(None, 4.0, 4.0),
            window_hu=(-200.0, 400.0),
            mean_hu=100.0,
            std_hu=200.0,
        )
        quick = Recipe(
            epochs=20, batch=8, learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=1
        )
        return {
            "paper": Preset("unet2d_64", contract, recipe, AMLPOptions()),
            "gpu": Preset("unet2d_64", contract, shorter, AMLPOptions()),
            "cpu": Preset("unet2d_16", small, quick, AMLPOptions(patch=8, dropout=False)),
        }

    def anchors(self, volumes: UnlabelledVolumes) -> Sequence[Anchor]:
        """Slices of which more than 5 % is not air."""
        found = [
            anchor
            for anchor in super().anchors(volumes)
            if self._body_share(volumes.slice(anchor.scan, anchor.k)) > _LEAST_BODY
        ]
        if not found:
            raise InputError("No slice shows more than air; check that the scans are CT in Hounsfield units.")
        return found

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """The slice itself, always the same: its patches keep their labels from epoch to epoch."""
        scan = volumes.scans[anchor.scan]
        image = fit_slice(
            volumes.image(self.contract, anchor.scan, anchor.k),
            self.contract.size,
            self.contract.fit,
            fill=self.contract.background(scan.stats),
        )
        return {"image": torch.from_numpy(image), "slice": torch.tensor(slice_key(scan, anchor.k))}

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Reconstruction error of masked patches, RRL and CCL; new labels are put aside while training."""
        image, keys = batch["image"], batch["slice"]
        categories, mask = self._masked(image, keys, moment)
        patches = patchify(image, self.options.patch).float()
        made = patchify(self._reconstructed(image, mask), self.options.patch).float()
        errors = (made - patches).square().mean(2)  # (B, N)
        new = _relabelled(categories, errors.detach(), mask, keys, moment)
        if self.training:
            self.labels.note(keys, new)
        changed = (new != categories.labels) & mask
        prediction = masked_mean(errors, mask)
        relative = relative_loss(errors, mask, self.options.rrl)
        consistency = self._consistency(made, categories, new, changed, mask)
        loss = prediction + self.options.rrl_weight * relative + self.options.ccl_weight * consistency
        return {
            "loss": loss,
            "prediction": prediction,
            "relative": relative,
            "consistency": consistency,
            "relabelled": masked_mean(changed, mask),
            "masked": mask.float().mean(),
        }

    def after_epoch(self, moment: Moment) -> None:
        """New labels become the labels."""
        self.labels.take_over()

    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8]:
        """Rows of image, masked image, and the image with its masked patches as made."""
        image = batch["image"][:4]
        _, mask = self._masked(image, batch["slice"][:4], moment)
        hidden = patchwise(mask, self.options.patch, self.contract.size)
        with looking(self):
            made = torch.where(hidden, self._reconstructed(image, mask).to(image.dtype), image)
        return reconstruction_picture(image, image.masked_fill(hidden, float("nan")), made)

    def _body_share(self, pixels: NDArray[np.int16]) -> float:
        """Part of a slice that is not air, which is 0 in everything but CT."""
        return float(np.mean(pixels > _AIR_BELOW_HU if self.contract.modality == "CT" else pixels != 0))

    def _masked(self, image: Tensor, keys: Tensor, moment: Moment) -> tuple[Categories, Tensor]:
        """Categories of the patches, and the (B, N) mask."""
        patches = patchify(image, self.options.patch)
        categories = oriented(two_means(patches, keys, moment.seed), self.options.foreground)
        categories = categories._replace(labels=self.labels.recall(keys, categories.labels))
        distance = squared_distances(patches.float(), categories.centres).sqrt()  # (B, N, 2)
        rank = distance[..., 1] if self.options.rank == "paper" else distance[..., 0] - distance[..., 1]
        chance = hashed_uniform(keys, patches.shape[1], moment.seed, moment.epoch, _MASK_SALT).float()
        rank = torch.where(categories.constant[:, None], chance, rank)
        ratio = mask_ratio(moment.epoch, moment.epochs, self.options.first_ratio, self.options.last_ratio)
        return categories, foremost(categories.labels, rank, int(patches.shape[1] * ratio + 1e-9))

    def _reconstructed(self, image: Tensor, mask: Tensor) -> Tensor:
        hidden = patchwise(mask, self.options.patch, self.contract.size)
        fill = self.fill.to(image.dtype).view(1, -1, 1, 1)
        result: Tensor = self.head(self.backbone(torch.where(hidden, fill, image)))
        return result

    def _consistency(
        self, made: Tensor, categories: Categories, new: Tensor, changed: Tensor, mask: Tensor
    ) -> Tensor:
        if self.options.ccl == "paper":
            old = categories.labels.float()
            printed = -(new * torch.log(old + _XI) + (1 - new) * torch.log(1 - old + _XI))  # eq. 3
            return (printed * changed).sum() / mask.sum()
        nearness = squared_distances(made, categories.centres) / (-self.options.temperature * made.shape[2])
        entropy = F.cross_entropy(nearness.flatten(0, 1), new.flatten(), reduction="none").view_as(mask)
        return (entropy * changed).sum() / mask.sum()


def oriented(clusters: TwoMeans, foreground: Literal["smaller", "larger", "brighter"]) -> Categories:
    """Decide which cluster is the foreground; of two equally large ones, the brighter."""
    labels, centres, constant = clusters
    brightness = centres.mean(2)  # (B, 2)
    swap = brightness[:, 0] > brightness[:, 1]
    if foreground != "brighter":
        excess = 2 * labels.sum(1) - labels.shape[1]  # of cluster 1 over cluster 0
        swap = torch.where(excess == 0, swap, excess > 0 if foreground == "smaller" else excess < 0)
    swap = swap & ~constant
    labels = torch.where(swap[:, None], 1 - labels, labels)
    return Categories(labels, torch.where(swap[:, None, None], centres.flip(1), centres), constant)


def foremost(labels: Tensor, rank: Tensor, count: int) -> Tensor:
    """Mask `count` patches: those labelled 1 before those labelled 0, the highest rank first in each.

    Args:
        labels: (B, N).
        rank: (B, N).
        count: patches to mask, the same in every sample.

    Returns:
        (B, N) bool.
    """
    order = rank.argsort(stable=True, dim=1, descending=True)
    order = order.gather(1, labels.gather(1, order).argsort(stable=True, dim=1, descending=True))
    return torch.zeros_like(labels, dtype=torch.bool).scatter(1, order[:, :count], True)


def relative_loss(errors: Tensor, mask: Tensor, form: Literal["weight", "detached", "paper"]) -> Tensor:
    """Relative reconstruction loss.

    Args:
        errors: (B, N) of every patch.
        mask: (B, N); only masked patches count, and an image's mean is over its masked ones (eq. 2).
        form: "weight": mean of sg(L_i / mean L) L_i; "detached": mean of L_i / sg(mean L); "paper": of L_i / mean L.
    """
    mean = ((errors * mask).sum(1) / mask.sum(1))[:, None].clamp(min=_TINY)  # (B, 1)
    if form == "weight":
        return masked_mean((errors / mean).detach() * errors, mask)
    return masked_mean(errors / (mean if form == "paper" else mean.detach()), mask)


def _relabelled(categories: Categories, errors: Tensor, mask: Tensor, keys: Tensor, moment: Moment) -> Tensor:
    """(B, N) new labels: kept where label and error agree, else drawn; only masked patches can change."""
    mean = (errors * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    disagree = (categories.labels == 1) != (errors >= mean)
    chance = hashed_uniform(keys, errors.shape[1], moment.seed, moment.epoch, _LABEL_SALT)
    doubtful = disagree & mask & ~categories.constant[:, None]
    return torch.where(doubtful, (chance < 0.5).long(), categories.labels)
