"""Volumes become nodes of the scene and come back as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medssl.scene import nodes  # noqa: E402
from medssl.volume import Volume  # noqa: E402


def test_a_volume_goes_through_a_node_unchanged(a_scene: Any, a_grid: np.ndarray) -> None:
    voxels = np.random.default_rng(2).integers(-1000, 1000, (4, 6, 5)).astype(np.int16)
    volume = Volume(voxels, a_grid, "CT of a phantom")
    node = nodes.add_volume_node(a_scene.scene, volume, (400.0, 40.0))
    again = nodes.read_volume_node(node)
    np.testing.assert_array_equal(again.voxels_kji, volume.voxels_kji)
    np.testing.assert_allclose(again.ijk_to_ras, volume.ijk_to_ras, atol=1e-9)
    assert again.name == "CT of a phantom"
    display = node.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel()) == (400.0, 40.0, 0)


def test_what_is_made_from_a_volume_is_put_beside_it_in_the_list_of_data(a_scene: Any) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(a_scene.scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    volume_item = hierarchy.CreateItem(study, volume_node)
    segmentation_node = a_scene.scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), segmentation_node)
    nodes.place_beside(a_scene.scene, segmentation_node, volume_node)
    assert hierarchy.GetItemParent(item) == hierarchy.GetItemParent(volume_item) == study
