"""Takes the tutorial's pictures: the real panel in real Qt, at work on the phantom with the real worker and models.

    python Testing/make_screenshots.py [folder]

They are not pictures of the 3D Slicer application, which is stood in for (Testing/qt/conftest.py): beside the panel,
the slice is drawn from the scene's own nodes. Takes some minutes: a model is fine-tuned on the way.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE_FOLDER = REPOSITORY / "MedSSLSegment"
PANEL_WIDTH, SLICE_WIDTH = 460, 552
LIVER_SLICE = 62
TEAL, RED, GREEN = (60, 200, 190), (255, 90, 90), (90, 230, 100)


def load_stand_ins() -> Any:
    """Testing/qt/conftest.py, which is in no package."""
    sys.path[:0] = [str(REPOSITORY / "Testing"), str(MODULE_FOLDER)]
    spec = importlib.util.spec_from_file_location("stand_ins", REPOSITORY / "Testing/qt/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Stage:
    """The panel on a scene with the phantom, and everything a person does with it."""

    def __init__(self, stand_ins: Any, folder: Path) -> None:
        from PySide6 import QtWidgets
        from shibokensupport import feature

        self.folder = folder
        self.application = stand_ins.Application()
        sys.modules.update(self.application.modules())
        module = importlib.import_module("MedSSLSegment")
        for name in stand_ins.PYTHONQT_MODULES:
            feature.set_selection(stand_ins.PROPERTIES_AS_ATTRIBUTES, name)
        from medssl.client import LocalCommand, WorkerClient

        self.parent = QtWidgets.QWidget()
        QtWidgets.QVBoxLayout(self.parent).setContentsMargins(0, 0, 0, 0)
        self.parent.setProperty("isEntered", True)
        self.parent.isEntered = True
        self.widget = module.MedSSLSegmentWidget(self.parent)
        self.widget.setup()
        self.ui, self.panel = self.widget.ui, self.widget.panel
        self.panel.session.client = WorkerClient(LocalCommand())
        self.panel.requireWorker = lambda: None
        self.application.says_yes = True
        self.scene = self.application.scene

    # What a person does

    def wait(self, is_done: Callable[[], bool], seconds: float = 600.0) -> None:
        """Let the panel work until something is so."""
        from PySide6 import QtWidgets

        end = time.monotonic() + seconds
        while not is_done():
            QtWidgets.QApplication.processEvents()
            self.panel.onTimer()
            if self.application.errors_shown:
                raise RuntimeError(self.application.errors_shown[-1])
            if time.monotonic() > end:
                raise TimeoutError("the panel did not get there")
            time.sleep(0.02)

    def settle(self) -> None:
        """Until the panel has looked at everything."""
        self.panel.onLook()
        session = self.panel.session
        self.wait(lambda: not session.is_looking and not session.prompts.is_waiting)

    def place(self, tool: str, *positions_kji: Sequence[float]) -> None:
        """Click on voxels with a tool."""
        import vtk
        from PySide6 import QtWidgets

        self.panel.annotate.tools[tool].setChecked(True)
        markups = self.scene.GetFirstNodeByName("MedSSLSegment prompt")
        for kji in positions_kji:
            ras = self.volume.ijk_to_ras @ [*reversed(kji), 1.0]
            markups.AddControlPointWorld(vtk.vtkVector3d(ras[:3]))
            QtWidgets.QApplication.processEvents()
        self.settle()

    def open_only(self, *sections: str) -> None:
        """Open some sections and close the others."""
        for name in ("volume", "annotate", "propagate", "predict", "teach", "pretrain", "settings"):
            getattr(self.ui, f"{name}CollapsibleButton").setProperty("collapsed", name not in sections)
        self.panel.onTimer()

    # Pictures

    def shoot(self, name: str, index: int | None = None) -> None:
        """Save the panel, with a slice beside it."""
        from PIL import Image

        panel = self._panel()
        pictures = [panel]
        if index is not None:
            pictures.append(self._slice(index))
        height = max(picture.shape[0] for picture in pictures)
        sheet = np.full((height, sum(p.shape[1] for p in pictures), 3), 32, np.uint8)
        x = 0
        for picture in pictures:
            sheet[: picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1]
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(self.folder / f"{name}.png", optimize=True)

    def _panel(self) -> np.ndarray:
        from PySide6 import QtGui, QtWidgets

        self.panel.onTimer()
        self.parent.resize(PANEL_WIDTH, 10)
        self.parent.show()
        for _ in range(3):
            QtWidgets.QApplication.processEvents()
            self.parent.resize(PANEL_WIDTH, self.parent.layout().heightForWidth(PANEL_WIDTH) or 10)
            self.parent.resize(PANEL_WIDTH, self.parent.sizeHint().height())
        image = self.parent.grab().toImage().convertToFormat(QtGui.QImage.Format_RGB888)
        rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
        return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()

    def _slice(self, index: int) -> np.ndarray:
        """An axial slice of the phantom, with segments, preview and prompts as the scene has them."""
        from PIL import Image, ImageDraw

        session = self.panel.session
        grey = np.clip((self.volume.voxels_kji[index].astype(float) + 160) / 400, 0, 1) * 255
        picture = np.repeat(grey[..., None], 3, axis=2)
        for node in (session.segmentation_node, self.scene.GetFirstNodeByName("MedSSLSegment preview")):
            if node is not None and node.GetDisplayNode().GetVisibility():
                self._lay_over(picture, node, index)
        overlay = self.panel.predictDesk.overlay
        if overlay.is_shown:
            self._lay_heat(picture, overlay.node, index)
        scale = SLICE_WIDTH // picture.shape[1]
        sheet = Image.fromarray(picture.astype(np.uint8)).resize(
            (picture.shape[1] * scale, picture.shape[0] * scale), Image.Resampling.BICUBIC
        )
        draw = ImageDraw.Draw(sheet)
        for place in session.prompts.places():
            if place.index == index and place.axis == 0:
                self._draw_marks(draw, session.prompts.marks(place), scale)
        draw.text((8, 6), f"axial slice {index}", fill=(230, 230, 230))
        return np.asarray(sheet)

    def _lay_over(self, picture: np.ndarray, node: Any, index: int) -> None:
        from medssl.scene import nodes

        for segment in nodes.list_segments(node):
            mask = nodes.read_slice(node, segment.id, self.volume, 0, index)
            inner = mask.copy()
            for axis in (0, 1):
                for step in (1, -1):
                    inner &= np.roll(mask, step, axis)
            color = np.array(segment.color_rgb) * 255
            picture[mask] = 0.65 * picture[mask] + 0.35 * color
            picture[mask & ~inner] = color

    def _lay_heat(self, picture: np.ndarray, node: Any, index: int) -> None:
        from medssl.scene.layers import array_kji

        levels = array_kji(node.GetImageData())[index].astype(float)
        shown = levels >= 51
        heat = np.stack([np.full_like(levels, 255), levels * 0.9, np.zeros_like(levels)], axis=2)
        picture[shown] = 0.4 * picture[shown] + 0.6 * heat[shown]

    @staticmethod
    def _draw_marks(draw: Any, marks: Sequence[Any], scale: int) -> None:
        for mark in marks:
            points = [(scale * (x + 0.5), scale * (y + 0.5)) for x, y in mark.points_xy_px]
            color = GREEN if mark.positive else RED
            if mark.kind == "box":
                (x0, y0), (x1, y1) = points
                draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=color, width=2)
            elif mark.kind == "scribble":
                draw.line(points, fill=color, width=3)
            else:
                ((x, y),) = points
                draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=color, outline=(0, 0, 0))

    @property
    def volume(self) -> Any:
        return self.panel.session.volume()


def thumbnail(folder: Path, volume: Any) -> None:
    """The phantom as the Sample Data module shows it."""
    from PIL import Image

    coronal = volume.voxels_kji[::-1, volume.shape_kji[1] // 2]
    grey = (np.clip((coronal.astype(float) + 160) / 400, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(grey).resize((260, round(260 * 2.5 * grey.shape[0] / (2.0 * grey.shape[1]))))
    sheet = Image.new("L", (260, 280))
    sheet.paste(picture, (0, (280 - picture.height) // 2))
    sheet.save(folder / "MedSSLSegmentPhantom.png", optimize=True)


def main() -> None:
    """Take every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "Resources/Screenshots")
    folder = parser.parse_args().folder
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory() as home:
        os.environ["MEDSSL_HOME"] = home
        take_all(folder)
    os._exit(0)  # the order in which Python would collect what is left of Qt and VTK is none they survive


