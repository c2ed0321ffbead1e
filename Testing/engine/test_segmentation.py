"""Segmentations: their rules, label files with names beside them, and 3D Slicer's .seg.nrrd."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from medssl.errors import InputError, StorageError
from medssl.formats.nifti import write_nifti
from medssl.segmentation import Segment, Segmentation, default_color, read_segmentation, write_segmentation
from medssl.volume import Volume
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

LIVER = Segment("liver", 3, (0.8, 0.2, 0.1))
KIDNEY = Segment("Niere links, gr\u00fcn", 7, (0.1, 0.25, 0.9))
EMPTY = Segment("spleen", 9, (0.0, 1.0, 0.0))


def grid(
    left_handed: bool = False, euler_deg: tuple[float, float, float] = (20, -35, 10)
) -> NDArray[np.float64]:
    """An oblique, anisotropic grid."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", euler_deg, degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([-0.7 if left_handed else 0.7, 0.9, 2.5])
    affine[:3, 3] = (-120.5, 33.25, 801.0)
    return affine


def labels() -> NDArray[np.uint8]:
    """The liver and the kidney leave a margin on every side, so that 3D Slicer can crop them."""
    array = np.zeros((8, 9, 10), np.uint8)
    array[1:3, 2:5, 3:6] = 3
    array[4:6, 2:7, 1:3] = 7
    return array


def segmentation(left_handed: bool = False) -> Segmentation:
    return Segmentation(labels(), grid(left_handed), (LIVER, KIDNEY, EMPTY), "organs")


def volume(left_handed: bool = False) -> Volume:
    return Volume(np.arange(720).reshape(8, 9, 10), grid(left_handed), "ct.nii.gz")


def test_segments_are_found_by_name_and_by_label() -> None:
    organs = segmentation()
    assert organs.names == ("liver", "Niere links, gr\u00fcn", "spleen")
    assert organs.shape_kji == (8, 9, 10)
    np.testing.assert_allclose(organs.spacing_kji_mm, (2.5, 0.9, 0.7))
    assert organs.segment("liver") is organs.segment(3) is LIVER
    np.testing.assert_array_equal(organs.mask("liver"), labels() == 3)
    np.testing.assert_array_equal(organs.mask(7), labels() == 7)
    assert not organs.mask("spleen").any()
    with pytest.raises(
        InputError, match="organs has no segment 'heart'; choose from those it has: 3 = liver, 7 ="
    ):
        organs.mask("heart")


def test_labels_are_read_only_and_as_small_as_they_fit() -> None:
    assert segmentation().labels_kji.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        segmentation().labels_kji[0, 0, 0] = 1
    large = Segmentation(
        labels().astype(np.int64) * 100, grid(), (Segment("a", 300, (1, 0, 0)), Segment("b", 700, (1, 0, 0)))
    )
    assert large.labels_kji.dtype == np.uint16


