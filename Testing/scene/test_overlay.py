"""The uncertainty map over the image: shown, hidden, undone with its prediction, replaced by the next one's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from fake_client import FakeClient  # noqa: E402
from medssl.results import SliceMask, UncertaintyMap  # noqa: E402
from medssl.scene import tags  # noqa: E402
from medssl.scene.predicting import PredictDesk  # noqa: E402
from medssl.scene.session import Session  # noqa: E402


class Desk:
    """Two slice views of a scene, one of which shows a PET in its foreground."""

    def __init__(self, a_scene: Any) -> None:
        self.scene, self.client = a_scene.scene, FakeClient()
        self.volume_node = a_scene.add_volume(a_scene.grids["oblique"])
        self.pet = a_scene.add_volume(a_scene.grids["oblique"])
        self.node, (self.liver,) = a_scene.add_segmentation(self.volume_node, "liver")
        self.views = [self.scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", name) for name in "RG"]
        self.views[0].SetForegroundVolumeID(self.pet.GetID())
        self.views[0].SetForegroundOpacity(0.3)
        self.session = Session(self.scene, a_scene.logic, self.client)
        self.session.choose(self.volume_node, self.node)
        self.predict = PredictDesk(self.session)
        self.mask = np.zeros((12, 15), bool)
        self.mask[3:8, 4:9] = True

    def run(self, *, to_the_end: bool = True) -> None:
        self.predict.predict("liver", maps=True)
        unsure = UncertaintyMap.of(0, 4, np.full((12, 15), 0.5, np.float32))
        self.client.run.say(unsure, SliceMask("liver", 0, 4, self.mask, 0.9))
        if to_the_end:
            self.client.run.end()
        self.predict.poll()
        while to_the_end and self.predict.is_running:
            self.predict.poll()

    def foregrounds(self) -> list[str | None]:
        return [view.GetForegroundVolumeID() for view in self.views]


@pytest.fixture
def a_desk(a_scene: Any) -> Desk:
    return Desk(a_scene)


def test_a_map_is_shown_over_the_image_while_it_arrives_in_colors_that_leave_sure_places_clear(
    a_desk: Desk,
) -> None:
    a_desk.run(to_the_end=False)
    overlay = a_desk.predict.overlay
    assert overlay.is_shown
    assert a_desk.foregrounds() == [overlay.node.GetID()] * 2
    display = overlay.node.GetDisplayNode()
    assert display.GetColorNode().GetName() == "Iron"
    assert display.GetApplyThreshold()
    assert 0 < display.GetLowerThreshold() < 64
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0, 255)


def test_hiding_it_brings_back_what_each_view_showed_before(a_desk: Desk) -> None:
    a_desk.run()
    overlay = a_desk.predict.overlay
    overlay.show(False)
    assert not overlay.is_shown
    assert a_desk.foregrounds() == [a_desk.pet.GetID(), None]
    assert a_desk.views[0].GetForegroundOpacity() == pytest.approx(0.3)
    overlay.show(True)
    assert overlay.is_shown


def test_undoing_the_prediction_hides_its_map_and_redo_can_show_it_again(a_desk: Desk) -> None:
    a_desk.run()
    overlay = a_desk.predict.overlay
    a_desk.session.undo()
    overlay.refresh()
    assert a_desk.predict.uncertainty_node is None
    assert not overlay.is_shown
    overlay.show(True)
    assert not overlay.is_shown
    a_desk.session.redo()
    overlay.show(True)
    assert overlay.is_shown


def test_the_next_prediction_takes_the_old_map_out_of_the_scene(a_desk: Desk) -> None:
    a_desk.run()
    first = a_desk.predict.uncertainty_node
    a_desk.predict.predict("liver", maps=False)
    assert not a_desk.scene.IsNodePresent(first)
    assert a_desk.foregrounds() == [a_desk.pet.GetID(), None]


def test_a_cancelled_prediction_keeps_its_map_until_it_is_undone(a_desk: Desk) -> None:
    a_desk.run(to_the_end=False)
    a_desk.predict.cancel()
    assert a_desk.client.run.was_cancelled
    assert [step.what for step in tags.steps(a_desk.node, a_desk.liver)] == ["segment"]
    assert a_desk.predict.uncertainty_node is not None
    a_desk.session.undo()
    assert a_desk.predict.uncertainty_node is None


def test_another_desk_on_the_same_scene_finds_the_map(a_desk: Desk) -> None:
    a_desk.run()
    again = PredictDesk(a_desk.session)
    assert again.uncertainty_node is a_desk.predict.uncertainty_node
    again.overlay.show(False)
    assert a_desk.foregrounds() == [None, None]


def test_predictions_compute_on_the_sessions_device(a_desk: Desk) -> None:
    a_desk.session.device = "cpu"
    a_desk.run()
    assert a_desk.client.asked[-1]["device"] == "cpu"
