"""Reference slices: found by themselves, left out when they are unticked, remembered in the scene."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medssl.errors import InputError  # noqa: E402
from medssl.results import SliceMask  # noqa: E402
from medssl.scene import nodes, tags, writing  # noqa: E402
from medssl.scene.session import PropagateRequest, Session, State  # noqa: E402
from medssl.scene.survey import ReferenceSlice  # noqa: E402
from medssl.scene.teaching import TeachDesk  # noqa: E402


class Desk:
    """A liver painted on slices 1 and 4 of an oblique volume."""

    def __init__(self, a_scene: Any, client: Any) -> None:
        self.client = client
        self.volume_node = a_scene.add_volume(a_scene.grids["oblique"])
        self.node, (self.liver,) = a_scene.add_segmentation(self.volume_node, "liver")
        self.session = Session(a_scene.scene, a_scene.logic, client)
        self.session.choose(self.volume_node, self.node)
        self.mask = np.zeros((12, 15), bool)
        self.mask[3:8, 4:9] = True
        self.draw(1, 4)
        self.look()

    def draw(self, *indices: int) -> None:
        masks = dict.fromkeys(indices, self.mask)
        writing.write_slices(self.node, self.liver, self.session.volume(), 0, masks)

    def look(self) -> None:
        self.session.look()
        while self.session.is_looking:
            self.session.poll()

    def propagate(self, *arriving: int, **options: Any) -> None:
        self.session.start(PropagateRequest(**options))
        self.client.run.say(*(SliceMask(self.liver, 0, n, self.mask.copy(), 0.9) for n in arriving))
        self.client.run.end()
        while self.session.poll().state is State.RUNNING:
            pass

    def sent(self) -> list[int]:
        return [r.prompt.index for r in self.client.asked[-1]["references"]]

    def ticks(self) -> dict[int, bool]:
        return {each.index: each.used for each in self.session.references()}


@pytest.fixture
def a_desk(a_scene: Any, a_client: Any) -> Desk:
    return Desk(a_scene, a_client)


def test_segments_that_were_painted_in_different_views_are_not_carried_on_in_one_run(a_desk: Desk) -> None:
    node, volume = a_desk.node, a_desk.session.volume()
    a_desk.mask[:] = True
    a_desk.draw(1, 4)
    spleen = node.GetSegmentation().AddEmptySegment("", "spleen")
    writing.write_slices(node, spleen, volume, 2, {5: np.ones((volume.shape_kji[0], 12), bool)})
    with pytest.raises(InputError, match=r"there is liver on \w+ slices, spleen on \w+ slices; leave one"):
        a_desk.session.start(PropagateRequest())
    a_desk.session.start(PropagateRequest(segment_ids=(a_desk.liver,)))
    assert a_desk.sent() == [1, 4]
    a_desk.session.cancel()


def test_drawn_slices_are_found_and_used_by_themselves(a_desk: Desk) -> None:
    assert a_desk.session.references() == (
        ReferenceSlice(a_desk.liver, 0, 1, True),
        ReferenceSlice(a_desk.liver, 0, 4, True),
    )


def test_an_unticked_slice_is_not_sent_not_taught_and_not_suggested_from(a_desk: Desk) -> None:
    a_desk.session.use_reference(a_desk.liver, 0, 4, False)
    assert a_desk.ticks() == {1: True, 4: False}
    assert TeachDesk(a_desk.session).propose().vouched[0].indices == (1,)
    a_desk.propagate()
    assert a_desk.sent() == [1]
    a_desk.session.use_reference(a_desk.liver, 0, 4, True)
    a_desk.propagate()
    assert a_desk.sent() == [1, 4]


def test_the_choice_survives_looking_again_and_another_session(a_scene: Any, a_desk: Desk) -> None:
    a_desk.session.use_reference(a_desk.liver, 0, 1, False)
    a_desk.look()
    assert a_desk.ticks() == {1: False, 4: True}
    other = Session(a_scene.scene, a_scene.logic, a_desk.client)
    other.choose(a_desk.volume_node, a_desk.node)
    assert other.plan(PropagateRequest()).drawn == {a_desk.liver: [4]}


def test_the_choice_is_saved_in_the_file(a_desk: Desk, tmp_path: Any) -> None:
    a_desk.session.use_reference(a_desk.liver, 0, 1, False)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "liver.seg.nrrd"))
    assert storage.WriteData(a_desk.node)
    again = slicer.vtkMRMLSegmentationNode()
    scene = a_desk.session.scene
    scene.AddNode(again)
    assert storage.ReadData(again)
    (segment,) = again.GetSegmentation().GetSegmentIDs()
    assert tags.left_out(again, segment) == {(0, 1)}


def test_an_unticked_slice_is_filled_like_any_other_and_one_undo_brings_it_back(a_desk: Desk) -> None:
    a_desk.session.use_reference(a_desk.liver, 0, 4, False)
    a_desk.mask = np.roll(a_desk.mask, 2, axis=1)
    before = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.session.volume())
    a_desk.propagate(2, 3, 4)
    after = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.session.volume())
    np.testing.assert_array_equal(after[4], a_desk.mask)
    a_desk.look()
    assert a_desk.ticks() == {1: True}
    a_desk.draw(5)
    a_desk.look()
    assert a_desk.ticks() == {1: True, 5: True}
    a_desk.session.undo()
    np.testing.assert_array_equal(
        nodes.read_segment(a_desk.node, a_desk.liver, a_desk.session.volume()), before
    )
    a_desk.look()
    assert a_desk.ticks() == {1: True, 4: False}


def test_unticking_after_a_run_tracks_the_stretch_around_that_slice_again(a_desk: Desk) -> None:
    a_desk.propagate(2, 3, 5)
    a_desk.session.use_reference(a_desk.liver, 0, 4, False)
    a_desk.propagate(2, 3, 4, only_changed=True)
    assert a_desk.client.asked[-1]["options"]["changed"] == (4,)


def test_with_every_slice_unticked_there_is_one_sentence(a_desk: Desk) -> None:
    for index in (1, 4):
        a_desk.session.use_reference(a_desk.liver, 0, index, False)
    with pytest.raises(InputError, match="tick at least one"):
        a_desk.session.plan(PropagateRequest())


def test_the_sessions_device_is_used_unless_a_request_names_another(a_desk: Desk) -> None:
    a_desk.session.device = "cuda:1"
    a_desk.propagate()
    assert a_desk.client.asked[-1]["device"] == "cuda:1"
    a_desk.propagate(device="cpu")
    assert a_desk.client.asked[-1]["device"] == "cpu"
