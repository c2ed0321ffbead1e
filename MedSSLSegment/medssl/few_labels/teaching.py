"""From the case store to what fine-tuning learns from."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..cases import Case
from ..datasets.labelled import LabelledCase
from ..errors import InputError
from ..segmentation import Segmentation
from ..volume import Volume

__all__ = ["labelled_cases", "taught_segments", "teaching_cases", "unchanged_cases"]


def labelled_cases(cases: Sequence[Case], segments: Sequence[str]) -> list[LabelledCase]:
    """Turn cases into teaching material for some segments.

    A slice teaches exactly the segments that are vouched for on it. A case whose slices differ in this becomes several
    labelled cases of one volume and one patient, each with its own segments and slices; the others are unknown there,
    not background. Volumes and labels are read when a part is: all cases at once would fill the memory.

    Args:
        cases: of a store.
        segments: names of those wanted.

    Raises:
        InputError: none of the segments is vouched for on any slice.
    """
    return [part for case in teaching_cases(cases, segments) for part in _parts(case, segments)]


def taught_segments(cases: Sequence[Case]) -> list[str]:
    """Names of all segments that are vouched for on some slice, in the order of the cases.

    Raises:
        InputError: there are none.
    """
    vouched = {v.segment for case in cases for v in case.vouched}
    names = dict.fromkeys(s.name for case in cases for s in case.segments if s.name in vouched)
    if not names:
        raise InputError(
            "The case store has no case to learn from; add one first, e.g. with: medssl cases add"
        )
    return list(names)


def teaching_cases(cases: Sequence[Case], segments: Sequence[str]) -> list[Case]:
    """The cases in which some of the segments are vouched for.

    Raises:
        InputError: a segment is vouched for on no slice of any case.
    """
    known = {v.segment for case in cases for v in case.vouched}
    missing = [name for name in segments if name not in known]
    if missing:
        raise InputError(
            f"No slice of {', '.join(missing)} is vouched for in any case;"
            f" the cases teach {', '.join(sorted(known)) or 'nothing'}."
        )
    return [case for case in cases if any(v.segment in segments for v in case.vouched)]


def unchanged_cases(cases: Sequence[Case], fingerprints: Mapping[str, str]) -> list[Case]:
    """The cases that a run began with.

    Args:
        cases: as they are now.
        fingerprints: as they were, by case id.

    Raises:
        InputError: one is gone or teaches something else now.
    """
    now = {case.id: case for case in cases}
    for case_id, fingerprint in fingerprints.items():
        if case_id not in now or now[case_id].fingerprint != fingerprint:
            raise InputError(
                f"The case {case_id} has changed since the run began, so it cannot go on as it was;"
                " start a new run in another folder."
            )
    return [case for case in cases if case.id in fingerprints]


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
    volume = _Shared(case.volume)
    colors = {segment.name: segment.color_rgb for segment in case.segments}
    return [
        LabelledCase(
            case.name,
            case.patient,
            volume,
            partial(_only, case, taught),
            vouched=dict(vouched),
            colors=colors,
        )
        for taught, vouched in slices_of.items()
    ]


def _only(case: Case, names: Collection[str]) -> Segmentation:
    """A case's segments of these names."""
    whole = case.segmentation()
    kept = tuple(segment for segment in whole.segments if segment.name in names)
    others = [segment.label for segment in whole.segments if segment not in kept]
    return replace(
        whole, labels_kji=np.where(np.isin(whole.labels_kji, others), 0, whole.labels_kji), segments=kept
    )


class _Shared:
    """Reads a volume when it is asked for, and no second time as long as somebody has it."""

    def __init__(self, read: Callable[[], Volume]) -> None:
        self._read = read
        self._last: Callable[[], Volume | None] = lambda: None

    def __call__(self) -> Volume:
        volume = self._last() or self._read()
        self._last = weakref.ref(volume)
        return volume
