"""The panel's thread is never busy for long: gaps between two turns of the event loop at 512 x 512 x 500.

Measured in processor time of that thread, which does not count what other processes take. The longest gaps are the
writes for which the labelmap has to grow: new memory is touched for the first time. Python's collector of garbage is no
part of them: in the process of the tests it looks through everything that other tests have loaded, torch too, which is
never in 3D Slicer, so what was there before is left out of its sight.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

import vtk
from medssl.results import SliceMask
from PySide6 import QtCore, QtWidgets
from shibokensupport import feature
from vtk.util import numpy_support

feature.set_selection(2, __name__)

SHAPE_KJI = (500, 512, 512)
LONGEST_GAP_S = 0.060
"""The aim is 30 ms; 16 to 25 were measured on two busy cores. Twice the aim fails only when something got slower."""
SLICES = range(130, 370)


class Heartbeat:
    """Notes how long the thread worked between two turns of the event loop."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._last_s = time.thread_time()
        self._timer = QtCore.QTimer()
        self._timer.interval = 0
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now_s = time.thread_time()
        self.gaps.append(now_s - self._last_s)
        self._last_s = now_s

    def run_until(self, is_done: Callable[[], bool], seconds: float = 60.0) -> None:
        ends_s = time.monotonic() + seconds
        while not is_done() and time.monotonic() < ends_s:
            QtWidgets.QApplication.processEvents()
            time.sleep(0.001)
        assert is_done()


def a_liver(index: int) -> np.ndarray:
    rows, columns = np.ogrid[: SHAPE_KJI[1], : SHAPE_KJI[2]]
    radius = 150.0 * np.sqrt(1 - ((index - 250) / 130) ** 2)
    mask: np.ndarray = (rows - 256) ** 2 + (columns - 220) ** 2 < radius**2
    return mask


def put_large_volume(node: Any) -> None:
    voxels = np.zeros(SHAPE_KJI, np.int16)
    voxels[::7] = 40
    image = vtk.vtkImageData()
    image.SetDimensions(*SHAPE_KJI[::-1])
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(voxels.ravel(), deep=False))
    node.SetAndObserveImageData(image)


@pytest.fixture
def a_collector_that_sees_this_test_alone() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("a_collector_that_sees_this_test_alone")
def test_propagating_through_a_large_volume_leaves_no_long_gap(a_desk: Any) -> None:
    desk = a_desk
    session = desk.panel.session
    session.wait_s = 0.0
    put_large_volume(desk.volume_node)
    large = sys.modules["medssl.scene.nodes"].create_segmentation_node(
        desk.application.scene, desk.volume_node, "large"
    )
    liver = large.GetSegmentation().AddEmptySegment("", "liver")
    volume = sys.modules["medssl.scene.nodes"].read_volume_node(desk.volume_node)
    desk.writing.write_slices(large, liver, volume, 0, {250: a_liver(250)})
    masks = {index: a_liver(index) for index in SLICES}

    heart = Heartbeat()
    desk.ui.segmentationSelector.setCurrentNode(large)
    heart.run_until(lambda: session.survey is not None)
    desk.ui.propagateButton.click()
    heart.run_until(lambda: bool(desk.client.asked))
    order = sorted((n for n in SLICES if n != 250), key=lambda n: abs(n - 250))
    for index in order:
        desk.client.run.say(SliceMask(liver, 0, index, masks[index], 0.9))
    desk.client.run.end()
    heart.run_until(lambda: not desk.is_running())

    assert session.status.text.startswith(f"{len(order)} slices were written")
    assert max(heart.gaps) <= LONGEST_GAP_S, sorted(heart.gaps)[-5:]