def take_all(folder: Path) -> None:
    """Go through the tutorial."""
    from PySide6 import QtWidgets

    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["tutorial"])
    application.setStyle("fusion")
    stage = Stage(load_stand_ins(), folder)
    truth = load_phantom(stage)
    thumbnail(REPOSITORY / "MedSSLSegment/Resources/Icons", stage.volume)
    annotate(stage, truth)
    propagate(stage, truth)
    teach(stage)
    predict(stage)
    pretrain(stage)
    stage.open_only("settings")
    stage.ui.homeEdit.setPlaceholderText("/home/you/.medssl")
    stage.shoot("10-settings")
    stage.panel.session.client.close()
    stage.widget.cleanup()


def load_phantom(stage: Stage) -> np.ndarray:
    """Step 1; returns the true liver."""
    from medssl.phantom import demo_case

    sys.modules["MedSSLSegmentLib.Samples"].loadPhantom()
    stage.ui.volumeSelector.setCurrentNode(stage.application.background)
    stage.wait(lambda: stage.panel.session._begin_reading().done)
    stage.ui.addSegmentButton.click()
    stage.ui.segmentList.item(0).setText("liver")
    stage.settle()
    stage.open_only("volume")
    stage.shoot("1-volume", LIVER_SLICE)
    case = demo_case()
    label = next(s.label for s in case.segmentation.segments if s.name == "liver")
    return np.asarray(case.segmentation.labels_kji == label)


