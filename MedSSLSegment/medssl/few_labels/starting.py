"""What a fine-tuning run begins with: an encoder's weights, an earlier model's, or random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.input_contract import InputContract
from ..events import Log
from ..learning.transfer import EncoderFile, load_encoder, read_encoder
from .annotated_samples import AnnotatedCase, by_scan
from .base_model import BaseModel, load_base, read_base
from .segmenter import ModelInfo, SegmentationModel

__all__ = ["Start", "lineage"]


@dataclass(frozen=True, eq=False)
class Start:
    """An encoder, an earlier model, or neither for random weights."""

    encoder: EncoderFile | None = None
    base: BaseModel | None = None

    @classmethod
    def read(cls, encoder: str | None, model: str | None, store: Path) -> Start:
        """Read what a run begins with.

        Args:
            encoder: file, or name of a method; or None.
            model: of one's own, as `read_base` takes it; or None.
            store: model store.

        Raises:
            InputError: there is no such model.
            ModelError: the file is missing, damaged, or holds something else.
        """
        if model is not None:
            return cls(base=read_base(model, store))
        return cls() if encoder is None else cls(read_encoder(encoder))

    @property
    def is_trained(self) -> bool:
        """Whether the weights have learnt something already."""
        return self.encoder is not None or self.base is not None

    @property
    def backbone(self) -> str | None:
        """Key of BACKBONES; None leaves it open."""
        if self.base is not None:
            return self.base.model.info.backbone
        return None if self.encoder is None else self.encoder.backbone

    @property
    def contract(self) -> InputContract | None:
        """Input that the weights expect; None leaves it open."""
        if self.base is not None:
            return self.base.model.info.contract
        return None if self.encoder is None else self.encoder.contract

    def put_into(self, model: SegmentationModel) -> Iterator[Log]:
        """Copy the weights into a model and say what became of them.

        Raises:
            ModelError: too few of them fit.
        """
        if self.encoder is not None:
            yield Log(str(load_encoder(model.network.backbone, self.encoder)))
        elif self.base is not None:
            yield Log(str(load_base(model.network, model.info.names, self.base)))


def lineage(info: ModelInfo, start: Start, measure_on: Sequence[AnnotatedCase]) -> Iterator[Log]:
    """Say what a new model has to do with earlier ones.

    Args:
        info: of the new one.
        start: what it begins with.
        measure_on: what is held out.
    """
    if info.follows:
        name = info.follows.partition(":")[0]
        anew = (
            "" if start.base else f", learnt anew; with --from {name} it would begin with what {name} knows"
        )
        yield Log(
            f"There is a model {name} already ({info.follows}); this one becomes its next version{anew}."
        )
    held_out = by_scan(measure_on).items()
    known = [parts[0].scan.name for scan, parts in held_out if scan in info.base.get("scans", ())]
    if known:
        yield Log(
            f"{info.base['model']} has learnt from {', '.join(known)} before, so the Dice measured there is too good."
        )