@pytest.mark.parametrize(
    ("array", "segments", "message"),
    [
        (labels()[0], (LIVER, KIDNEY), r"organs has 2 dimensions \(shape \(9, 10\)\), not 3"),
        (labels()[:0], (LIVER, KIDNEY), r"organs has no voxels"),
        (labels() + 0.5, (LIVER, KIDNEY), r"organs holds values that are not whole numbers"),
        (np.where(labels() > 0, np.nan, 0), (LIVER,), r"organs holds values that are not whole numbers"),
        (
            labels().astype(np.int16) - 1000,
            (LIVER, KIDNEY),
            r"organs holds values from -1000 to -993, but labels",
        ),
        (
            labels().astype(np.int32) * 10000,
            (LIVER, KIDNEY),
            r"organs holds values from 0 to 70000, but labels",
        ),
        (labels(), (LIVER,), r"organs uses labels that belong to no segment \(7\); name or erase them"),
        (labels(), (LIVER, KIDNEY, LIVER), r"organs has 2 segments 'liver'; give each its own"),
        (
            labels(),
            (LIVER, KIDNEY, Segment("x", 3, (1, 1, 1))),
            r"organs has 2 segments '3'; give each its own",
        ),
        (
            labels(),
            (LIVER, KIDNEY, Segment("x", 0, (1, 1, 1))),
            r"organs has a segment 'x' with label 0; give it",
        ),
        (
            labels(),
            (LIVER, KIDNEY, Segment(" ", 1, (1, 1, 1))),
            r"organs has a segment ' ' with label 1; give it",
        ),
    ],
)
def test_what_is_no_segmentation_is_refused(
    array: NDArray[Any], segments: tuple[Segment, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Segmentation(array, grid(), segments, "organs")
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_a_sheared_segmentation_is_refused() -> None:
    affine = grid()
    affine[0, 1] += 0.2
    with pytest.raises(InputError, match="organs lies on a sheared grid"):
        Segmentation(labels(), affine, (LIVER, KIDNEY), "organs")


def test_nearby_labels_get_clearly_different_colours() -> None:
    colors = np.array([default_color(label) for label in range(1, 200)])
    assert colors.min() >= 0
    assert colors.max() <= 1
    for gap in (1, 2, 3):
        assert np.abs(colors[gap:] - colors[:-gap]).max(axis=1).min() > 0.1


def test_a_grid_of_another_shape_or_place_is_refused() -> None:
    segmentation().require_grid_of(volume())
    segmentation().require_grid_of(segmentation())
    with pytest.raises(
        InputError, match=r"organs has shape \(8, 9, 10\), but small has \(4, 9, 10\); give one made"
    ):
        segmentation().require_grid_of(Volume(volume().voxels_kji[:4], grid(), "small"))
    for shift_mm, message in ((1.0, "up to 1 mm off"), (0.1, "up to 0.1 mm off")):
        moved = grid()
        moved[2, 3] += shift_mm
        with pytest.raises(InputError, match=f"organs lies {message} the voxels of ct; give one made"):
            segmentation().require_grid_of(Volume(volume().voxels_kji, moved, "ct"))
    almost = grid()
    almost[2, 3] += 0.01
    segmentation().require_grid_of(Volume(volume().voxels_kji, almost, "ct"))


@pytest.mark.parametrize("own_axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("directions", list(itertools.product((1, -1), repeat=3)))
def test_labels_in_another_order_of_axes_are_put_into_the_volumes(
    own_axes: tuple[int, ...], directions: tuple[int, ...], tmp_path: Path
) -> None:
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid()
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(labels())
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(to_lps[:3, 3].tolist())
    image.SetDirection((to_lps[:3, :3] / spacing).ravel().tolist())
    turned = SimpleITK.Flip(SimpleITK.PermuteAxes(image, own_axes), [step < 0 for step in directions])
    SimpleITK.WriteImage(turned, str(tmp_path / "turned.nrrd"))
    back = read_segmentation(tmp_path / "turned.nrrd", volume())
    np.testing.assert_array_equal(back.labels_kji, labels())
    np.testing.assert_array_equal(back.ijk_to_ras, grid())


@pytest.mark.parametrize("name", ["organs.nii.gz", "organs.nii", "organs.nrrd", "organs.mha", "a.b.nii.gz"])
@pytest.mark.parametrize("left_handed", [False, True])
def test_a_label_file_keeps_labels_names_and_place(name: str, left_handed: bool, tmp_path: Path) -> None:
    write_segmentation(segmentation(left_handed), tmp_path / name)
    back = read_segmentation(tmp_path / name, volume(left_handed))
    np.testing.assert_array_equal(back.labels_kji, labels())
    np.testing.assert_array_equal(back.ijk_to_ras, grid(left_handed))  # the volume's own, not a rounded one
    assert [(s.name, s.label) for s in back.segments] == [(s.name, s.label) for s in segmentation().segments]
    names = json.loads(
        (tmp_path / (name.rsplit(".n")[0].removesuffix(".mha") + ".labels.json")).read_text("utf-8")
    )
    assert names == {"3": "liver", "7": "Niere links, gr\u00fcn", "9": "spleen"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("names", [{"3": "liver", "9": "spleen"}, {"background": 0, "liver": 3, "spleen": 9}])
def test_names_beside_a_file_are_read_in_both_directions(names: dict[str, Any], tmp_path: Path) -> None:
    write_nifti(tmp_path / "ann.nii.gz", labels(), grid())
    (tmp_path / "ann.labels.json").write_text(json.dumps(names))
    back = read_segmentation(tmp_path / "ann.nii.gz")
    assert [(s.name, s.label) for s in back.segments] == [("liver", 3), ("segment_7", 7), ("spleen", 9)]
    assert back.segments[0].color_rgb == default_color(3)
    assert back.name == "ann.nii.gz"


def test_a_new_label_file_never_renames_the_labels_of_another(tmp_path: Path) -> None:
    write_segmentation(segmentation(), tmp_path / "organ.nii.gz")
    write_segmentation(segmentation(), tmp_path / "organ.nrrd")  # the same names: nothing changes
    names = tuple(Segment(f"other {s.name}", s.label, s.color_rgb) for s in segmentation().segments)
    other = Segmentation(segmentation().labels_kji, segmentation().ijk_to_ras, names)
    with pytest.raises(InputError, match=r"would rename the labels of organ\.nii\.gz"):
        write_segmentation(other, tmp_path / "organ.mha")
    assert read_segmentation(tmp_path / "organ.nii.gz").names == segmentation().names
    assert not (tmp_path / "organ.mha").exists()


@pytest.mark.parametrize("name", ["out.nii.gz", "out.seg.nrrd"])
def test_names_in_latin_1_as_other_programs_write_them_are_read_and_can_be_written(
    name: str, tmp_path: Path
) -> None:
    first = segmentation().segments[0]
    named = (Segment("R_hre", first.label, first.color_rgb), *segmentation().segments[1:])
    written = Segmentation(segmentation().labels_kji, segmentation().ijk_to_ras, named)
    write_segmentation(written, tmp_path / "a.seg.nrrd")
    raw = (tmp_path / "a.seg.nrrd").read_bytes()
    (tmp_path / "a.seg.nrrd").write_bytes(raw.replace(b"R_hre", b"R\xf6hre"))
    read = read_segmentation(tmp_path / "a.seg.nrrd")
    assert read.names[0] == "Röhre"
    write_segmentation(read, tmp_path / name)
    assert read_segmentation(tmp_path / name).names == read.names


def test_suffixes_in_capitals_are_read(tmp_path: Path) -> None:
    write_segmentation(segmentation(), tmp_path / "a.mha")
    (tmp_path / "a.mha").rename(tmp_path / "A.MHA")
    found = read_segmentation(tmp_path / "A.MHA").labels_kji
    np.testing.assert_array_equal(found, segmentation().labels_kji)
    with pytest.raises(InputError, match="suffix"):
        write_segmentation(segmentation(), tmp_path / "B.MHA")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A.MHA", "a.labels.json"]


def test_names_shared_by_a_folder_only_name_what_a_file_uses(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ann.nii.gz", labels(), grid())
    (tmp_path / "labels.json").write_text('{"3": "liver", "4": "aorta"}')
    assert read_segmentation(tmp_path / "ann.nii.gz").names == ("liver", "segment_7")
    (tmp_path / "ann.labels.json").write_text('{"3": "its own"}')
    assert read_segmentation(tmp_path / "ann.nii.gz").names == ("its own", "segment_7")


@pytest.mark.parametrize("text", ["liver", "[1, 2]", '{"liver": "spleen"}', '{"liver": null}', "\udc80"])
def test_a_names_file_that_names_nothing_is_refused(text: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "ann.nii.gz", labels(), grid())
    (tmp_path / "labels.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r'labels\.json does not name labels; write them as {"1": "liver"}'):
        read_segmentation(tmp_path / "ann.nii.gz")


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ann.nii.gz", labels().astype(np.float64), grid())
    np.testing.assert_array_equal(read_segmentation(tmp_path / "ann.nii.gz").labels_kji, labels())


def test_an_image_given_in_place_of_labels_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct.nii.gz", labels().astype(np.int16) - 1000, grid())
    with pytest.raises(InputError, match=r"ct\.nii\.gz holds values from -1000 to -993"):
        read_segmentation(tmp_path / "ct.nii.gz")
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(labels().astype(np.float32)[None].repeat(2, 0), isVector=False),
        str(tmp_path / "4d.nii.gz"),
    )
    with pytest.raises(InputError, match=r"4d\.nii\.gz has 4 dimensions"):
        read_segmentation(tmp_path / "4d.nii.gz")


def test_labels_on_another_grid_than_the_volume_are_refused(tmp_path: Path) -> None:
    write_segmentation(segmentation(), tmp_path / "ann.nii.gz")
    with pytest.raises(
        InputError, match=r"ann\.nii\.gz has shape \(8, 9, 10\), but ct\.nii\.gz has \(7, 9, 10\)"
    ):
        read_segmentation(tmp_path / "ann.nii.gz", Volume(volume().voxels_kji[1:], grid(), "ct.nii.gz"))
    with pytest.raises(InputError, match=r"ann\.nii\.gz lies up to .* mm off the voxels of ct\.nii\.gz"):
        read_segmentation(tmp_path / "ann.nii.gz", volume(left_handed=True))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.seg.nrrd"])
def test_a_disk_that_fills_up_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 4, (30, 40, 40))
    many = Segmentation(noise, grid(), tuple(Segment(f"s{n}", n, default_color(n)) for n in (1, 2, 3)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # larger files now fail as on a full disk
    try:
        with pytest.raises(StorageError, match=rf"{name} could not be written"):
            write_segmentation(many, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"organs\.png has no suffix that can be written"):
        write_segmentation(segmentation(), tmp_path / "organs.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left_handed", [False, True])
def test_a_seg_nrrd_keeps_everything(left_handed: bool, tmp_path: Path) -> None:
    write_segmentation(segmentation(left_handed), tmp_path / "organs.seg.nrrd")
    back = read_segmentation(tmp_path / "organs.seg.nrrd", volume(left_handed))
    np.testing.assert_array_equal(back.labels_kji, labels())
    assert back.segments == (LIVER, KIDNEY, EMPTY)
    assert [path.name for path in tmp_path.iterdir()] == ["organs.seg.nrrd"]


def write_layers(path: Path, layers: list[NDArray[Any]], fields: dict[str, str]) -> None:
    """Write a .seg.nrrd as 3D Slicer does when segments lie in several layers."""
    array = layers[0] if len(layers) == 1 else np.stack(layers, axis=-1)
    image = SimpleITK.GetImageFromArray(array, isVector=len(layers) > 1)
    for key, value in fields.items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def test_layers_that_do_not_overlap_are_merged_and_clashing_labels_renumbered(tmp_path: Path) -> None:
    first, second = (labels() == 3).astype(np.uint8), (labels() == 7).astype(np.uint8)
    fields = {
        "Segment0_ID": "S0", "Segment0_Name": "organ", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
        "Segment1_ID": "S1", "Segment1_Name": "organ", "Segment1_LabelValue": "1", "Segment1_Layer": "1",
    }  # fmt: skip
    write_layers(tmp_path / "a.seg.nrrd", [first, second], fields)
    back = read_segmentation(tmp_path / "a.seg.nrrd")
    assert back.segments == (Segment("organ", 1, default_color(1)), Segment("organ 2", 2, default_color(2)))
    np.testing.assert_array_equal(back.mask("organ"), first)
    np.testing.assert_array_equal(back.mask("organ 2"), second)


def test_layers_that_overlap_are_refused(tmp_path: Path) -> None:
    first, second = (labels() == 3).astype(np.uint8), np.zeros_like(labels())
    second[2, 2:5, 3:6] = 1
    fields = {
        "Segment0_ID": "S0", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
        "Segment1_ID": "S1", "Segment1_LabelValue": "1", "Segment1_Layer": "1",
    }  # fmt: skip
    write_layers(tmp_path / "a.seg.nrrd", [first, second], fields)
    with pytest.raises(
        InputError, match=r"a\.seg\.nrrd has segments that overlap in 9 voxels, .* make them exclusive"
    ):
        read_segmentation(tmp_path / "a.seg.nrrd")


def test_files_of_old_slicers_have_one_layer_per_segment(tmp_path: Path) -> None:
    layers = [(labels() == 3).astype(np.uint8), (labels() == 7).astype(np.uint8)]
    write_layers(tmp_path / "a.seg.nrrd", layers, {"Segment0_ID": "liver", "Segment1_ID": "kidney"})
    back = read_segmentation(tmp_path / "a.seg.nrrd")
    assert back.names == ("liver", "kidney")
    np.testing.assert_array_equal(back.labels_kji, labels() // 3)  # 3 -> 1, 7 -> 2


def test_labels_that_no_segment_of_a_seg_nrrd_uses_are_dropped(tmp_path: Path) -> None:
    write_layers(
        tmp_path / "a.seg.nrrd",
        [labels()],
        {"Segment0_ID": "liver", "Segment0_LabelValue": "3", "Segment0_Layer": "0"},
    )
    np.testing.assert_array_equal(
        read_segmentation(tmp_path / "a.seg.nrrd").labels_kji, np.where(labels() == 3, 3, 0)
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("LabelValue", "one", "describes 'liver' wrongly; save it again from 3D Slicer"),
        ("Color", "red green blue", "describes 'liver' wrongly"),
        ("LabelValue", "0", r"gives 'liver' the label 0, not 1 \.\. 65535"),
    ],
)
def test_damaged_segment_fields_are_refused(field: str, value: str, message: str, tmp_path: Path) -> None:
    write_layers(tmp_path / "a.seg.nrrd", [labels()], {"Segment0_Name": "liver", f"Segment0_{field}": value})
    with pytest.raises(InputError, match=message):
        read_segmentation(tmp_path / "a.seg.nrrd")


def test_a_cropped_seg_nrrd_is_put_back_unless_it_lies_outside(tmp_path: Path) -> None:
    box = (slice(1, 6), slice(2, 7), slice(1, 6))
    cropped_grid = grid()
    cropped_grid[:, 3] = grid() @ (1, 2, 1, 1)
    write_segmentation(Segmentation(labels()[box], cropped_grid, (LIVER, KIDNEY)), tmp_path / "a.seg.nrrd")
    back = read_segmentation(tmp_path / "a.seg.nrrd", volume())
    np.testing.assert_array_equal(back.labels_kji, labels())
    np.testing.assert_array_equal(back.ijk_to_ras, grid())
    np.testing.assert_array_equal(
        read_segmentation(tmp_path / "a.seg.nrrd", segmentation()).labels_kji, labels()
    )
    assert read_segmentation(tmp_path / "a.seg.nrrd").shape_kji == (5, 5, 5)
    small = Volume(volume().voxels_kji[:5], grid(), "small")
    with pytest.raises(
        InputError, match=r"a\.seg\.nrrd has 10 voxels outside small; give the volume it was made on"
    ):
        read_segmentation(tmp_path / "a.seg.nrrd", small)
    far = grid()
    far[:3, 3] += grid()[:3, 0] * 50
    with pytest.raises(InputError, match=r"a\.seg\.nrrd has 38 voxels outside ct"):
        read_segmentation(tmp_path / "a.seg.nrrd", Volume(volume().voxels_kji, far, "ct"))
    turned = grid(euler_deg=(20, -35, 12))
    with pytest.raises(InputError, match=r"a\.seg\.nrrd lies up to .* mm off the voxels of ct"):
        read_segmentation(tmp_path / "a.seg.nrrd", Volume(volume().voxels_kji, turned, "ct"))


class _Slicer:
    """A scene of the real Slicer core with one segmentation node."""

    def __init__(self) -> None:
        self.slicer = pytest.importorskip("slicer")
        self.vtk = pytest.importorskip("vtk")
        self.scene = self.slicer.vtkMRMLScene()
        self.logic = self.slicer.vtkSlicerSegmentationsModuleLogic()
        self.logic.SetMRMLScene(self.scene)
        self.node = self.slicer.vtkMRMLSegmentationNode()
        self.scene.AddNode(self.node)

    def storage(self, path: Path) -> Any:
        storage = self.slicer.vtkMRMLSegmentationStorageNode()
        self.scene.AddNode(storage)
        storage.SetFileName(str(path))
        return storage

    def add(self, segment: Segment, mask_kji: NDArray[np.bool_], ijk_to_ras: NDArray[np.float64]) -> None:
        from vtk.util.numpy_support import numpy_to_vtk

        image = self.slicer.vtkOrientedImageData()
        k, j, i = mask_kji.shape
        image.SetDimensions(i, j, k)
        image.GetPointData().SetScalars(numpy_to_vtk(mask_kji.astype(np.uint8).ravel(), deep=1))
        matrix = self.vtk.vtkMatrix4x4()
        matrix.DeepCopy(ijk_to_ras.ravel())
        image.SetImageToWorldMatrix(matrix)
        segment_id = self.node.GetSegmentation().AddEmptySegment("", segment.name, segment.color_rgb)
        extent = [0, i - 1, 0, j - 1, 0, k - 1]
        assert self.logic.SetBinaryLabelmapToSegment(image, self.node, segment_id, 0, extent)

    def voxels_of(self, segment_id: str) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """A segment's own voxels, cropped or not, and where they lie."""
        from vtk.util.numpy_support import vtk_to_numpy

        image = self.slicer.vtkOrientedImageData()
        self.node.GetBinaryLabelmapRepresentation(segment_id, image)
        matrix = self.vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        first = np.array(image.GetExtent()[::2])
        affine = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
        affine[:, 3] = affine @ (*first, 1)
        shape = image.GetDimensions()[::-1]
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape) > 0, affine


@pytest.mark.parametrize("left_handed", [False, True])
def test_3d_slicer_reads_what_we_write(left_handed: bool, tmp_path: Path) -> None:
    slicer = _Slicer()
    write_segmentation(segmentation(left_handed), tmp_path / "organs.seg.nrrd")
    assert slicer.storage(tmp_path / "organs.seg.nrrd").ReadData(slicer.node) == 1
    stored = slicer.node.GetSegmentation()
    assert stored.GetNumberOfSegments() == 3
    assert stored.GetNumberOfLayers() == 1
    for n, expected in enumerate(segmentation().segments):
        segment = stored.GetNthSegment(n)
        assert segment.GetName() == expected.name
        assert segment.GetLabelValue() == expected.label
        assert segment.GetColor() == pytest.approx(expected.color_rgb)
        mask, affine = slicer.voxels_of(stored.GetNthSegmentID(n))
        np.testing.assert_array_equal(mask, labels() == expected.label)
        np.testing.assert_allclose(affine, grid(left_handed), atol=1e-9)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("left_handed", [False, True])
def test_we_read_what_3d_slicer_writes(left_handed: bool, crop: bool, tmp_path: Path) -> None:
    slicer = _Slicer()
    slicer.add(LIVER, labels() == 3, grid(left_handed))
    slicer.add(KIDNEY, labels() == 7, grid(left_handed))
    storage = slicer.storage(tmp_path / "organs.seg.nrrd")
    storage.SetCropToMinimumExtent(crop)
    assert storage.WriteData(slicer.node) == 1
    back = read_segmentation(tmp_path / "organs.seg.nrrd", volume(left_handed))
    assert back.names == (LIVER.name, KIDNEY.name)
    for expected in (LIVER, KIDNEY):
        np.testing.assert_array_equal(back.mask(expected.name), labels() == expected.label)
        assert back.segment(expected.name).color_rgb == pytest.approx(expected.color_rgb)


def test_segments_that_overlap_in_3d_slicer_are_refused(tmp_path: Path) -> None:
    slicer = _Slicer()
    slicer.add(LIVER, labels() == 3, grid())
    slicer.add(KIDNEY, labels() > 0, grid())
    assert slicer.storage(tmp_path / "organs.seg.nrrd").WriteData(slicer.node) == 1
    with pytest.raises(InputError, match="segments that overlap in 18 voxels"):
        read_segmentation(tmp_path / "organs.seg.nrrd", volume())


def test_a_segmentation_survives_the_way_through_3d_slicer(tmp_path: Path) -> None:
    slicer = _Slicer()
    write_segmentation(segmentation(), tmp_path / "ours.seg.nrrd")
    assert slicer.storage(tmp_path / "ours.seg.nrrd").ReadData(slicer.node) == 1
    assert slicer.storage(tmp_path / "theirs.seg.nrrd").WriteData(slicer.node) == 1
    back = read_segmentation(tmp_path / "theirs.seg.nrrd", volume())
    assert back.segments == segmentation().segments
    np.testing.assert_array_equal(back.labels_kji, labels())
