"""Segmentation models: a backbone with a 1 x 1 convolution, and the file such a model is kept in.

Axis letters: B samples, C channels, S the spatial axes (J, I in 2D, K, J, I in 3D).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..backbones import Backbone, build_backbone
from ..checkpoints import load_into, read_checkpoint, write_checkpoint
from ..datasets.input_contract import InputContract
from ..errors import InputError, ModelError
from ..segmentation import Segment

__all__ = ["ModelInfo", "SegmentationModel", "Segmenter", "read_model", "write_model"]

_KIND = "model"
_FORMAT_VERSION = 1
"""Raised when an older program could not use the file rightly; the oldest files do not say theirs."""


class Segmenter(nn.Module):
    """A backbone and a head that tells background and segments apart.

    Args:
        backbone: gives one map at full resolution.
        segments: how many there are, without the background.
    """

    def __init__(self, backbone: Backbone, segments: int) -> None:
        super().__init__()
        if segments < 1:
            raise InputError("A model needs at least one segment to find.")
        convolution = nn.Conv2d if backbone.spatial_dims == 2 else nn.Conv3d
        self.backbone = backbone
        self.head = convolution(backbone.decoder.width, segments + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) to logits (B, 1 + segments, *S); channel 0 is the background."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Everything about a model but its weights: how it is used and where it comes from."""

    backbone: str
    """Key of BACKBONES."""
    contract: InputContract
    segments: tuple[Segment, ...]
    """Channel n + 1 of the network finds segments[n]."""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    """Where training started: method and scan ids of the encoder; empty for random weights."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Or the earlier model it began with: its name as "model", and as "scans" all that it had learnt from."""
    follows: str = ""
    """The version that was in use under its name when training began, e.g. "liver:2"; empty for a first one."""
    cases: tuple[str, ...] = ()
    """Fingerprints of the scans it was trained on."""
    scans: tuple[str, ...] = ()
    """Ids of the scans that were learnt from; those that were held out are not among them."""
    spacing_kji_mm: tuple[tuple[float, float], ...] = ()
    """Least and largest voxel size of those scans, along the canonical K, J, I; empty where it is not known."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the training run."""
    dice: Mapping[str, float] = field(default_factory=dict)
    """Measured per segment, 0 .. 1, on what was held out; empty when nothing was."""
    version: str = __version__
    """Of the program that trained it."""

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        if not names or len(set(names)) < len(names):
            raise InputError(f"A model needs segments of different names, not {names}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The segments' names, in the order of the network's channels."""
        return tuple(segment.name for segment in self.segments)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file's header; `from_json` is the inverse."""
        return {
            "kind": _KIND,
            "format_version": _FORMAT_VERSION,
            "backbone": self.backbone,
            "contract": self.contract.to_json(),
            "segments": [asdict(segment) for segment in self.segments],
            "encoder": dict(self.encoder),
            "base": dict(self.base),
            "follows": self.follows,
            "cases": list(self.cases),
            "scans": list(self.scans),
            "spacing_kji_mm": [list(span) for span in self.spacing_kji_mm],
            "settings": dict(self.settings),
            "dice": dict(self.dice),
            "version": self.version,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelInfo:
        """Read what `to_json` gave.

        Raises:
            ModelError: the header is not that of a model, is of a newer version, or a field is missing.
        """
        if values.get("kind") != _KIND:
            raise ModelError(
                "The file holds no segmentation model; give one that 'medssl finetune' has written."
            )
        if values.get("format_version", 1) != _FORMAT_VERSION:
            raise ModelError(
                f"The model was made by medssl {values.get('version')} and has the format {values['format_version']},"
                f" but this program ({__version__}) reads {_FORMAT_VERSION}; update the program."
            )
        try:
            return cls(
                backbone=values["backbone"],
                contract=InputContract.from_json(values["contract"]),
                segments=_segments(values["segments"]),
                encoder=values["encoder"],
                base=values.get("base", {}),  # this and the next three are not in the oldest files
                follows=values.get("follows", ""),
                scans=tuple(values.get("scans", ())),
                spacing_kji_mm=_spans(values.get("spacing_kji_mm", ())),
                cases=tuple(values["cases"]),
                settings=values["settings"],
                dice=values["dice"],
                version=values["version"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"The model's header is damaged ({error}).") from error


@dataclass(frozen=True, eq=False)
class SegmentationModel:
    """A network with what must be known to use it."""

    network: Segmenter
    info: ModelInfo

    @classmethod
    def build(cls, info: ModelInfo) -> SegmentationModel:
        """Make the network with random weights, drawn from torch's generator."""
        return cls(
            Segmenter(build_backbone(info.backbone, info.contract.in_channels), len(info.segments)), info
        )


def write_model(path: str | Path, model: SegmentationModel) -> None:
    """Write a model as one safetensors file, whole or not at all.

    Raises:
        StorageError: no space or no permission; nothing is left behind.
    """
    write_checkpoint(path, model.network.state_dict(), model.info.to_json())


def read_model(path: str | Path, device: torch.device | str = "cpu") -> SegmentationModel:
    """Read a model, ready to predict.

    Raises:
        ModelError: the file is missing, damaged, no model, or its weights do not fit its backbone.
        InputError: its backbone is unknown to this version.
    """
    tensors, header = read_checkpoint(path)
    try:
        model = SegmentationModel.build(ModelInfo.from_json(header))
    except ModelError as error:
        raise ModelError(f"{Path(path).name}: {error}") from error
    load_into(model.network, tensors)
    model.network.eval().to(device)
    return model


def _segments(values: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    return tuple(Segment(v["name"], int(v["label"]), tuple(v["color_rgb"])) for v in values)


def _spans(values: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(least), float(largest)) for least, largest in values)
