"""The workstation put together, with its logic and widgets but without a browser and without a worker."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trame_slicer")

from engine.test_dicom_seg import write_series
from fake_client import FakeClient
from medssl.errors import InputError
from medssl.scene import writing
from medssl.web.app import Workstation, WorkstationOptions
from medssl.web.documents import Format, Opened, Reader
from medssl.web.logic.slices import meeting_point


@pytest.fixture(scope="module")
def shown(ct_file: Path) -> Iterator[Workstation]:
    """A workstation that may open and save where the phantom is."""
    client: Any = FakeClient()
    client.status = SimpleNamespace(pid=None, device="", memory_used_bytes=None, state="ready")
    made = Workstation(WorkstationOptions(paths=[ct_file]), client, server="without a browser")
    made.work.session.wait_s = None
    yield made
    made.work.slicer_app.io_manager.cache_dir.cleanup()


@pytest.fixture
def a_page(shown: Workstation, ct_file: Path) -> Workstation:
    """The same with nothing open but the phantom, and two segments."""
    shown.work.choose(None, None)
    shown.work.slicer_app.scene.Clear()
    shown._documents._saved.clear()
    shown.volume.choose(shown._documents.open(ct_file))
    for _ in range(2):
        shown.volume.add_segment()
    return shown


def names_of(page: Workstation) -> list[str]:
    return [segment.name for segment in page.work.session.segments()]


def in_hand(page: Workstation) -> str:
    """Name of the segment in hand; empty without one."""
    found = page.work.editor.get_segment_properties(page.work.segment)
    return "" if found is None else str(found.name)


def draw(page: Workstation, index: int) -> None:
    """Something of the first segment on an axial slice."""
    session = page.work.session
    mask = np.zeros(session.volume().shape_kji[1:], bool)
    mask[20:30, 20:40] = True
    segment = session.segments()[0].id
    writing.write_slices(session.segmentation_node, segment, session.volume(), 0, {index: mask})


def look(page: Workstation) -> None:
    """Look through the segments, and wait for what comes of it."""
    session = page.work.session
    session.look()
    while session.is_looking:
        session.poll()


def widgets_under(element: Any) -> Iterator[Any]:
    """An element and all that is in it."""
    yield element
    for child in getattr(element, "children", []):
        if not isinstance(child, str):
            yield from widgets_under(child)


def test_whatever_a_widget_of_ours_is_given_reaches_the_page(shown: Workstation) -> None:
    lost = {
        (type(widget).__name__, str(attribute))
        for widget in widgets_under(shown._ui.layout.root)
        for attribute in getattr(widget, "skipped_attributes", ())
        if type(widget).__module__.startswith("medssl.")
    }
    assert lost == set()


def test_a_segment_that_was_undone_and_brought_back_is_in_hand(a_page: Workstation) -> None:
    assert in_hand(a_page) == "Segment 2"
    a_page.status.undo()
    assert (names_of(a_page), in_hand(a_page)) == (["Segment 1"], "Segment 1")
    a_page.status.undo()
    assert (names_of(a_page), in_hand(a_page)) == ([], "")
    a_page.status.redo()
    assert (names_of(a_page), in_hand(a_page)) == (["Segment 1"], "Segment 1")


def test_a_neighbour_is_in_hand_when_the_first_segment_is_removed(a_page: Workstation) -> None:
    editor = a_page.work.editor
    editor.set_active_segment_id(editor.get_segment_ids()[0])
    editor.remove_segment(editor.get_segment_ids()[0])
    assert in_hand(a_page) == "Segment 2"


def test_segments_that_a_prediction_has_made_are_listed_and_the_first_of_them_is_in_hand(
    a_page: Workstation,
) -> None:
    a_page.volume.begin_segmentation()
    a_page.work.session.segmentation_node.GetSegmentation().AddEmptySegment("", "liver")
    a_page.work.poll()
    assert [segment.name for segment in a_page.editor.data.segment_list.segments] == ["liver"]
    assert in_hand(a_page) == "liver"


def test_a_name_that_is_undone_is_gone_from_the_field_it_was_typed_in(a_page: Workstation) -> None:
    editor, field = a_page.work.editor, a_page.volume._edited.data.segment_state
    renamed = editor.get_segment_properties(a_page.work.segment)
    renamed.name = "liver"
    editor.set_segment_properties(a_page.work.segment, renamed)
    assert field.name == "liver"
    field.name = "liver, still being typed"
    editor.segmentation_modified()
    assert field.name == "liver, still being typed"
    a_page.status.undo()
    assert (names_of(a_page), field.name) == (["Segment 1", "Segment 2"], "Segment 2")


def test_a_volume_brings_its_own_segmentation(a_page: Workstation, ct_file: Path) -> None:
    first, own = a_page.work.session.volume_node, a_page.work.session.segmentation_node
    a_page.volume.choose(a_page._documents.open(ct_file))
    second, other = a_page.work.session.volume_node, a_page.work.session.segmentation_node
    assert other is not own
    a_page.volume.show()
    a_page.volume.data.volume = first.GetID()
    a_page.volume._on_chosen()
    assert (a_page.work.session.volume_node, a_page.work.session.segmentation_node) == (first, own)
    a_page.volume.data.segmentation = other.GetID()  # asked for, a segmentation comes without its volume
    a_page.volume._on_chosen()
    assert (a_page.work.session.volume_node, a_page.work.session.segmentation_node) == (first, other)
    assert second in a_page._documents.volumes()


def test_another_segmentation_is_not_saved_under_the_name_of_the_one_before(
    a_page: Workstation, ct_file: Path
) -> None:
    files = a_page.files
    files.data.format, files.data.place = ".seg.nrrd", "the folder of the patient before"
    files.show_save()
    assert files.data.place == str(ct_file.parent)
    files.data.file_name = "patient one"
    path = files._target()
    path.touch()
    assert files._target() == path  # what was saved before is not asked for again
    a_page.volume.begin_segmentation()
    files.show_save()
    assert files.data.file_name == a_page.work.session.segmentation_node.GetName()
    files.data.file_name = "patient one"
    with pytest.raises(InputError, match=r"patient one.seg.nrrd is there already; press Save again"):
        files._target()
    path.unlink()


def test_the_name_that_is_offered_for_a_dicom_series_is_one_that_can_be_saved(
    a_page: Workstation, ct_file: Path
) -> None:
    files = a_page.files
    files.data.format, files.data.place = ".seg.nrrd", str(ct_file.parent)
    a_page.volume.begin_segmentation()
    a_page.work.session.segmentation_node.SetName("3: Thorax a/b segmentation")
    files.show_save()
    assert files._target().name == "3- Thorax a-b segmentation.seg.nrrd"


def test_the_series_of_a_dicom_folder_are_listed_and_the_one_that_is_clicked_is_opened(
    a_page: Workstation, ct_file: Path
) -> None:
    folder = ct_file.parent / "study"
    write_series(folder)
    write_series(ct_file.parent / "other")
    for number in (0, 1):
        (ct_file.parent / "other" / f"{number}.dcm").rename(folder / f"scout{number}.dcm")
    files = a_page.files
    said: list[str] = []
    a_page.work.said.connect(lambda sentence, _: said.append(sentence))

    async def choose() -> None:
        files.show_open()
        files._on_row(str(folder))
        await files.open_folder()
        assert [row.name for row in files.data.rows] == [
            "without a description (CT, 5 slices)",
            "without a description (CT, 2 slices)",
        ]
        assert files.data.is_open_shown
        files._on_row(files.data.rows[1].path, files.data.rows[1].series)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
        assert a_page.work.session.volume().shape_kji == (2, 6, 7)
        files._on_row(str(folder), "1.2.3")
        assert "open the folder again" in said[-1]

    asyncio.run(choose())
    asyncio.run(files.open([folder]))
    assert "study holds 2 series; this is without a description (CT, 5 slices)" in said[-1]
    (folder / "1.dcm").unlink()  # the series with most slices has a gap now
    asyncio.run(files.open([folder]))
    assert "study holds 2 series; without a description (CT, 4 slices) cannot be opened" in said[-1]
    shutil.rmtree(folder)
    shutil.rmtree(ct_file.parent / "other")
    assert not files.data.is_open_shown


def test_of_two_things_opened_at_once_the_second_waits_for_the_first(
    a_page: Workstation, ct_file: Path
) -> None:
    files, done = a_page.files, []

    def reader_of(name: str) -> Callable[[Path], Reader]:
        def read() -> Callable[[], Opened]:
            done.append(f"read {name}")
            return put

        def put() -> Opened:
            done.append(f"put {name}")
            return Opened(a_page.work.session.volume_node)

        return lambda path: read

    async def both() -> None:
        await asyncio.gather(*(files._open(str(ct_file), reader_of(name)) for name in ("one", "two")))

    asyncio.run(both())
    assert done == ["read one", "put one", "read two", "put two"]


def test_a_scene_replaces_what_is_not_saved_only_when_it_is_opened_twice(
    a_page: Workstation, tmp_path: Path
) -> None:
    documents, scene = a_page._documents, tmp_path / "scene.mrb"
    a_page.files._check_replacing(scene)  # segments without anything in them are nothing to lose
    draw(a_page, 20)
    stamps = documents.stamps()
    documents.write(Format.SCENE, scene, Opened(), a_page.work.session.volume)
    assert len(documents.unsaved()) == 1
    documents.note_saved(stamps)
    a_page.files._check_replacing(scene)
    for index in (21, 22):
        draw(a_page, index)
        with pytest.raises(
            InputError, match=r"scene.mrb replaces what is open, but .* segmentation has changes"
        ):
            a_page.files._check_replacing(scene)
    a_page.files._check_replacing(scene)
    a_page.volume.choose(documents.open(scene))
    assert names_of(a_page) == ["Segment 1", "Segment 2"]
    assert documents.unsaved() == []


def test_nothing_is_lost_to_a_scene_while_a_run_is_under_way(a_page: Workstation, tmp_path: Path) -> None:
    draw(a_page, 20)
    a_page.propagate.propagate()
    assert a_page.work.is_running
    with pytest.raises(InputError, match="wait for what runs"):
        a_page.files._check_replacing(tmp_path / "scene.mrml")
    a_page.status.cancel()


def test_going_to_a_slice_leaves_the_views_across_it_where_they_are(a_page: Workstation) -> None:
    draw(a_page, 20)
    look(a_page)
    views = {str(v.get_orientation()): v for v in a_page.work.slicer_app.view_manager.get_slice_views()}
    volume = a_page.work.session.volume()
    views["Coronal"].set_slice_value(31.0)
    views["Sagittal"].set_slice_value(-17.0)  # along the view's normal, which leads to the patient's left
    a_page.propagate.go_to(9)
    x, y, z = meeting_point(volume, list(views.values()))
    assert (x, y) == pytest.approx((17.0, 31.0))
    assert np.linalg.solve(volume.ijk_to_ras, [x, y, z, 1.0])[2] == pytest.approx(9)
    a_page.views.toggle_crosshair()
    crosshair = a_page.work.session.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    assert crosshair.GetCrosshairRAS() == pytest.approx((x, y, z))
    a_page.views.toggle_crosshair()


def test_the_slices_of_the_chosen_view_stay_in_the_strip_whatever_is_drawn(a_page: Workstation) -> None:
    draw(a_page, 20)
    a_page.propagate.data.view = "coronal"
    a_page.propagate._on_view()
    for index in (21, 22):
        draw(a_page, index)
        a_page.work._look()
        while a_page.work.session.is_looking:
            a_page.work.session.poll()
        assert a_page.work.session.survey.view == "coronal"
    a_page.propagate.data.view = ""
    a_page.propagate._on_view()


def test_the_slice_worth_annotating_next_says_whose_it_is(a_page: Workstation) -> None:
    draw(a_page, 20)
    look(a_page)
    a_page.propagate.go_to_next()
    assert ", Segment 1: " in a_page.propagate.data.suggestion


def test_slices_beside_the_volume_meet_at_the_voxel_next_to_it(a_page: Workstation) -> None:
    volume = a_page.work.session.volume()
    views = a_page.work.slicer_app.view_manager.get_slice_views()
    for view in views:
        view.set_slice_value(1e4)
    ijk = np.linalg.solve(volume.ijk_to_ras, [*meeting_point(volume, views), 1.0])[:3]
    last = np.array(volume.shape_kji[::-1]) - 1
    assert all(np.isclose(value, 0) or np.isclose(value, n) for value, n in zip(ijk, last, strict=True))
