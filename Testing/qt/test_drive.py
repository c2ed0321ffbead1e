"""A day at the panel, with a real worker process: click, paint, propagate, cancel, undo, kill, save, reopen, teach.

The engine in the worker calls bright voxels the segment, a hundredth of a second a slice.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

import vtk
from fake_worker_command import FakeCommand
from medssl.client import WorkerClient
from PySide6 import QtWidgets
from shibokensupport import feature

feature.set_selection(2, __name__)

SHAPE_KJI = (60, 12, 15)
PATIENCE_S = 60.0


class Drive:
    """The panel on a volume of noise, and what a person does with it."""

    def __init__(self, desk: Any, client: WorkerClient) -> None:
        self.desk, self.ui, self.panel, self.client = desk, desk.ui, desk.panel, client
        self.session = desk.panel.session
        self.session.client = client
        self.session.wait_s = 0.0
        self.nodes, self.writing, self.scene = desk.nodes, desk.writing, desk.application.scene
        noise = np.random.default_rng(3).integers(-1000, 1000, SHAPE_KJI).astype(np.int16)
        self.volume_node = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT abdomen")
        desk.application.updateVolumeFromArray(self.volume_node, noise)
        self.bright = noise > 0
        self.ui.volumeSelector.setCurrentNode(self.volume_node)
        self.ui.segmentationSelector.setCurrentNode(None)
        self.ui.addSegmentButton.click()
        self.wait(lambda: not self.session.is_looking)

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Let the event loop and the panel's timer run until something is so."""
        end = time.monotonic() + PATIENCE_S
        while not is_done():
            assert time.monotonic() < end
            QtWidgets.QApplication.processEvents()
            self.panel.onTimer()
            time.sleep(0.005)

    def settle(self) -> None:
        """Until nothing runs and the segments have been looked through."""
        self.wait(lambda: not self.is_running())
        self.panel.onLook()
        self.wait(lambda: not self.session.is_looking and not self.session.prompts.is_waiting)

    def is_running(self) -> bool:
        return bool(self.session.status.state.value == "running")

    def click(self, tool: str, k: int, j: int, i: int) -> None:
        button = self.panel.annotate.tools[tool]
        if not button.checked:
            button.click()
        markups = self.scene.GetFirstNodeByName("MedSSLSegment prompt")
        markups.AddControlPointWorld(vtk.vtkVector3d(float(i), float(j), float(k)))
        QtWidgets.QApplication.processEvents()
        self.settle()

    def paint(self, index: int, mask: np.ndarray) -> None:
        """As the Segment Editor's effects do: the state is saved, then the slice is changed."""
        self.ui.segmentEditor.saveStateForUndo()
        node = self.session.segmentation_node
        self.writing.write_slices(node, self.liver, self.session.volume(), 0, {index: mask})
        self.settle()

    @property
    def liver(self) -> str:
        return str(self.session.segments()[0].id)

    def masks(self) -> np.ndarray:
        found: np.ndarray = self.nodes.read_segment(
            self.session.segmentation_node, self.liver, self.session.volume()
        )
        return found

    def filled(self) -> int:
        return int(self.masks().any(axis=(1, 2)).sum())

    def errors(self) -> list[str]:
        return list(self.desk.application.errors_shown)


@pytest.fixture
def a_drive(a_desk: Any) -> Iterator[Drive]:
    with WorkerClient(FakeCommand()) as client:
        yield Drive(a_desk, client)


