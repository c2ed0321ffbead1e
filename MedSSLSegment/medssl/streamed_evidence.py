"""What a propagation says of each slice, gathered as it streams by, and the slices worth annotating next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .prompts import Reference
from .results import SliceMask
from .suggest import Evidence, suggest_slices
from .volume import Volume

__all__ = ["StreamedEvidence", "suggestions"]


class StreamedEvidence:
    """Area and confidence of every slice that came by.

    Args:
        volume: being propagated through.
        axis: slice axis 0, 1 or 2.
        references: where propagation starts.
    """

    def __init__(self, volume: Volume, axis: int, references: Sequence[Reference]) -> None:
        self._axis = axis
        self._step_mm = volume.spacing_kji_mm[axis]
        names = dict.fromkeys(reference.segment for reference in references)
        self._references = {
            name: tuple(r.prompt.index for r in references if r.segment == name) for name in names
        }
        count = volume.shape_kji[axis]
        self._area = {name: np.zeros(count) for name in names}
        self._confidence = {name: np.full(count, np.nan) for name in names}

    def add(self, event: object) -> None:
        """Take note of a slice; of anything else, nothing."""
        if isinstance(event, SliceMask):
            self._area[event.segment][event.index] = np.count_nonzero(event.mask)
            self._confidence[event.segment][event.index] = event.confidence

    def evidence(self) -> list[Evidence]:
        """Of each segment."""
        return [
            Evidence(
                segment=name,
                axis=self._axis,
                step_mm=self._step_mm,
                area_px=area,
                references=self._references[name],
                confidence=self._confidence[name],
            )
            for name, area in self._area.items()
        ]


def suggestions(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Slices worth annotating next as plain facts, the best first; none where nothing was found."""
    if not any(np.any(each.area_px > 0) for each in evidence):
        return []
    return [asdict(suggestion) for suggestion in suggest_slices(evidence)]
