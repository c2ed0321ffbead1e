"""Masking, editable area and overwriting: what is written is what the Segment Editor's own logic would make of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medssl.scene import nodes, writing  # noqa: E402
from medssl.scene.layers import array_kji, to_matrix  # noqa: E402
from medssl.scene.rules import EditingRules  # noqa: E402

NODE, EDITOR = slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLSegmentEditorNode
AREAS = (
    NODE.EditAllowedEverywhere,
    NODE.EditAllowedInsideAllSegments,
    NODE.EditAllowedInsideVisibleSegments,
    NODE.EditAllowedOutsideAllSegments,
    NODE.EditAllowedOutsideVisibleSegments,
    NODE.EditAllowedInsideSingleSegment,
)
OVERWRITES = (EDITOR.OverwriteAllSegments, EDITOR.OverwriteVisibleSegments, EDITOR.OverwriteNone)


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[1:6, 2:10, 2:13] = np.random.default_rng(seed).random((5, 8, 11)) > 0.5
    return mask


def a_segmentation(a_scene: Any, volume_node: Any, volume: Any) -> tuple[Any, list[str]]:
    """Liver, spleen and a hidden kidney that touch but do not overlap."""
    node, ids = a_scene.add_segmentation(volume_node, "liver", "spleen", "kidney")
    owner = np.random.default_rng(5).integers(0, 4, volume.shape_kji)
    inside = blob(volume.shape_kji, 1)
    for number, segment in enumerate(ids, start=1):
        mask = inside & (owner == number)
        writing.write_slices(node, segment, volume, 0, dict(enumerate(mask)))
    node.GetDisplayNode().SetSegmentVisibility(ids[2], False)
    return node, ids


def an_editor(a_scene: Any, node: Any, volume_node: Any, segment: str) -> Any:
    editor = a_scene.scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(node)
    editor.SetAndObserveSourceVolumeNode(volume_node)
    editor.SetSelectedSegmentID(segment)
    return editor


def written_by_slicer(a_scene: Any, editor: Any, node: Any, segment: str, volume: Any, mask: Any) -> None:
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(a_scene.scene)
    logic.SetSegmentEditorNode(editor)
    image = slicer.vtkOrientedImageData()
    k, j, i = mask.shape
    image.SetExtent(0, i - 1, 0, j - 1, 0, k - 1)
    image.SetImageToWorldMatrix(to_matrix(volume.ijk_to_ras))
    image.AllocateScalars(3, 1)
    array_kji(image)[...] = mask
    logic.ModifySegmentByLabelmap(node, segment, image, logic.ModificationModeSet, True, False)


@pytest.mark.parametrize(
    ("area", "overwrite", "intensities"), list(itertools.product(AREAS, OVERWRITES, (None, (-400.0, 600.0))))
)
def test_every_choice_of_the_segment_editor_is_respected_as_its_own_effects_do(
    a_scene: Any, area: int, overwrite: int, intensities: tuple[float, float] | None
) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    wanted = blob(volume.shape_kji, 9)
    results = []
    for is_slicers in (True, False):
        node, ids = a_segmentation(a_scene, volume_node, volume)
        editor = an_editor(a_scene, node, volume_node, ids[0])
        editor.SetMaskMode(area)
        editor.SetMaskSegmentID(ids[1])
        editor.SetOverwriteMode(overwrite)
        if intensities:
            editor.SetSourceVolumeIntensityMask(True)
            editor.SetSourceVolumeIntensityMaskRange(*intensities)
        if is_slicers:
            written_by_slicer(a_scene, editor, node, ids[0], volume, wanted)
        else:
            rules = EditingRules.from_editor(editor)
            writing.write_slices(node, ids[0], volume, 0, dict(enumerate(wanted)), rules)
        results.append([nodes.read_segment(node, i, volume) for i in ids])
    for slicers, ours in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, slicers)