def test_a_day_at_the_panel(a_drive: Drive, tmp_path: Path) -> None:
    drive, ui = a_drive, a_drive.ui

    # Click, look, accept.
    drive.click("positive", 10, 5, 7)
    assert ui.promptLabel.text == "90% sure. Enter accepts, Esc drops. A shows another answer."
    ui.acceptButton.click()
    np.testing.assert_array_equal(drive.masks()[10], drive.bright[10])
    ui.positiveButton.click()

    # Paint another slice.
    painted = np.zeros(SHAPE_KJI[1:], bool)
    painted[3:8, 4:9] = True
    drive.paint(40, painted)
    assert [r.index for r in drive.session.references()] == [10, 40]

    # Propagate, cancel in the middle, undo, redo.
    ui.propagateButton.click()
    drive.wait(lambda: drive.filled() > 12)
    ui.cancelButton.click()
    drive.settle()
    partly = drive.masks()
    assert 12 < drive.filled() < SHAPE_KJI[0]
    np.testing.assert_array_equal(partly[40], painted)
    ui.undoButton.click()
    assert drive.filled() == 2
    ui.redoButton.click()
    np.testing.assert_array_equal(drive.masks(), partly)
    ui.undoButton.click()

    # The worker is killed under way: one sentence, nothing lost, and the next run works.
    ui.propagateButton.click()
    drive.wait(lambda: drive.filled() > 12)
    os.kill(drive.client.hello().result(PATIENCE_S).pid, signal.SIGKILL)
    drive.wait(lambda: not drive.is_running())
    assert len(drive.errors()) == 1
    assert "SIGKILL" in drive.errors()[0]
    assert drive.filled() > 12
    ui.undoButton.click()
    drive.settle()
    ui.propagateButton.click()
    drive.settle()
    assert drive.filled() == SHAPE_KJI[0]
    np.testing.assert_array_equal(drive.masks()[40], painted)
    assert len(drive.errors()) == 1

    # Suggest.
    ui.suggestButton.click()
    assert ui.suggestionLabel.text.startswith("Slice ")

    # Teach: the slices somebody vouches for become a case.
    drive.desk.application.says_yes = True
    ui.teachCollapsibleButton.collapsed = False
    drive.wait(lambda: not drive.panel.teachDesk.is_waiting)
    ui.addCaseButton.click()
    drive.wait(lambda: ui.caseList.count == 1)
    assert "slices 10, 40" in drive.desk.application.questions_asked[-1]

    # Prompt once more, save, close, reopen, go on.
    drive.click("negative", 20, 5, 7)
    drive.click("positive", 20, 6, 6)
    before, segmentation_name = drive.masks(), drive.session.segmentation_node.GetName()
    save(drive, tmp_path)
    drive.scene.Clear(0)
    assert ui.segmentList.count == 0
    drive.scene.SetURL(str(tmp_path / "scene.mrml"))
    drive.scene.Connect()
    QtWidgets.QApplication.processEvents()
    drive.settle()
    assert ui.segmentationSelector.currentNode().GetName() == segmentation_name
    np.testing.assert_array_equal(drive.masks(), before)
    assert [r.index for r in drive.session.references()] == [10, 40]
    assert ui.promptLabel.text.startswith("1 slice has prompts from before")
    ui.acceptButton.click()
    drive.settle()
    ui.acceptButton.click()
    np.testing.assert_array_equal(drive.masks()[20], drive.bright[20])
    ui.propagateButton.click()
    drive.settle()
    assert drive.filled() == SHAPE_KJI[0]
    assert len(drive.errors()) == 1


def save(drive: Drive, folder: Path) -> None:
    """As File > Save does: every storable node a file, then the scene."""
    drive.scene.SetURL(str(folder / "scene.mrml"))
    for node, kind, suffix in (
        (drive.volume_node, "VolumeArchetype", "nrrd"),
        (drive.session.segmentation_node, "Segmentation", "seg.nrrd"),
    ):
        storage = drive.scene.AddNewNodeByClass(f"vtkMRML{kind}StorageNode")
        storage.SetFileName(str(folder / f"{node.GetID()}.{suffix}"))
        node.SetAndObserveStorageNodeID(storage.GetID())
        assert storage.WriteData(node)
    for name in ("CT chest", "CT chest segmentation"):
        drive.scene.RemoveNode(drive.scene.GetFirstNodeByName(name))
    drive.scene.Commit()
