"""What a self-supervised method is to the rest of the program; a method is one file beside this one.

A method draws one sample from the unlabelled volumes, and turns a batch of them into a loss. The training loop
(`medssl.training`) does the rest and knows nothing of any method. All that is random comes from generators derived from
the run's seed and the step or sample, so a resumed run repeats exactly what an uninterrupted one does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..backbones import build_backbone
from ..backbones.base import Backbone
from ..datasets.input_contract import InputContract
from ..learning.recipe import Recipe

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = ["Anchor", "Method", "MethodInfo", "Moment", "Preset", "without_dropout"]


@dataclass(frozen=True)
class MethodInfo:
    """For lists, help texts and model cards."""

    title: str
    """Name as the paper writes it."""
    advice: str
    """One line: when to choose it."""
    citation: str
    """Authors, title, year, identifier."""
    supervision: Literal["none", "presence"] = "none"
    """What it must be told beyond the images: nothing, or which slices show the organ (weakly supervised)."""


@dataclass(frozen=True)
class Preset:
    """A complete setting of a method."""

    backbone: str
    """Key of BACKBONES."""
    contract: InputContract
    recipe: Recipe
    options: Any
    """The method's own frozen dataclass of options."""


@dataclass(frozen=True)
class Anchor:
    """Where a sample is drawn: a slice of a scan, in 3D the slice a block lies around."""

    scan: int
    """Index into `UnlabelledVolumes.scans`."""
    k: int
    """Slice index on the scan's prepared grid."""


@dataclass(frozen=True)
class Moment:
    """Where training stands; schedules are functions of it, never of the clock or of hidden state."""

    step: int
    """Optimiser steps done before this one."""
    steps: int
    """Of the whole run."""
    epoch: int
    """Epochs done before this one."""
    epochs: int
    """Of the whole run."""
    seed: int = 0
    """Of the run."""
    rank: int = 0
    """Of this process."""
    part: int = 0
    """Of an accumulated batch."""

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the last."""
        return self.step / max(self.steps - 1, 1)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for this step, different for every process and part."""
        generator = torch.Generator(device)
        state = np.random.SeedSequence([self.seed, self.step, self.rank, self.part]).generate_state(
            1, np.uint64
        )
        return generator.manual_seed(int(state[0] >> np.uint64(1)))


class Method(nn.Module, ABC):
    """A self-supervised method on a backbone.

    Subclasses add heads in `__init__`. Parameters that take a gradient are optimised; buffers and
    `get_extra_state` are saved and restored with a run.
    """

    info: ClassVar[MethodInfo]
    transfers: ClassVar[tuple[str, ...]] = ("encoder",)
    """Parts of the backbone that an encoder file keeps; ("encoder", "decoder") where the paper keeps both."""

    def __init__(self, backbone: Backbone, contract: InputContract, options: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.contract = contract
        self.options = options
        self.seed = 0
        """Of the run, set by the training loop: for what is drawn once and then stays through all epochs."""

    @staticmethod
    @abstractmethod
    def presets() -> Mapping[str, Preset]:
        """By name: "paper" (as published), "gpu" (one 24 GB GPU), "cpu" (two cores, minutes)."""

    @classmethod
    def build(cls, preset: Preset) -> Method:
        """Backbone with random weights, and the method around it."""
        return cls(
            build_backbone(preset.backbone, preset.contract.in_channels), preset.contract, preset.options
        )

    def anchors(self, volumes: UnlabelledVolumes) -> Sequence[Anchor]:
        """All samples of one epoch, in a fixed order; the loop shuffles them. By default every slice once.

        Raises:
            InputError: the method cannot work on these volumes (too few scans, no organ ...).
        """
        return [Anchor(n, k) for n, scan in enumerate(volumes.scans) for k in range(scan.shape_kji[0])]

    @abstractmethod
    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """One sample, without a batch axis; it runs in the loader's processes, on the CPU.

        Images are (C, *contract.size) float32 as `contract.apply` gives them.
        """

    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Scalars by name from stacked samples: "loss" is minimised, the rest is logged."""

    def before_step(self, moment: Moment) -> None:
        """Called before each optimiser step, on every process."""

    def after_step(self, moment: Moment) -> None:
        """Called after each optimiser step, e.g. to move a teacher."""

    def after_epoch(self, moment: Moment) -> None:
        """Called after each epoch, e.g. to take over new labels."""

    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8] | None:
        """(H, W, 3) picture of what has been learnt (reconstructions, nearest neighbours), or None."""
        return None

    def transferable(self) -> dict[str, Tensor]:
        """Weights worth keeping, by their names in the backbone ("encoder. ...")."""
        return {
            name: tensor
            for name, tensor in self.backbone.state_dict().items()
            if name.split(".", 1)[0] in self.transfers
        }


def without_dropout(module: nn.Module) -> None:
    """Let dropout pass everything on, in training too; nothing that is saved changes."""
    for part in module.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
