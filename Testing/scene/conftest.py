"""A real MRML scene with volumes on awkward grids; the worker is the only thing that is faked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fake_client import FakeClient

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

SHAPE_KJI = (7, 12, 15)


def _turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return about_x @ about_z


def _grid(direction: np.ndarray, spacing_ijk: Sequence[float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(spacing_ijk)
    affine[:3, 3] = (-103.7, 58.25, 311.125)
    return affine


GRIDS = {
    "straight": _grid(np.eye(3), (1, 1, 1)),
    "anisotropic": _grid(np.diag([-1.0, -1.0, 1.0]), (0.7, 0.7, 5.0)),
    "left-handed": _grid(np.diag([-1.0, 1.0, 1.0]), (0.9, 0.8, 2.5)),
    "oblique": _grid(_turned(23.0), (0.68359375, 0.68359375, 3.2)),
    "oblique and left-handed": _grid(_turned(-37.0) @ np.diag([1.0, 1.0, -1.0]), (0.6, 1.1, 4.0)),
}


class Scene:
    """A scene, its segmentation logic, and short ways to fill it."""

    shape_kji = SHAPE_KJI
    grids = GRIDS

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerSegmentationsModuleLogic()
        self.logic.SetMRMLScene(self.scene)

    def add_volume(
        self, affine: np.ndarray, shape_kji: Sequence[int] = SHAPE_KJI, dtype: Any = np.int16
    ) -> Any:
        """A scalar volume node with noise in it."""
        from vtk.util import numpy_support

        values = np.random.default_rng(1).integers(-1000, 1000, tuple(shape_kji)).astype(dtype)
        image = vtk.vtkImageData()
        image.SetDimensions(*values.shape[::-1])
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(values.ravel(), deep=True))
        node = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
        node.SetAndObserveImageData(image)
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(affine.ravel().tolist())
        node.SetIJKToRASMatrix(matrix)
        return node

    def add_segmentation(self, volume_node: Any, *names: str) -> tuple[Any, list[str]]:
        """A segmentation node on the volume's grid with one empty segment for each name, and their ids."""
        from medssl.scene.nodes import create_segmentation_node

        node = create_segmentation_node(self.scene, volume_node)
        return node, [node.GetSegmentation().AddEmptySegment("", name) for name in names]

    def add_transform(self, matrix_rows: np.ndarray) -> Any:
        """A linear transform node."""
        node = self.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "table shift")
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(matrix_rows.ravel().tolist())
        node.SetMatrixTransformToParent(matrix)
        return node


@pytest.fixture(params=GRIDS.values(), ids=GRIDS.keys())
def a_grid(request: pytest.FixtureRequest) -> np.ndarray:
    """ijk_to_ras of one grid after the other."""
    return request.param


@pytest.fixture
def a_scene() -> Scene:
    return Scene()


@pytest.fixture
def a_client() -> FakeClient:
    return FakeClient()
