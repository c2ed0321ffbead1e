"""What is known of each slice after predicting, segmenting or propagating, as `suggest` weighs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case
from .segmentation import Segmentation
from .suggest import Evidence, embed_slices
from .volume import Volume, as_stack

if TYPE_CHECKING:
    from .inference import Prediction
    from .pipeline import PropagationResult
    from .segmenting import SegmentResult

__all__ = ["of_prediction", "of_propagation", "of_segmentation", "vouched_references"]

_MARGIN_PX = 5
"""The model's uncertainty counts this far around a segment."""

References = Mapping[str, Sequence[int]]
"""Slices that a person vouches for, by segment."""
_NONE: References = MappingProxyType({})


def of_propagation(volume: Volume, result: PropagationResult, absent: References = _NONE) -> list[Evidence]:
    """Evidence of a propagation; its reference slices are those it started from.

    Args:
        volume: the image.
        result: of `medssl.pipeline.propagate_volume`.
        absent: slices on which somebody has seen that a segment is not there.
    """
    return list(
        _evidence(
            volume, result.segmentation, result.axis, result.references, absent, confidence=result.confidence
        )
    )


def of_prediction(
    volume: Volume, result: Prediction, axis: int, references: References, absent: References = _NONE
) -> list[Evidence]:
    """Evidence of a model's coarse mask alone.

    Args:
        volume: the image.
        result: of `medssl.inference.predict_volume`.
        axis: slice axis to suggest slices of.
        references: slices of this volume on which somebody has annotated the segment already.
        absent: slices on which somebody has seen that it is not there.
    """
    return list(
        _evidence(volume, result.segmentation, axis, references, absent, uncertainty_kji=result.uncertainty)
    )


def of_segmentation(
    volume: Volume, result: SegmentResult, references: References, absent: References = _NONE
) -> Iterator[Evidence]:
    """Evidence of the full pipeline, of one segment after the other: of a large volume each takes a while.

    Args:
        volume: the image.
        result: of `medssl.segmenting.segment_volume`.
        references: slices on which a person has annotated the segment; those that the program chose itself do not
            count.
        absent: slices on which a person has seen that it is not there.
    """
    return _evidence(
        volume,
        result.segmentation,
        result.axis,
        references,
        absent,
        confidence=result.confidence,
        agreement=result.agreement,
        uncertainty_kji=result.uncertainty_kji,
    )


def vouched_references(case: Case | None, axis: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Slices across an axis that somebody vouches for in a case; none without one.

    Returns:
        By segment, the slices that show it, and those on which it is not.
    """
    present: dict[str, list[int]] = {}
    absent: dict[str, list[int]] = {}
    if case is None or not any(vouched.axis == axis for vouched in case.vouched):
        return present, absent
    labels = case.segmentation()
    for name in {vouched.segment for vouched in case.vouched if vouched.axis == axis}:
        known = {n for v in case.vouched if (v.segment, v.axis) == (name, axis) for n in v.indices}
        shown = set(np.flatnonzero(as_stack(labels.mask(name), axis).any(axis=(1, 2))).tolist())
        present[name], absent[name] = sorted(known & shown), sorted(known - shown)
    return present, absent


def _evidence(
    volume: Volume,
    found: Segmentation,
    axis: int,
    references: References,
    absent: References = _NONE,
    *,
    confidence: Mapping[str, NDArray[np.float32]] | None = None,
    agreement: Mapping[str, NDArray[np.float32]] | None = None,
    uncertainty_kji: NDArray[np.float32] | None = None,
) -> Iterator[Evidence]:
    embeddings = embed_slices(volume, axis)
    for name in found.names:
        stack = as_stack(found.mask(name), axis)
        uncertainty = None if uncertainty_kji is None else _around(stack, as_stack(uncertainty_kji, axis))
        yield Evidence(
            segment=name,
            axis=axis,
            step_mm=volume.spacing_kji_mm[axis],
            area_px=np.count_nonzero(stack, axis=(1, 2)).astype(float),
            references=tuple(references.get(name, ())),
            absent=tuple(absent.get(name, ())),
            confidence=_curve(confidence, name),
            uncertainty=uncertainty,
            agreement=_curve(agreement, name),
            embeddings=embeddings,
        )


def _curve(curves: Mapping[str, NDArray[Any]] | None, name: str) -> NDArray[np.float64] | None:
    return None if curves is None else np.asarray(curves[name], np.float64)


def _around(stack: NDArray[np.bool_], uncertainty: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) mean uncertainty in the box of a segment, a margin wider; 0 where the segment is not."""
    mean = np.zeros(len(stack))
    for index in np.flatnonzero(stack.any(axis=(1, 2))):
        box = tuple(_span(stack[index].any(axis=other)) for other in (1, 0))
        mean[index] = uncertainty[index][box].mean()
    return mean


def _span(inside: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(inside)
    return slice(max(0, int(places[0]) - _MARGIN_PX), int(places[-1]) + 1 + _MARGIN_PX)
