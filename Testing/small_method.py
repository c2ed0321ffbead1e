"""A small real method on a small real network, for tests of what surrounds methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from medssl.backbones import BACKBONES, Backbone, BackboneSpec, Decoder, Encoder
from medssl.datasets.data import UnlabelledVolumes, fit_slice
from medssl.datasets.input_contract import InputContract
from medssl.learning.averaging import follow, frozen_copy
from medssl.learning.recipe import Recipe
from medssl.methods import METHODS, Anchor, Method, MethodInfo, Moment, Preset
from medssl.phantom import phantom_ct
from numpy.typing import NDArray
from torch import Tensor, nn


class SmallEncoder(Encoder):
    """Two levels, with a batch norm."""

    spatial_dims, widths, strides, divisor, stem = 2, (6, 8), (1, 2), 2, ("first.weight",)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.first = nn.Conv2d(in_channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = torch.relu(self.norm(self.first(x)))
        return [fine, torch.relu(self.second(fine))]


class SmallDecoder(Decoder):
    """Up once."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[0] + self.up(features[1])


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """Of `Fill`."""

    noise: float = 0.3
    """Deviation of the noise."""
    dropout: float = 0.2
    """Share of the channels."""
    broken_after: int = -1
    """Step at which the loss is no number."""


class Fill(Method):
    """Removes noise, as a teacher that is an average of the student does too; has dropout and counts its epochs."""

    info = MethodInfo("Fill", "For tests.", "Nobody, 2026")

    def __init__(self, backbone: Backbone, contract: InputContract, options: FillOptions) -> None:
        super().__init__(backbone, contract, options)
        self.dropout = nn.Dropout2d(options.dropout)
        self.head = nn.Conv2d(backbone.decoder.width, contract.in_channels, 1)
        self.teacher = frozen_copy(backbone)
        self.register_buffer("epochs_seen", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        contract = InputContract(size=(16, 16))
        recipe = Recipe(epochs=4, batch=8, learning_rate=5e-3, weight_decay=0.01, warmup_epochs=1)
        return {name: Preset("small", contract, recipe, FillOptions()) for name in ("paper", "gpu", "cpu")}

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        image = fit_slice(
            volumes.image(self.contract, anchor.scan, anchor.k), self.contract.size, "crop", rng
        )
        return {"image": torch.from_numpy(image)}

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        image = batch["image"]
        noise = torch.randn(image.shape, generator=moment.generator(image.device), device=image.device)
        features = self.backbone(image + self.options.noise * noise)
        with torch.no_grad():
            guide = self.teacher(image)
        error = (self.head(self.dropout(features)) - image).square().mean()
        loss = error + 1e-3 * (features - guide).square().mean()
        if moment.step == self.options.broken_after:
            loss = loss * float("nan")
        return {"loss": loss, "error": error}

    def after_step(self, moment: Moment) -> None:
        follow(self.teacher, self.backbone, 0.9)

    def after_epoch(self, moment: Moment) -> None:
        self.epochs_seen += 1

    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8]:
        grey = (255 * self.backbone(batch["image"])[0, 0].clamp(0, 1)).byte().cpu().numpy()
        return np.repeat(grey[..., None], 3, axis=2)


SMALL = BackboneSpec(
    "For tests", 2, lambda channels: Backbone(SmallEncoder(channels), SmallDecoder()), "none"
)


def register() -> None:
    """Make `fill` and `small` known by name."""
    BACKBONES["small"], METHODS["fill"] = SMALL, Fill


def small_volumes() -> UnlabelledVolumes:
    """Two phantoms of 12 and 10 slices."""
    arrays = [
        phantom_ct(seed=seed, shape_kji=(slices, 24, 28), spacing_kji_mm=(20.0, 15.0, 15.0)).volume.voxels_kji
        for seed, slices in ((0, 12), (1, 10))
    ]
    return UnlabelledVolumes.from_arrays(arrays)
