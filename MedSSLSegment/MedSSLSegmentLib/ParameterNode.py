"""What the panel remembers in the scene."""

import enum

from medssl.registry import DEFAULT_MODEL
from medssl.scene.nodes import Overlap
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper


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


class OtherSegments(enum.Enum):
    """What happens to other segments. Saved by name: renaming one breaks saved scenes."""

    OVERLAP = Overlap.ALLOW
    KEEP = Overlap.KEEP_OTHERS
    OVERWRITE = Overlap.OVERWRITE

    def label(self) -> str:
        """Text in the panel."""
        return {
            OtherSegments.OVERLAP: _("May overlap"),
            OtherSegments.KEEP: _("Keep their voxels"),
            OtherSegments.OVERWRITE: _("Are overwritten"),
        }[self]


@parameterNodeWrapper
class MedSSLSegmentParameterNode:
    """The user's choices.

    inputVolume - The volume to segment.
    segmentation - The segmentation with the painted slices; results are written into it.
    view - Which way the painted slices lie.
    overlap - What happens where a result meets another segment.
    model - Id of the model, from the registry.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    view: SliceView = SliceView.AS_PAINTED
    overlap: OtherSegments = OtherSegments.OVERLAP
    model: str = DEFAULT_MODEL
