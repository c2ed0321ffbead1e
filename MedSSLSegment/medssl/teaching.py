"""From the case store to what fine-tuning learns from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from .cases import Case
from .errors import InputError
from .labelled import LabelledCase

__all__ = ["labelled_cases"]


def labelled_cases(cases: Sequence[Case], segments: Sequence[str]) -> list[LabelledCase]:
    """Turn cases into teaching material for some segments.

    A slice teaches exactly the segments that are vouched for on it. A case whose slices differ in this becomes several
    labelled cases of one volume and one patient, each with its own segments and slices; the others are unknown there,
    not background.

    Args:
        cases: of a store.
        segments: names of those wanted.

    Raises:
        InputError: none of the segments is vouched for on any slice.
    """
    material = [part for case in cases for part in _parts(case, segments)]
    if not material:
        known = sorted({v.segment for case in cases for v in case.vouched})
        raise InputError(
            f"No slice of {', '.join(segments)} is vouched for in any case;"
            f" the cases teach {', '.join(known) or 'nothing'}."
        )
    return material


def _parts(case: Case, segments: Sequence[str]) -> list[LabelledCase]:
    taught_on: dict[tuple[int, int], set[str]] = defaultdict(set)
    for v in case.vouched:
        if v.segment in segments:
            for index in v.indices:
                taught_on[v.axis, index].add(v.segment)
    slices_of: dict[frozenset[str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for (axis, index), names in sorted(taught_on.items()):
        slices_of[frozenset(names)][axis].append(index)
    if not slices_of:
        return []
    volume, segmentation = case.volume(), case.segmentation()
    parts = []
    for taught, vouched in slices_of.items():
        kept = tuple(segment for segment in segmentation.segments if segment.name in taught)
        labels = segmentation.labels_kji.copy()
        for segment in segmentation.segments:
            if segment not in kept:
                labels[labels == segment.label] = 0
        part = replace(segmentation, labels_kji=labels, segments=kept)
        parts.append(LabelledCase(case.name, case.patient, volume, part, vouched=dict(vouched)))
    return parts
