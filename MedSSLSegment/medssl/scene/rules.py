"""What may be changed: the Segment Editor's masking, applied to what the program writes.

    rules = EditingRules.from_editor(segment_editor_node)

A radiologist sets these once in the Segment Editor (editable area, editable intensity range, modify other segments) and
they hold for every tool, so they hold for a predicted slice as well. A test compares every combination with
vtkSlicerSegmentEditorLogic, which is what the Segment Editor's own effects end up in. 3D Slicer knows no locked
segments; a hidden one is protected by the choices that speak of visible segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal

import slicer

__all__ = ["EditingRules", "Overlap"]

_Area = tuple[Literal["everywhere", "inside", "outside"], Literal["all", "visible", "one"]]
_Overwrite = Literal["all", "visible", "none"]


@cache
def _areas() -> dict[int, _Area]:
    """Mask modes of the Segment Editor and what they stand for."""
    node = slicer.vtkMRMLSegmentationNode
    return {
        node.EditAllowedEverywhere: ("everywhere", "all"),
        node.EditAllowedInsideAllSegments: ("inside", "all"),
        node.EditAllowedInsideVisibleSegments: ("inside", "visible"),
        node.EditAllowedOutsideAllSegments: ("outside", "all"),
        node.EditAllowedOutsideVisibleSegments: ("outside", "visible"),
        node.EditAllowedInsideSingleSegment: ("inside", "one"),
    }


@cache
def _overwrites() -> dict[int, _Overwrite]:
    """Overwrite modes of the Segment Editor; a module of 3D Slicer brings the class, so it is asked for late."""
    node = slicer.vtkMRMLSegmentEditorNode
    return {
        node.OverwriteAllSegments: "all",
        node.OverwriteVisibleSegments: "visible",
        node.OverwriteNone: "none",
    }


class Overlap(Enum):
    """What happens where a written slice meets another segment, for those who have no Segment Editor."""

    ALLOW = "allow"
    """Both segments keep the voxel: they overlap."""
    KEEP_OTHERS = "keep-others"
    """The other segment keeps the voxel; it is left out of what is written."""
    OVERWRITE = "overwrite"
    """The written segment takes the voxel; it is erased from the other."""


@dataclass(frozen=True)
class EditingRules:
    """Where a segment may be changed, and what becomes of others there."""

    area: Literal["everywhere", "inside", "outside"] = "everywhere"
    """Editable area: anywhere, or only inside or outside some segments."""
    area_of: Literal["all", "visible", "one"] = "all"
    """Which segments `area` speaks of."""
    area_segment: str = ""
    """Its id, where `area_of` is "one"."""
    intensities: tuple[float, float] | None = None
    """Editable intensity range of the volume, ends included; None = any."""
    overwrite: Literal["all", "visible", "none"] = "none"
    """Which other segments lose the voxels that are written."""

    @classmethod
    def from_editor(cls, editor_node: Any) -> EditingRules:
        """The rules set in a vtkMRMLSegmentEditorNode."""
        area, area_of = _areas()[editor_node.GetMaskMode()]
        intensities = None
        if editor_node.GetSourceVolumeIntensityMask():
            low, high = editor_node.GetSourceVolumeIntensityMaskRange()
            intensities = (low, high)
        overwrite = _overwrites()[editor_node.GetOverwriteMode()]
        return cls(area, area_of, editor_node.GetMaskSegmentID() or "", intensities, overwrite)

    @classmethod
    def from_overlap(cls, overlap: Overlap) -> EditingRules:
        """The rules a plain choice stands for."""
        return {
            Overlap.ALLOW: cls(),
            Overlap.KEEP_OTHERS: cls(area="outside"),
            Overlap.OVERWRITE: cls(overwrite="all"),
        }[overlap]

    def segments_of_area(self, segmentation_node: Any, segment_id: str) -> tuple[str, ...]:
        """The segments that `area` speaks of when `segment_id` is changed; it is not outside of itself."""
        if self.area == "everywhere":
            return ()
        if self.area_of == "one":
            return (self.area_segment,) if self.area_segment else ()
        ids = _ids(segmentation_node, self.area_of == "visible")
        return tuple(i for i in ids if self.area == "inside" or i != segment_id)

    def segments_to_overwrite(self, segmentation_node: Any, segment_id: str) -> tuple[str, ...]:
        """The segments that lose the voxels `segment_id` is given."""
        if self.overwrite == "none":
            return ()
        return tuple(i for i in _ids(segmentation_node, self.overwrite == "visible") if i != segment_id)


def _ids(segmentation_node: Any, visible_only: bool) -> tuple[str, ...]:
    ids = tuple(segmentation_node.GetSegmentation().GetSegmentIDs())
    display = segmentation_node.GetDisplayNode()
    if not visible_only:
        return ids
    return tuple(i for i in ids if display is not None and display.GetSegmentVisibility(i))
