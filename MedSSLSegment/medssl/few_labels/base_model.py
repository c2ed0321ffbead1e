"""Fine-tuning that begins with the weights of an earlier model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ..errors import ModelError
from ..learning.transfer import EncoderFile, EncoderTransfer, load_encoder
from .model_store import ModelStore, model_file
from .segmenter import SegmentationModel, Segmenter, read_model

__all__ = ["BaseModel", "BaseTransfer", "load_base", "read_base"]

_LEAST_FRACTION = 0.9
"""Of the encoder's numbers that must fit."""


@dataclass(frozen=True, eq=False)
class BaseModel:
    """An earlier model."""

    name: str
    """E.g. "liver:2", or the name of a file."""
    model: SegmentationModel
    """On the CPU."""

    @property
    def scans(self) -> tuple[str, ...]:
        """Ids of all scans that its weights have learnt from, those of its own base included."""
        info = self.model.info
        return tuple(sorted({*info.scans, *info.base.get("scans", ())}))


@dataclass(frozen=True)
class BaseTransfer(EncoderTransfer):
    """What became of every tensor when an earlier model went into another; `fraction` is of the encoder's numbers."""

    base: str = ""
    """The earlier model."""
    kept: tuple[str, ...] = ()
    """Segments that both find: their part of the last layer was copied."""
    new: tuple[str, ...] = ()
    """Segments that the earlier model did not find."""
    dropped: tuple[str, ...] = ()
    """Segments that it found and this one does not."""

    def __str__(self) -> str:
        """One line for a person."""
        line = f"Begun with {self.base}: {super().__str__()}; it knew {', '.join(self.kept) or 'none of the segments'}"
        if self.new:
            line += f"; new to it: {', '.join(self.new)}"
        if self.dropped:
            line += f"; not taught any more, so no longer found: {', '.join(self.dropped)}"
        return line


def read_base(model: str, store: str | Path) -> BaseModel:
    """Read the model to begin with.

    Args:
        model: "liver", "liver:2", a model file or a run folder.
        store: model store.

    Raises:
        InputError: there is no such model.
        ModelError: its file is damaged.
    """
    path = model_file(model, str(store))
    inside = path.parent.parent == ModelStore(store).folder
    name = ModelStore(store).find(model).id if inside and not model.endswith(path.suffix) else path.name
    return BaseModel(name, read_model(path))


def load_base(network: Segmenter, segments: Sequence[str], base: BaseModel) -> BaseTransfer:
    """Put an earlier model's weights into a network, or leave it untouched when too few of them fit.

    Backbones are copied tensor by tensor; of the last layer, the background and the segments that both find.

    Args:
        network: takes the weights; keeps its device and types.
        segments: names, in the order of its channels.
        base: of `read_base`.

    Raises:
        ModelError: less than 90 % of the encoder would transfer; the message names what did not fit.
    """
    own = base.model.info
    try:
        report = load_encoder(network.backbone, _as_encoder(base), _LEAST_FRACTION)
    except ModelError as error:
        raise ModelError(
            f"This run cannot begin with {base.name}, whose backbone is {own.backbone}; leave --backbone out,"
            f" or begin with another model. {error}"
        ) from error
    kept = tuple(name for name in segments if name in own.names)
    to = [0, *(segments.index(name) + 1 for name in kept)]
    come = [0, *(own.names.index(name) + 1 for name in kept)]
    earlier = dict(base.model.network.head.named_parameters())
    with torch.no_grad():
        for name, parameter in network.head.named_parameters():
            parameter[to] = earlier[name][come].to(parameter)
    return BaseTransfer(
        **{field.name: getattr(report, field.name) for field in fields(report)},
        base=base.name,
        kept=kept,
        new=tuple(name for name in segments if name not in own.names),
        dropped=tuple(name for name in own.names if name not in segments),
    )


def _as_encoder(base: BaseModel) -> EncoderFile:
    """The backbone of a model as if pre-training had made it, decoder included."""
    info = base.model.info
    return EncoderFile(
        tensors=base.model.network.backbone.state_dict(),
        method="finetuned",
        backbone=info.backbone,
        contract=info.contract,
        transfers=("encoder", "decoder"),
        data=base.scans,
        step=0,
        meta={},
    )
