"""What the program remembers of a segment, in tags of the segment itself.

Tags are saved with the segmentation, are copied with a segment, and follow undo and redo. 3D Slicer's storage separates
them by "|", so no tag holds one.

A scene may come from another version of the program or from other hands: what cannot be read of a tag is passed over,
so that a slice counts as drawn by a person rather than as written by the program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import vtk

from ..errors import ProtocolError
from ..wire.codec import from_plain

__all__ = [
    "STEPS_KEPT",
    "Step",
    "add_step",
    "confidences",
    "left_out",
    "note_confidences",
    "note_left_out",
    "note_predicted",
    "predicted_slices",
    "steps",
]

STEPS_KEPT = 50
"""Of each segment; older ones are forgotten."""

_PREDICTED = "MedSSLSegment.Predicted"
_CONFIDENCE = "MedSSLSegment.Confidence"
_LEFT_OUT = "MedSSLSegment.LeftOut"
_STEPS = "MedSSLSegment.Provenance"
_DICOM_TYPE, _DICOM_NAME = "DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"
"""What 3D Slicer writes into a DICOM SEG (DICOMSegmentationPlugin.py); without them it says that a person drew all."""


@dataclass(frozen=True)
class Step:
    """One thing the program did to a segment: enough to say in a report how it came about."""

    what: str
    """"prompt", "propagate", "refine", "predict" or "segment"."""
    model: str
    """Id of the model."""
    sha256: str = ""
    """Of the model's weights; empty where it is not known."""
    axis: int = 0
    """Slice axis of the indices."""
    references: tuple[int, ...] = ()
    """Slices it started from."""
    marks: tuple[int, ...] = ()
    """Fingerprints of the masks on them, in the same order; none where they were not kept."""
    slices: int = 0
    """How many slices it wrote."""
    missed: tuple[tuple[int, int], ...] = ()
    """(first, last) of the rows of slices that wait for a propagation still: it, or one before it, was stopped."""
    options: dict[str, Any] = field(default_factory=dict)
    """What was asked for."""
    program: str = ""
    """Version of medssl."""
    when: str = ""
    """UTC, ISO 8601."""


def predicted_slices(segmentation_node: Any, segment_id: str) -> dict[tuple[int, int], int]:
    """Slices that were filled by the program: {(axis, index): fingerprint of the mask as written}."""
    entries = _entries(segmentation_node, segment_id, _PREDICTED, "/([0-9a-f]{1,8})")
    return {(axis, index): int(mark, 16) for axis, index, mark in entries}


def note_predicted(segmentation_node: Any, segment_id: str, slices: Mapping[tuple[int, int], int]) -> None:
    """Replace what `predicted_slices` says."""
    entries = (f"{axis}/{index}/{mark:08x}" for (axis, index), mark in sorted(slices.items()))
    _write(segmentation_node, segment_id, _PREDICTED, " ".join(entries))


def confidences(segmentation_node: Any, segment_id: str) -> dict[tuple[int, int], float]:
    """How sure the program was of each slice it wrote: {(axis, index): 0 .. 1}."""
    entries = _entries(segmentation_node, segment_id, _CONFIDENCE, "/(100|[0-9]{1,2})")
    return {(axis, index): int(percent) / 100 for axis, index, percent in entries}


def note_confidences(segmentation_node: Any, segment_id: str, new: Mapping[tuple[int, int], float]) -> None:
    """Remember the confidence of some slices, to a hundredth; the others keep theirs."""
    known = confidences(segmentation_node, segment_id) | dict(new)
    entries = (f"{axis}/{index}/{round(100 * value)}" for (axis, index), value in sorted(known.items()))
    _write(segmentation_node, segment_id, _CONFIDENCE, " ".join(entries))


def left_out(segmentation_node: Any, segment_id: str) -> frozenset[tuple[int, int]]:
    """Slices, as (axis, index), that are drawn and that the user does not want to be reference slices."""
    entries = _entries(segmentation_node, segment_id, _LEFT_OUT, "()")
    return frozenset((axis, index) for axis, index, _ in entries)


def note_left_out(segmentation_node: Any, segment_id: str, slices: Collection[tuple[int, int]]) -> None:
    """Replace what `left_out` says."""
    text = " ".join(f"{axis}/{index}" for axis, index in sorted(slices))
    _write(segmentation_node, segment_id, _LEFT_OUT, text)


def steps(segmentation_node: Any, segment_id: str) -> tuple[Step, ...]:
    """What the program did to a segment, oldest first."""
    try:
        known = json.loads(_read(segmentation_node, segment_id, _STEPS) or "[]")
    except ValueError:
        known = []
    found = (_step(each) for each in known) if isinstance(known, list) else ()
    return tuple(step for step in found if step is not None)


def add_step(segmentation_node: Any, segment_id: str, step: Step) -> None:
    """Remember one more step, also for an export as DICOM SEG; the oldest go when there are many."""
    kept = [*steps(segmentation_node, segment_id), step][-STEPS_KEPT:]
    _write(segmentation_node, segment_id, _DICOM_TYPE, "SEMIAUTOMATIC")
    _write(segmentation_node, segment_id, _DICOM_NAME, f"MedSSLSegment {step.model}".replace("|", "/"))
    text = json.dumps([asdict(each) for each in kept], separators=(",", ":"))
    _write(segmentation_node, segment_id, _STEPS, text.replace("|", "\\u007c"))


def _step(known: Any) -> Step | None:
    """None where it is none; what a later version of the program notes besides is passed over."""
    names = {f.name for f in fields(Step)}
    try:
        return from_plain(Step, {name: known[name] for name in names & set(known)}, "step")
    except (TypeError, ProtocolError):
        return None


def _entries(segmentation_node: Any, segment_id: str, tag: str, note: str) -> Iterator[tuple[int, int, str]]:
    """(axis, index, what is noted of that slice), where the note has the form of a pattern with one group."""
    for entry in _read(segmentation_node, segment_id, tag).split():
        if match := re.fullmatch(f"([012])/([0-9]{{1,9}}){note}", entry):
            yield int(match[1]), int(match[2]), match[3]


def _read(segmentation_node: Any, segment_id: str, tag: str) -> str:
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    value = vtk.reference("")
    return str(value) if segment is not None and segment.GetTag(tag, value) else ""


def _write(segmentation_node: Any, segment_id: str, tag: str, text: str) -> None:
    if text != _read(segmentation_node, segment_id, tag):
        segmentation_node.GetSegmentation().GetSegment(segment_id).SetTag(tag, text)
