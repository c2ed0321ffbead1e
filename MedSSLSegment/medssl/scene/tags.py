"""What the program remembers of a segment, in tags of the segment itself.

Tags are saved with the segmentation, are copied with a segment, and follow undo and redo. 3D Slicer's storage separates
them by "|", so no tag holds one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import vtk

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
    entries = (entry.split("/") for entry in _read(segmentation_node, segment_id, _PREDICTED).split())
    return {(int(axis), int(index)): int(mark, 16) for axis, index, mark in entries}


def note_predicted(segmentation_node: Any, segment_id: str, slices: Mapping[tuple[int, int], int]) -> None:
    """Replace what `predicted_slices` says."""
    entries = (f"{axis}/{index}/{mark:08x}" for (axis, index), mark in sorted(slices.items()))
    _write(segmentation_node, segment_id, _PREDICTED, " ".join(entries))


def confidences(segmentation_node: Any, segment_id: str) -> dict[tuple[int, int], float]:
    """How sure the program was of each slice it wrote: {(axis, index): 0 .. 1}."""
    entries = (entry.split("/") for entry in _read(segmentation_node, segment_id, _CONFIDENCE).split())
    return {(int(axis), int(index)): int(percent) / 100 for axis, index, percent in entries}


def note_confidences(segmentation_node: Any, segment_id: str, new: Mapping[tuple[int, int], float]) -> None:
    """Remember the confidence of some slices, to a hundredth; the others keep theirs."""
    known = confidences(segmentation_node, segment_id) | dict(new)
    entries = (f"{axis}/{index}/{round(100 * value)}" for (axis, index), value in sorted(known.items()))
    _write(segmentation_node, segment_id, _CONFIDENCE, " ".join(entries))


def left_out(segmentation_node: Any, segment_id: str) -> frozenset[tuple[int, int]]:
    """Slices, as (axis, index), that are drawn and that the user does not want to be reference slices."""
    entries = (entry.split("/") for entry in _read(segmentation_node, segment_id, _LEFT_OUT).split())
    return frozenset((int(axis), int(index)) for axis, index in entries)


def note_left_out(segmentation_node: Any, segment_id: str, slices: Collection[tuple[int, int]]) -> None:
    """Replace what `left_out` says."""
    text = " ".join(f"{axis}/{index}" for axis, index in sorted(slices))
    _write(segmentation_node, segment_id, _LEFT_OUT, text)


def steps(segmentation_node: Any, segment_id: str) -> tuple[Step, ...]:
    """What the program did to a segment, oldest first."""
    return tuple(_step(known) for known in json.loads(_read(segmentation_node, segment_id, _STEPS) or "[]"))


def add_step(segmentation_node: Any, segment_id: str, step: Step) -> None:
    """Remember one more step, also for an export as DICOM SEG; the oldest go when there are many."""
    kept = [*steps(segmentation_node, segment_id), step][-STEPS_KEPT:]
    _write(segmentation_node, segment_id, _DICOM_TYPE, "SEMIAUTOMATIC")
    _write(segmentation_node, segment_id, _DICOM_NAME, f"MedSSLSegment {step.model}".replace("|", "/"))
    text = json.dumps([asdict(each) for each in kept], separators=(",", ":"))
    _write(segmentation_node, segment_id, _STEPS, text.replace("|", "\\u007c"))


def _step(known: dict[str, Any]) -> Step:
    rows = tuple((first, last) for first, last in known.get("missed", ()))
    lists = {"references": tuple(known["references"]), "marks": tuple(known.get("marks", ()))}
    return Step(**{**known, **lists, "missed": rows})


def _read(segmentation_node: Any, segment_id: str, tag: str) -> str:
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    value = vtk.reference("")
    return str(value) if segment is not None and segment.GetTag(tag, value) else ""


def _write(segmentation_node: Any, segment_id: str, tag: str, text: str) -> None:
    if text != _read(segmentation_node, segment_id, tag):
        segmentation_node.GetSegmentation().GetSegment(segment_id).SetTag(tag, text)