def annotate(stage: Stage, truth: np.ndarray) -> None:
    """Step 2: a box, a point, and what the eraser would do."""
    stage.open_only("annotate")
    stage.place("box", (LIVER_SLICE, 20, 28), (LIVER_SLICE, 98, 108))
    stage.shoot("2-box", LIVER_SLICE)
    stage.place("positive", (LIVER_SLICE, 32, 98))
    stage.ui.acceptButton.click()
    for button in stage.panel.annotate.tools.values():
        button.setChecked(False)
    paint(stage, LIVER_SLICE, truth)
    stage.shoot("3-accepted", LIVER_SLICE)


def paint(stage: Stage, index: int, truth: np.ndarray) -> None:
    """Correct a slice by hand, as with the Segment Editor's Paint and Erase."""
    session, writing = stage.panel.session, sys.modules["medssl.scene.writing"]
    (segment,) = session.segments()
    writing.write_slices(session.segmentation_node, segment.id, stage.volume, 0, {index: truth[index]})
    stage.settle()


def propagate(stage: Stage, truth: np.ndarray) -> None:
    """Step 3."""
    stage.open_only("propagate")
    stage.ui.propagateButton.click()
    stage.wait(lambda: stage.panel.session.status.fraction > 0.4)
    stage.shoot("4-propagating", LIVER_SLICE + 8)
    stage.wait(lambda: stage.panel.session.status.state.value != "running")
    stage.settle()
    stage.ui.suggestButton.click()
    stage.shoot("5-propagated", stage.panel.propagate.strip.current)
    suggested = stage.panel.propagate.strip.current
    paint(stage, suggested, truth)
    stage.ui.correctButton.click()
    stage.wait(lambda: stage.panel.session.status.state.value != "running")
    stage.settle()
    stage.shoot("6-corrected", suggested)


def teach(stage: Stage) -> None:
    """Step 5: keep two cases, fine-tune for a few minutes, keep the model."""
    desk, ui = stage.panel.teachDesk, stage.ui
    stage.open_only("teach")
    stage.wait(lambda: not desk.is_waiting)
    ui.addCaseButton.click()
    stage.wait(lambda: len(desk.cases) == 1)
    truth = open_person(stage, 8)
    ui.addSegmentButton.click()
    ui.segmentList.item(0).setText("liver")
    for index in (24, 30, 36):
        paint(stage, index, truth)
    ui.addCaseButton.click()
    stage.wait(lambda: len(desk.cases) == 2)
    ui.minutesSpinBox.setValue(6)
    ui.modelNameEdit.setText("liver")
    ui.finetuneButton.click()
    stage.wait(lambda: desk.run is not None and len(desk.curve("dice").steps) > 4, 1200)
    stage.shoot("7-teach", 30)
    stage.wait(lambda: desk.run["state"] == "done", 1200)
    ui.adoptButton.click()
    stage.wait(lambda: bool(desk.models))


def open_person(stage: Stage, seed: int) -> np.ndarray:
    """Choose another synthetic CT, with an empty segmentation; returns the true liver."""
    from medssl.phantom import phantom_ct

    nodes = sys.modules["medssl.scene.nodes"]
    phantom = phantom_ct(seed, (78, 136, 184), (5.0, 2.0, 2.0), "LPS", noise_hu=11.0, phase="portal")
    volume_node = nodes.add_volume_node(stage.scene, phantom.volume)
    stage.ui.segmentationSelector.setCurrentNode(None)
    stage.ui.volumeSelector.setCurrentNode(volume_node)
    stage.wait(lambda: stage.panel.session._begin_reading().done)
    stage.ui.segmentationSelector.setCurrentNode(nodes.create_segmentation_node(stage.scene, volume_node))
    label = next(s.label for s in phantom.segmentation.segments if s.name == "liver")
    return np.asarray(phantom.segmentation.labels_kji == label)


def predict(stage: Stage) -> None:
    """Step 4, on another person."""
    open_person(stage, 11)
    stage.scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    stage.open_only("predict")
    stage.wait(lambda: not stage.panel.teachDesk.is_waiting)
    stage.ui.uncertaintyCheckBox.setChecked(True)
    stage.ui.predictButton.click()
    stage.wait(lambda: not stage.panel.predictDesk.is_running)
    stage.settle()
    stage.shoot("8-predict", 30)


def pretrain(stage: Stage) -> None:
    """Pre-training, in step 5: what it would take."""
    from medssl.volume import write_volume

    desk, ui = stage.panel.teachDesk, stage.ui
    with tempfile.TemporaryDirectory() as folder:
        for n in range(2):
            write_volume(stage.volume, Path(folder) / f"scan-{n}.nii.gz")
        stage.open_only("teach", "pretrain")
        stage.wait(lambda: not desk.is_waiting)
        ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData("tcs-mae"))
        ui.pretrainFolderEdit.setText(folder)
        ui.estimateButton.click()
        stage.wait(lambda: not desk.is_estimating and bool(desk.estimate))
        ui.pretrainFolderEdit.blockSignals(True)
        ui.pretrainFolderEdit.setText("/data/scans")
        stage.shoot("9-pretrain")


if __name__ == "__main__":
    main()
