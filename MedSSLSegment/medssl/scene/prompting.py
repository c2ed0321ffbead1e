"""Prompts that stay with their slice: points, boxes and scribbles, kept in the scene with the segmentation.

A prompt is placed by a world position in any view, oblique ones too: it belongs to the slice of the voxel grid that
passes through that position. Prompts are stored in pixels of their slice in an attribute of the segmentation node, so
they are saved with the scene, move with a transform, and go when the segmentation goes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ProtocolError
from ..prompts import SlicePrompt
from ..volume import Volume
from ..wire.codec import from_plain

__all__ = [
    "Mark",
    "Place",
    "PromptBook",
    "as_prompt",
    "axis_of_normal",
    "place_of",
    "position_ras_mm",
    "slice_at",
]

_ATTRIBUTE = "MedSSLSegment.Prompts"
_PENDING = "MedSSLSegment.PendingPrompts"
_SLICE_KEY = re.compile(r"[012]/[0-9]{1,9}")
_POINTS_PER_SCRIBBLE = 5
_POINTS_OF = {"point": (1, 1), "box": (2, 2), "scribble": (1, math.inf), "another": (0, 0)}
"""How many points there are to each kind of mark, at least and at most."""


@dataclass(frozen=True)
class Place:
    """A slice of a segment."""

    segment: str
    """Id of the segment."""
    axis: int
    """Slice axis, 0 = K, 1 = J, 2 = I."""
    index: int
    """Slice index along `axis`."""


@dataclass(frozen=True)
class Mark:
    """One thing a person put on a slice."""

    kind: Literal["point", "box", "scribble", "another"]
    """The last asks for another answer to the click, or the box, before it."""
    points_xy_px: tuple[tuple[float, float], ...] = ()
    """A point; two corners; or the way of a scribble. (column, row) on the slice."""
    positive: bool = True
    """On the object, or off it; a box is always on it."""


class PromptBook:
    """The prompts of one segmentation node, by slice, in the order they were placed.

    Args:
        segmentation_node: vtkMRMLSegmentationNode that keeps them.
    """

    def __init__(self, segmentation_node: Any) -> None:
        self._node = segmentation_node

    def marks(self, place: Place) -> tuple[Mark, ...]:
        """What was placed on a slice, oldest first."""
        entries = self._read().get(place.segment, {}).get(_slice_key(place), [])
        return tuple(mark for entry in entries if (mark := _mark(entry)) is not None)

    def places(self) -> tuple[Place, ...]:
        """Every slice that has prompts."""
        return tuple(
            Place(segment, *(int(n) for n in key.split("/")))
            for segment, slices in self._read().items()
            for key, entries in slices.items()
            if entries
        )

    def add(self, place: Place, mark: Mark) -> None:
        """Place one more."""
        self.replace(place, (*self.marks(place), mark))

    def take_back(self, place: Place) -> bool:
        """Remove the last one of a slice; False where there is none."""
        marks = self.marks(place)
        self.replace(place, marks[:-1])
        return bool(marks)

    def replace(self, place: Place, marks: Sequence[Mark]) -> None:
        """Have exactly these on a slice."""
        book = self._read()
        slices = book.setdefault(place.segment, {})
        slices[_slice_key(place)] = [[m.kind, m.positive, m.points_xy_px] for m in marks]
        if not marks:
            del slices[_slice_key(place)]
        self._node.SetAttribute(_ATTRIBUTE, json.dumps(book, separators=(",", ":")))

    def pending(self) -> tuple[Place, ...]:
        """Slices whose prompts were neither accepted nor dropped, the one prompted last at the end."""
        waiting = _json(self._node, _PENDING, list)
        prompted = [place for place in self.places() if self.marks(place)]
        return tuple(p for entry in waiting for p in prompted if [p.segment, p.axis, p.index] == entry)

    def note_pending(self, place: Place, is_pending: bool) -> None:
        """Remember whether the prompts of a slice still wait to be accepted."""
        others = [each for each in self.pending() if each != place]
        entries = [[p.segment, p.axis, p.index] for p in (*others, *([place] if is_pending else []))]
        self._node.SetAttribute(_PENDING, json.dumps(entries, separators=(",", ":")))

    def _read(self) -> dict[str, dict[str, list[Any]]]:
        book = _json(self._node, _ATTRIBUTE, dict)
        return {
            segment: {
                key: entries
                for key, entries in slices.items()
                if _SLICE_KEY.fullmatch(key) and isinstance(entries, list)
            }
            for segment, slices in book.items()
            if isinstance(slices, dict)
        }


def as_prompt(place: Place, marks: Sequence[Mark]) -> SlicePrompt | None:
    """What a model is asked; None as long as nothing says where the object is.

    Each mark of kind "another" asks for the next of the answers to the first click.

    Of several boxes the last one counts. A scribble stands for a few points along its way.
    """
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    box: NDArray[np.float32] | None = None
    for mark in marks:
        if mark.kind == "box":
            corners = np.array(mark.points_xy_px, np.float32)
            box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
            continue
        way = _along(mark.points_xy_px) if mark.kind == "scribble" else mark.points_xy_px
        points += way
        labels += [int(mark.positive)] * len(way)
    if box is None and 1 not in labels:
        return None
    return SlicePrompt(
        place.axis,
        place.index,
        np.array(points, np.float32).reshape(-1, 2),
        np.array(labels, np.int32),
        box,
        choice=sum(mark.kind == "another" for mark in marks),
    )


def place_of(
    volume: Volume, segment: str, position_ras_mm: Sequence[float], axis: int
) -> tuple[Place, tuple[float, float]]:
    """The slice across `axis` through a position, and the pixel (column, row) on it.

    Raises:
        InputError: the position lies outside the volume.
    """
    ijk = np.linalg.solve(volume.ijk_to_ras, [*position_ras_mm, 1.0])[:3]
    kji = ijk[::-1]
    if any(not -0.5 <= v < n - 0.5 for v, n in zip(kji, volume.shape_kji, strict=True)):
        raise InputError("That position lies outside the volume; place the prompt on the image.")
    row, column = (float(kji[a]) for a in (0, 1, 2) if a != axis)
    return Place(segment, axis, int(np.rint(kji[axis]))), (column, row)


def slice_at(volume: Volume, position_ras_mm: Sequence[float], axis: int) -> int:
    """Index of the slice across `axis` through a position; may lie beside the volume."""
    ijk = np.linalg.solve(volume.ijk_to_ras, [*position_ras_mm, 1.0])[:3]
    return int(np.rint(ijk[2 - axis]))


def position_ras_mm(volume: Volume, place: Place, point_xy_px: Sequence[float]) -> NDArray[np.float64]:
    """(3,) world position of a pixel of a slice; the inverse of `place_of`."""
    kji = [point_xy_px[1], point_xy_px[0]]
    kji.insert(place.axis, place.index)
    position: NDArray[np.float64] = (volume.ijk_to_ras @ [*kji[::-1], 1.0])[:3]
    return position


def axis_of_normal(volume: Volume, normal_ras: Sequence[float]) -> int:
    """The slice axis that a view with this normal looks along most nearly."""
    steps = volume.ijk_to_ras[:3, :3] / np.linalg.norm(volume.ijk_to_ras[:3, :3], axis=0)
    return 2 - int(np.argmax(np.abs(np.asarray(normal_ras, float) @ steps)))


def _json(node: Any, attribute: str, kind: type[Any]) -> Any:
    """What an attribute holds; nothing of that kind where it cannot be read, as other hands may have written it."""
    try:
        value = json.loads(node.GetAttribute(attribute) or "null")
    except ValueError:
        value = None
    return value if isinstance(value, kind) else kind()


def _mark(entry: Any) -> Mark | None:
    """None where it is none that could have been placed."""
    try:
        kind, positive, points = entry
        fields = {"kind": kind, "positive": positive, "points_xy_px": points}
        mark = from_plain(Mark, fields, "mark")
    except (TypeError, ValueError, ProtocolError):
        return None
    least, most = _POINTS_OF[mark.kind]
    return mark if least <= len(mark.points_xy_px) <= most else None


def _slice_key(place: Place) -> str:
    return f"{place.axis}/{place.index}"


def _along(way_xy: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A few points spread evenly along a polyline."""
    way = np.array(way_xy, float)
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
    if lengths[-1] == 0:
        return [(float(way[0, 0]), float(way[0, 1]))]
    at = np.linspace(0, lengths[-1], _POINTS_PER_SCRIBBLE)
    return [(float(np.interp(d, lengths, way[:, 0])), float(np.interp(d, lengths, way[:, 1]))) for d in at]
