"""What the panel remembers in the scene."""

import enum
from typing import Annotated

from medssl.registry import DEFAULT_MODEL
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

WHOLE_RANGE = -1
"""In place of a slice number: the volume's first, or its last."""
_SliceNumber = Annotated[int, WithinRange(WHOLE_RANGE, 100_000)]


class SliceView(enum.Enum):
    """Which way the painted slices lie. Saved by name: renaming one breaks saved scenes."""

    AS_PAINTED = None
    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"

    def label(self) -> str:
        """Text in the panel."""
        return {
            SliceView.AS_PAINTED: _("As painted"),
            SliceView.AXIAL: _("Axial"),
            SliceView.CORONAL: _("Coronal"),
            SliceView.SAGITTAL: _("Sagittal"),
        }[self]


class Direction(enum.Enum):
    """Which way to go from the reference slices. Saved by name: renaming one breaks saved scenes."""

    BOTH = "both"
    HIGHER = "higher"
    LOWER = "lower"

    def label(self) -> str:
        """Text in the panel."""
        return {
            Direction.BOTH: _("Both ways"),
            Direction.HIGHER: _("To higher slices"),
            Direction.LOWER: _("To lower slices"),
        }[self]


@parameterNodeWrapper
class MedSSLSegmentParameterNode:
    """The user's choices.

    inputVolume - The volume to segment.
    segmentation - The segmentation with the painted slices; results are written into it.
    view - Which way the painted slices lie.
    direction - Which way to go from the reference slices.
    firstSlice, lastSlice - The range to fill, on the grid of inputVolume.
    stop - Whether to stop where the object ends.
    model - Id of the model that propagates, from the registry.
    promptModel - Id of the model that answers prompts, from the registry.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    view: SliceView = SliceView.AS_PAINTED
    direction: Direction = Direction.BOTH
    firstSlice: _SliceNumber = WHOLE_RANGE
    lastSlice: _SliceNumber = WHOLE_RANGE
    stop: bool = True
    model: str = DEFAULT_MODEL
    promptModel: str = DEFAULT_MODEL
