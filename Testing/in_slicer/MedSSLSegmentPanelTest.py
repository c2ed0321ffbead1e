"""The panel inside the real application: it opens, asks for what is missing, and survives a closed scene."""

import sys
import unittest

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

    def test_closing_the_scene_empties_the_panel(self) -> None:
        self.test_the_list_shows_the_segments_of_the_chosen_segmentation()
        slicer.mrmlScene.Clear()
        assert self.widget.ui.segmentList.count == 0


if __name__ == "__main__":
    unittest.main()
