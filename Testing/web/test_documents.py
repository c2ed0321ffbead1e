"""Files in and out of trame-slicer's scene, and one history for painting and for the program's steps; no browser."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from zipfile import ZipFile

import numpy as np
import pytest

pytest.importorskip("trame_slicer")

from engine.test_dicom_seg import write_series
from medssl.errors import InputError, StorageError
from medssl.formats.dicom_seg import read_dicom_seg
from medssl.phantom import Phantom
from medssl.scene import nodes, tags, writing
from medssl.scene.layers import array_kji
from medssl.scene.rules import EditingRules
from medssl.scene.streaming import Target, Writer
from medssl.segmentation import Segmentation, read_segmentation, write_segmentation
from medssl.volume import Volume, write_volume
from medssl.web.documents import Documents, Format, Opened, series_in
from medssl.web.folders import Folders
from medssl.web.references import check_references
from medssl.web.undo import EditorHistory
from trame_slicer.core import SlicerApp

T = TypeVar("T")


@pytest.fixture(scope="module")
def slicer_app() -> Iterator[SlicerApp]:
    app = SlicerApp()
    yield app
    app.io_manager.cache_dir.cleanup()


@pytest.fixture
def documents(slicer_app: SlicerApp) -> Documents:
    slicer_app.scene.Clear()
    return Documents(slicer_app)


@pytest.fixture
def opened(documents: Documents, slicer_app: SlicerApp, ct_file: Path) -> Opened:
    """The phantom, with a liver on one slice that was predicted."""
    volume_node = documents.open(ct_file).volume_node
    node = nodes.create_segmentation_node(slicer_app.scene, volume_node, "organs")
    node.GetSegmentation().AddEmptySegment("", "liver", (0.9, 0.1, 0.2))
    return Opened(volume_node, node)


def nothing() -> Volume:
    """The grid for labels, where there are none to be written."""
    raise AssertionError("nobody should ask")


def liver_of(opened: Opened) -> str:
    return str(nodes.list_segments(opened.segmentation_node)[0].id)


def write_slice(opened: Opened, index: int, size: int) -> Volume:
    volume = nodes.read_volume_node(opened.volume_node)
    mask = np.zeros(volume.shape_kji[1:], bool)
    mask[20 : 20 + size, 30:50] = True
    writing.write_predicted_slices(opened.segmentation_node, liver_of(opened), volume, 0, {index: mask})
    return volume


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_volume_of_any_format_comes_with_its_voxels_and_its_place(
    documents: Documents, phantom: Phantom, tmp_path: Path, suffix: str
) -> None:
    write_volume(phantom.volume, tmp_path / f"ct{suffix}")
    node = documents.open(tmp_path / f"ct{suffix}").volume_node
    volume = nodes.read_volume_node(node)
    np.testing.assert_array_equal(volume.voxels_kji, phantom.volume.voxels_kji)
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.volume.ijk_to_ras, atol=1e-3)
    assert node.GetName() == "ct"


def test_a_volume_is_read_in_another_thread_and_the_scene_knows_nothing_of_it_until_it_is_put_there(
    documents: Documents, slicer_app: SlicerApp, phantom: Phantom, ct_file: Path
) -> None:
    before = slicer_app.scene.GetNumberOfNodes()
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(documents.reader(ct_file)).result()
    assert slicer_app.scene.GetNumberOfNodes() == before
    node = put().volume_node
    assert slicer_app.scene.IsNodePresent(node)
    np.testing.assert_array_equal(nodes.read_volume_node(node).voxels_kji, phantom.volume.voxels_kji)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mrb"])
def test_while_a_large_file_is_read_everything_else_goes_on(
    documents: Documents, phantom: Phantom, tmp_path: Path, suffix: str
) -> None:
    ct = phantom.volume
    large = Volume(np.tile(ct.voxels_kji, (4, 2, 2)), ct.ijk_to_ras)
    path = tmp_path / f"large{suffix}"
    write_volume(large, tmp_path / "large.nrrd")
    if suffix == ".mrb":
        documents.open(tmp_path / "large.nrrd")
        documents.write(Format.SCENE, path, Opened(), nothing)
    elif suffix != ".nrrd":
        write_volume(large, path)
    steps = 0
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(documents.reader(path))
        while not reading.done():
            time.sleep(0.001)
            steps += 1
    assert steps > 30  # a reader that lets nobody else run leaves time for a dozen at most
    volume = nodes.read_volume_node(reading.result()().volume_node)
    np.testing.assert_array_equal(volume.voxels_kji, large.voxels_kji)


def test_files_that_are_numbered_alike_are_not_taken_for_slices_of_one_volume(
    documents: Documents, phantom: Phantom, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        write_volume(phantom.volume, tmp_path / f"ct{number}.nii.gz")
    node = documents.open(tmp_path / "ct2.nii.gz").volume_node
    assert nodes.read_volume_node(node).shape_kji == phantom.volume.shape_kji


def test_what_is_no_image_is_refused_in_one_sentence(documents: Documents, tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^ct\.nii\.gz is not a NIfTI file"):
        documents.open(tmp_path / "ct.nii.gz")


def test_a_saved_segmentation_comes_back_with_names_colours_and_what_was_predicted(
    documents: Documents, opened: Opened, tmp_path: Path
) -> None:
    volume = write_slice(opened, 12, 9)
    documents.write(Format.SEG_NRRD, tmp_path / "organs.seg.nrrd", opened, nothing)
    again = documents.open(tmp_path / "organs.seg.nrrd")
    assert again.volume_node is None
    back = Opened(opened.volume_node, again.segmentation_node)
    (liver,) = nodes.list_segments(back.segmentation_node)
    assert (liver.name, [round(c, 2) for c in liver.color_rgb]) == ("liver", [0.9, 0.1, 0.2])
    np.testing.assert_array_equal(
        nodes.read_segment(back.segmentation_node, liver.id, volume),
        nodes.read_segment(opened.segmentation_node, liver_of(opened), volume),
    )
    assert list(tags.predicted_slices(back.segmentation_node, liver.id)) == [(0, 12)]


def test_labels_are_written_on_the_grid_of_the_volume(
    documents: Documents, opened: Opened, tmp_path: Path
) -> None:
    volume = write_slice(opened, 12, 9)
    documents.write(Format.NIFTI, tmp_path / "organs.nii.gz", opened, lambda: volume)
    written = read_segmentation(tmp_path / "organs.nii.gz", like=volume)
    np.testing.assert_array_equal(
        written.mask("liver"), nodes.read_segment(opened.segmentation_node, liver_of(opened), volume)
    )


def test_dicom_seg_wants_dicom_images(documents: Documents, opened: Opened, tmp_path: Path) -> None:
    volume = write_slice(opened, 12, 9)
    with pytest.raises(InputError, match="DICOM SEG refers to DICOM images"):
        documents.write(Format.DICOM_SEG, tmp_path / "organs.dcm", opened, lambda: volume)


def test_a_scene_comes_back_with_what_was_chosen_in_it(
    documents: Documents, opened: Opened, tmp_path: Path
) -> None:
    volume = write_slice(opened, 12, 9)
    before = nodes.read_segment(opened.segmentation_node, liver_of(opened), volume)
    documents.remember(opened)
    documents.write(Format.SCENE, tmp_path / "work.mrb", Opened(), nothing)
    check_references(tmp_path / "work.mrb", Folders([tmp_path]))
    with ZipFile(tmp_path / "work.mrb") as bundle:
        assert b'useCompression="0"' not in bundle.read("work/work.mrml"), "3D Slicer packs as ever"
    again = documents.open(tmp_path / "work.mrb")
    assert (again.volume_node.GetName(), again.segmentation_node.GetName()) == ("phantom", "organs")
    np.testing.assert_array_equal(
        nodes.read_segment(
            again.segmentation_node, liver_of(again), nodes.read_volume_node(again.volume_node)
        ),
        before,
    )


def edit(slicer_app: SlicerApp, opened: Opened) -> EditorHistory:
    """Have the segment editor work on what was opened; its history, which the program shares."""
    editor: Any = slicer_app.segmentation_editor
    history = EditorHistory(editor)
    editor.set_active_segmentation(opened.segmentation_node, opened.volume_node)
    return history


def paint(slicer_app: SlicerApp, segment: str, first_kji: tuple[int, int, int], size: int) -> None:
    """A stroke of a person on one slice."""
    editor: Any = slicer_app.segmentation_editor
    editor.set_active_segment_id(segment)
    painted = editor.create_modifier_labelmap()
    k, j, i = first_kji
    array_kji(painted)[k, j : j + size, i : i + size] = 1
    editor.apply_labelmap(painted)


def assert_goes_through(
    step: Callable[[Any], None], node: Any, state: Callable[[], T], states: Sequence[T]
) -> None:
    """Every undo, or redo, leads to the next of these states."""
    for expected in states:
        step(node)
        assert state() == expected


def test_painting_and_the_programs_steps_are_taken_back_and_brought_back_in_order(
    slicer_app: SlicerApp, opened: Opened
) -> None:
    history = edit(slicer_app, opened)
    node, states = opened.segmentation_node, []
    volume = nodes.read_volume_node(opened.volume_node)

    def state() -> int:
        return int(nodes.read_segment(node, liver_of(opened), volume).sum())

    states.append(state())
    history.save(node)
    write_slice(opened, 12, 9)
    states.append(state())
    paint(slicer_app, liver_of(opened), (30, 40, 40), 10)
    states.append(state())
    assert len(set(states)) == 3
    assert_goes_through(history.undo, node, state, states[-2::-1])
    assert not history.can_undo(node)
    assert_goes_through(history.redo, node, state, states[1:])
    assert not history.can_redo(node)


def test_a_dicom_folder_is_opened_and_gets_a_dicom_seg_that_fits_it(
    documents: Documents, slicer_app: SlicerApp, tmp_path: Path
) -> None:
    expected = write_series(tmp_path / "series")
    volume_node = documents.open(tmp_path / "series").volume_node
    volume = nodes.read_volume_node(volume_node)
    np.testing.assert_array_equal(volume.voxels_kji, expected.voxels_kji)
    np.testing.assert_allclose(volume.ijk_to_ras, expected.ijk_to_ras, atol=1e-4)

    node = nodes.create_segmentation_node(slicer_app.scene, volume_node)
    liver = node.GetSegmentation().AddEmptySegment("", "liver")
    mask = np.zeros(volume.shape_kji[1:], bool)
    mask[2:5, 2:5] = True
    writing.write_slices(node, liver, volume, 0, {1: mask})
    chosen = Opened(volume_node, node)
    documents.write(Format.DICOM_SEG, tmp_path / "organs.dcm", chosen, lambda: volume)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "organs.dcm", expected).mask("liver")[1], mask)


def test_what_a_link_in_a_dicom_folder_leads_to_is_not_read(documents: Documents, tmp_path: Path) -> None:
    write_series(tmp_path / "elsewhere")
    (tmp_path / "series").mkdir()
    for file in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "series" / file.name).symlink_to(file)
    with pytest.raises(InputError, match=r"^series holds links to other files, 0\.dcm for example"):
        documents.open(tmp_path / "series")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^empty cannot be read as an image"):
        documents.open(tmp_path / "empty")


def two_series(folder: Path) -> Path:
    """A DICOM folder with a series of five slices, and a part of another one."""
    write_series(folder)
    write_series(folder.parent / "other")
    for number in (0, 1):
        (folder.parent / "other" / f"{number}.dcm").rename(folder / f"scout{number}.dcm")
    return folder


def test_of_several_series_any_can_be_chosen_and_gets_a_dicom_seg_of_its_own(
    documents: Documents, slicer_app: SlicerApp, tmp_path: Path
) -> None:
    folder = two_series(tmp_path / "study")
    first, second = series_in(folder)
    assert (first.slices, second.slices) == (5, 2)
    readers = (documents.reader(folder), *(documents.series_reader(folder, one) for one in (first, second)))
    nodes_ = [read()().volume_node for read in readers]
    volumes = [nodes.read_volume_node(node) for node in nodes_]
    assert [volume.shape_kji for volume in volumes] == [(5, 6, 7), (5, 6, 7), (2, 6, 7)]
    node = nodes.create_segmentation_node(slicer_app.scene, nodes_[2])
    liver = node.GetSegmentation().AddEmptySegment("", "liver")
    writing.write_slices(node, liver, volumes[2], 0, {1: np.ones((6, 7), bool)})
    documents.write(Format.DICOM_SEG, tmp_path / "organs.dcm", Opened(nodes_[2], node), lambda: volumes[2])
    assert read_dicom_seg(tmp_path / "organs.dcm", volumes[2]).mask("liver").sum() == 42
    (folder / "scout1.dcm").unlink()  # since the series were listed
    with pytest.raises(InputError, match=r"scout1\.dcm is not there any more"):
        documents.series_reader(folder, second)()


@pytest.mark.parametrize("form", [Format.SCENE, Format.SEG_NRRD])
def test_while_a_large_file_is_packed_everything_else_goes_on(
    documents: Documents, slicer_app: SlicerApp, phantom: Phantom, tmp_path: Path, form: Format
) -> None:
    ct = phantom.volume
    large = Volume(np.tile(ct.voxels_kji, (6, 2, 2)), ct.ijk_to_ras, "large")
    volume_node = nodes.add_volume_node(slicer_app.scene, large)
    node = nodes.create_segmentation_node(slicer_app.scene, volume_node, "organs")
    liver = node.GetSegmentation().AddEmptySegment("", "liver")
    noise = np.random.default_rng(0).random(large.shape_kji) < 0.5
    writing.write_slices(node, liver, large, 0, dict(enumerate(noise)))
    opened, path = Opened(volume_node, node), tmp_path / f"work{form.value}"
    pack, steps = documents.writer(form, path, opened, nothing), 0
    assert not path.exists()
    with ThreadPoolExecutor(1) as pool:
        packing = pool.submit(pack)
        while not packing.done():
            time.sleep(0.001)
            steps += 1
    packing.result()
    assert steps > 30
    again = documents.open(path).segmentation_node
    (found,) = nodes.list_segments(again)
    np.testing.assert_array_equal(nodes.read_segment(again, found.id, large), noise)


def test_a_file_that_cannot_be_written_stays_as_it_was(
    documents: Documents, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slice(opened, 12, 9)
    path = tmp_path / "work.mrb"
    documents.write(Format.SCENE, path, opened, nothing)
    before = path.read_bytes()
    monkeypatch.setattr("zipfile.ZipFile.write", disk_is_full)
    with pytest.raises(StorageError, match="No space left"):
        documents.write(Format.SCENE, path, opened, nothing)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert opened.volume_node.GetStorageNode().GetUseCompression(), "3D Slicer goes on as before"


def disk_is_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_label_file_becomes_a_segmentation_of_the_volume(
    documents: Documents, opened: Opened, phantom: Phantom, tmp_path: Path
) -> None:
    organs = [phantom.segmentation.segment(name) for name in ("liver", "spleen")]
    labels = np.where(np.isin(phantom.segmentation.labels_kji, [s.label for s in organs]), 1, 0)
    labels = labels * phantom.segmentation.labels_kji
    kept = Segmentation(labels, phantom.segmentation.ijk_to_ras, tuple(organs))
    write_segmentation(kept, tmp_path / "organs.nii.gz")
    node = documents.open_labels(tmp_path / "organs.nii.gz", opened.volume_node).segmentation_node
    assert [segment.name for segment in nodes.list_segments(node)] == ["liver", "spleen"]
    spleen = nodes.list_segments(node)[1].id
    np.testing.assert_array_equal(
        nodes.read_segment(node, spleen, phantom.volume), phantom.segmentation.mask("spleen")
    )


def test_a_stroke_under_a_run_is_taken_back_and_brought_back_without_losing_the_runs_slices(
    slicer_app: SlicerApp, opened: Opened
) -> None:
    history = edit(slicer_app, opened)
    node, volume = opened.segmentation_node, nodes.read_volume_node(opened.volume_node)
    target = Target(node, liver_of(opened))
    writer = Writer(volume, 0, history, lambda: 0.0, {node: EditingRules()})
    found = np.zeros(volume.shape_kji[1:], bool)
    found[20:30, 20:30] = True

    def run_writes(index: int) -> None:
        writer.put(target, index, found)
        writer.write(1.0, at_the_end=False)

    def filled() -> list[int]:
        return nodes.annotated_slices(nodes.read_segment(node, target.segment, volume), 0)

    run_writes(5)
    run_writes(6)
    assert history.stack.n_commands() == 1
    paint(slicer_app, target.segment, (9, 40, 40), 8)
    run_writes(7)
    run_writes(8)
    assert filled() == [5, 6, 7, 8, 9]
    assert_goes_through(history.undo, node, filled, ([5, 6, 9], [5, 6], []))
    assert not history.can_undo(node)
    assert_goes_through(history.redo, node, filled, ([5, 6], [5, 6, 9], [5, 6, 7, 8, 9]))


def test_undo_keeps_how_each_segment_is_shown(slicer_app: SlicerApp, opened: Opened) -> None:
    history = edit(slicer_app, opened)
    node, display = opened.segmentation_node, opened.segmentation_node.GetDisplayNode()
    spleen = node.GetSegmentation().AddEmptySegment("", "spleen")
    display.SetSegmentVisibility(spleen, False)
    display.SetSegmentOpacity2DFill(liver_of(opened), 0.25)
    history.save(node)
    write_slice(opened, 12, 9)
    for step in (history.undo, history.redo):
        step(node)
        assert not display.GetSegmentVisibility(spleen)
        assert display.GetSegmentOpacity2DFill(liver_of(opened)) == 0.25


def test_steps_that_memory_has_no_room_for_are_let_go(
    slicer_app: SlicerApp, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = edit(slicer_app, opened)
    node = opened.segmentation_node
    write_slice(opened, 12, 9)
    for room_bytes, kept in ((1 << 30, 30), (0, 5)):
        monkeypatch.setattr("medssl.web.undo._MEMORY_BYTES", room_bytes)
        for _ in range(35):
            history.save(node)
        assert history.stack.n_commands() == kept


def test_undo_and_redo_keep_their_place_when_memory_runs_short_half_way(
    slicer_app: SlicerApp, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = edit(slicer_app, opened)
    node, volume = opened.segmentation_node, nodes.read_volume_node(opened.volume_node)

    def filled() -> int:
        return len(nodes.annotated_slices(nodes.read_segment(node, liver_of(opened), volume), 0))

    for index in range(10):
        history.save(node)
        write_slice(opened, index, 9)
    for _ in range(7):
        history.undo(node)
    monkeypatch.setattr("medssl.web.undo._MEMORY_BYTES", 0)
    history.undo(node)
    assert filled() == 2
    assert_goes_through(history.redo, node, filled, range(3, 11))
    assert not history.can_redo(node)
    assert_goes_through(history.undo, node, filled, (9, 8, 7, 6, 5))
    assert not history.can_undo(node)


def test_where_saved_segments_overlap_the_smaller_one_stays_and_none_vanishes_unsaid(
    documents: Documents, opened: Opened, tmp_path: Path
) -> None:
    node, liver = opened.segmentation_node, liver_of(opened)
    volume = nodes.read_volume_node(opened.volume_node)
    large, small = (np.zeros(volume.shape_kji[1:], bool) for _ in range(2))
    large[20:40, 20:40], small[25:30, 25:30] = True, True
    lesion = node.GetSegmentation().AddEmptySegment("", "lesion")
    segmentation = node.GetSegmentation()
    segmentation.SetSegmentIndex(lesion, 0)  # the liver comes later, and must not have it all
    for segment, mask in ((liver, large), (lesion, small)):
        writing.write_slices(node, segment, volume, 0, {12: mask})
    documents.write(Format.NIFTI, tmp_path / "organs.nii.gz", opened, lambda: volume)
    found = read_segmentation(tmp_path / "organs.nii.gz")
    np.testing.assert_array_equal(found.mask("lesion")[12], small)
    np.testing.assert_array_equal(found.mask("liver")[12], large & ~small)
    writing.write_slices(node, liver, volume, 0, {12: small})
    with pytest.raises(InputError, match=r"cover all of (liver|lesion).*save as \.seg\.nrrd"):
        documents.write(Format.NIFTI, tmp_path / "again.nii.gz", opened, lambda: volume)
    assert not (tmp_path / "again.nii.gz").exists()


def test_stages_of_a_prediction_are_not_offered_to_work_on(documents: Documents, opened: Opened) -> None:
    scene = opened.segmentation_node.GetScene()
    stage = nodes.create_segmentation_node(scene, opened.volume_node, "coarse")
    assert documents.segmentations() == [opened.segmentation_node, stage]
    opened.segmentation_node.SetNodeReferenceID("MedSSLSegment.Stage.coarse", stage.GetID())
    assert documents.segmentations() == [opened.segmentation_node]
