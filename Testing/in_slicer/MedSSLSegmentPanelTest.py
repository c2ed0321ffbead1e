"""The panel inside the real application: it opens, asks for what is missing, and survives a closed scene."""

import os
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
import slicer


class MedSSLSegmentPanelTest(unittest.TestCase):
    """Run by ctest in a Slicer build."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()
        slicer.util.selectModule("MedSSLSegment")
        self.widget = slicer.modules.medsslsegment.widgetRepresentation().self()

    def test_the_panel_opens_without_loading_torch(self) -> None:
        assert "torch" not in sys.modules
        assert not self.widget.ui.propagateButton.enabled
        assert self.widget.ui.statusLabel.text

    def test_the_list_shows_the_segments_of_the_chosen_segmentation(self) -> None:
        segmentationNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        segmentationNode.GetSegmentation().AddEmptySegment("", "liver")
        self.widget.ui.segmentationSelector.setCurrentNode(segmentationNode)
        assert self.widget.ui.segmentList.count == 1

    def test_undo_is_the_segment_editors_own(self) -> None:
        assert self.widget.panel.session.history.editor is self.widget.ui.segmentEditor
        assert self.widget.ui.segmentEditor.mrmlSegmentEditorNode() is not None

    def test_keys_work_only_while_the_module_is_open(self) -> None:
        assert self.widget.panel.shortcuts._shortcuts
        slicer.util.selectModule("Welcome")
        assert not self.widget.panel.shortcuts._shortcuts

    def test_the_phantom_is_among_the_sample_data_and_needs_no_network(self) -> None:
        (source,) = slicer.modules.sampleDataSources["MedSSLSegment"]
        (volumeNode,) = source.customDownloader(source)
        assert volumeNode.GetImageData().GetDimensions() == (184, 136, 156)

    def test_a_point_placed_in_a_view_reaches_the_prompts(self) -> None:
        placed = []
        views = self.widget.panel.annotate.views
        views.onPlaced, before = (lambda position, normal: placed.append(position)), views.onPlaced
        self.widget.ui.positiveButton.click()
        views._markupsNode().AddControlPointWorld(1.0, 2.0, 3.0)
        slicer.app.processEvents()
        self.widget.ui.positiveButton.click()
        views.onPlaced = before
        assert placed == [[1.0, 2.0, 3.0]]
        assert views._markupsNode().GetNumberOfControlPoints() == 0

    def test_the_segment_editor_module_does_not_share_the_panels_editor_node(self) -> None:
        slicer.util.selectModule("SegmentEditor")
        slicer.util.selectModule("MedSSLSegment")
        modules_own = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
        assert self.widget.ui.segmentEditor.mrmlSegmentEditorNode() is not modules_own

    def test_a_scene_that_is_opened_shows_what_was_chosen_in_it(self) -> None:
        volumeNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "first")
        volumeNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "second")
        slicer.util.updateVolumeFromArray(volumeNode, np.zeros((4, 5, 6), np.int16))
        self.widget.ui.volumeSelector.setCurrentNode(volumeNode)
        path = Path(slicer.app.temporaryPath, "MedSSLSegmentPanelTest.mrb")
        assert slicer.util.saveScene(str(path))
        slicer.mrmlScene.Clear()
        slicer.util.loadScene(str(path))
        slicer.app.processEvents()
        path.unlink()
        assert self.widget.ui.volumeSelector.currentNode().GetName() == "second"
        assert self.widget.panel.session.volume_node.GetName() == "second"

    def test_slicers_own_python_runs_without_its_launcher_and_with_the_environments_packages_first(
        self,
    ) -> None:
        from MedSSLSegmentLib import Environment

        command = Environment.environmentCommand(Path(slicer.app.temporaryPath))
        code = "import ssl, sys, numpy; print(*sys.path, sep='\\n')"
        ran = subprocess.run(
            [command.python, "-c", code],
            env=dict(command.environment()),
            capture_output=True,
            text=True,
            check=True,
        )
        folders = [os.path.basename(folder) for folder in ran.stdout.split("\n")]
        assert folders.index(Environment.PACKAGES) < folders.index("site-packages")

    def test_closing_the_scene_empties_the_panel(self) -> None:
        self.test_the_list_shows_the_segments_of_the_chosen_segmentation()
        slicer.mrmlScene.Clear()
        assert self.widget.ui.segmentList.count == 0


if __name__ == "__main__":
    unittest.main()
