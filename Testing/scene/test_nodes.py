"""Volumes and segments read from and written to a real MRML scene."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

from medssl.errors import InputError  # noqa: E402
from medssl.scene import layers, nodes, tags, writing  # noqa: E402
from medssl.scene.rules import EditingRules, Overlap  # noqa: E402
from medssl.volume import as_stack, take_slice  # noqa: E402

BINARY = "Binary labelmap"
SHAPE_KJI = (7, 12, 15)


def a_blob(seed: int, shape_kji=SHAPE_KJI) -> np.ndarray:
    """A ragged mask that keeps clear of the volume's border."""
    mask = np.zeros(shape_kji, bool)
    inner = tuple(slice(1, n - 1) for n in shape_kji)
    mask[inner] = np.random.default_rng(seed).random(tuple(n - 2 for n in shape_kji)) > 0.5
    return mask


def slices_of(mask: np.ndarray, axis: int) -> dict[int, np.ndarray]:
    return dict(enumerate(as_stack(mask, axis)))


def labelmap(node, segment_id):
    return node.GetSegmentation().GetSegment(segment_id).GetRepresentation(BINARY)


def test_a_volume_is_read_with_its_exact_position(a_scene, a_grid) -> None:
    volume = nodes.read_volume_node(a_scene.add_volume(a_grid))
    assert volume.shape_kji == SHAPE_KJI
    np.testing.assert_allclose(volume.ijk_to_ras, a_grid, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_voxels_are_shared_with_the_node_not_copied(a_scene, dtype: type) -> None:
    node = a_scene.add_volume(a_scene.grids["straight"], dtype=dtype)
    volume = nodes.read_volume_node(node)
    assert volume.voxels_kji.dtype == dtype
    node.GetImageData().SetScalarComponentFromDouble(3, 2, 1, 0, 77)
    assert volume.voxels_kji[1, 2, 3] == 77


def test_a_linear_transform_moves_the_volume_and_its_segmentation_together(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["oblique"])
    shift = a_scene.grids["left-handed"] @ np.diag([1 / 0.9, 1 / 0.8, 1 / 2.5, 1])
    volume_node.SetAndObserveTransformNodeID(a_scene.add_transform(shift).GetID())
    volume = nodes.read_volume_node(volume_node)
    np.testing.assert_allclose(volume.ijk_to_ras, shift @ a_scene.grids["oblique"], atol=1e-10)

    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(3)
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), mask)


def test_a_segmentation_left_out_of_the_transform_is_refused(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    writing.write_slices(node, segment, nodes.read_volume_node(volume_node), 0, slices_of(a_blob(3), 0))
    shift = np.eye(4)
    shift[0, 3] = 2.4
    volume_node.SetAndObserveTransformNodeID(a_scene.add_transform(shift).GetID())
    with pytest.raises(InputError, match="another voxel grid than volume 'CT'; choose the volume"):
        nodes.read_segment(node, segment, nodes.read_volume_node(volume_node))


def test_a_warping_transform_is_refused(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    warp = a_scene.scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "breathing")
    warp.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    volume_node.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InputError, match="'CT' is under the warping transform 'breathing'; harden"):
        nodes.read_volume_node(volume_node)


def test_a_volume_without_an_image_or_in_color_is_refused(a_scene) -> None:
    node = a_scene.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    with pytest.raises(InputError, match="'nothing' holds no image"):
        nodes.read_volume_node(node)
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    node.SetAndObserveImageData(image)
    with pytest.raises(InputError, match="3 values per voxel"):
        nodes.read_volume_node(node)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_written_is_read_back_voxel_for_voxel(a_scene, a_grid, axis: int) -> None:
    volume_node = a_scene.add_volume(a_grid)
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(axis)
    for index, slice_mask in slices_of(mask, axis).items():
        writing.write_slices(node, segment, volume, axis, {index: slice_mask})
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), mask)
    np.testing.assert_array_equal(nodes.read_slice(node, segment, volume, axis, 3), take_slice(mask, axis, 3))


def test_a_mask_that_fills_the_volume_to_its_border_is_read_back(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["oblique"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "body")
    mask = np.ones(SHAPE_KJI, bool)
    writing.write_slices(node, segment, volume, 2, slices_of(mask, 2))
    assert nodes.read_segment(node, segment, volume).all()


def test_slicers_own_export_agrees_with_what_was_written(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["oblique and left-handed"])
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(5)
    writing.write_slices(node, segment, nodes.read_volume_node(volume_node), 1, slices_of(mask, 1))
    export = a_scene.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "export")
    a_scene.logic.ExportSegmentsToLabelmapNode(node, [segment], export, volume_node)
    np.testing.assert_array_equal(layers.array_kji(export.GetImageData()) > 0, mask)


def test_writing_a_slice_again_replaces_it_and_leaves_the_others(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["anisotropic"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask, other = a_blob(1), a_blob(2)
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    writing.write_slices(node, segment, volume, 0, {2: other[2], 5: np.zeros_like(mask[5])})
    expected = mask.copy()
    expected[2], expected[5] = other[2], False
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), expected)


def test_a_segment_emptied_slice_by_slice_can_be_written_again(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(1)
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    writing.write_slices(node, segment, volume, 0, slices_of(np.zeros_like(mask), 0))
    assert not nodes.read_segment(node, segment, volume).any()
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), mask)


def test_a_labelmap_cropped_and_shifted_by_whole_voxels_is_read_and_written(a_scene) -> None:
    """A .seg.nrrd saved cropped comes back with its first voxel in another place."""
    volume_node = a_scene.add_volume(a_scene.grids["oblique"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(1)
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    image = labelmap(node, segment)
    i0, _, j0, _, k0, _ = image.GetExtent()
    image.SetOrigin(*(a_scene.grids["oblique"] @ (i0, j0, k0, 1))[:3])
    image.SetExtent(*(v for n in image.GetDimensions() for v in (0, n - 1)))
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), mask)
    mask[3] = ~mask[3]
    writing.write_slices(node, segment, volume, 0, {3: mask[3]})
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), mask)


@pytest.mark.parametrize("shared", [True, False], ids=["one layer", "two layers"])
@pytest.mark.parametrize("overlap", Overlap)
def test_a_neighbour_loses_voxels_only_when_overwriting_was_chosen(
    a_scene, overlap: Overlap, shared: bool
) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["left-handed"])
    volume = nodes.read_volume_node(volume_node)
    node, (liver, spleen) = a_scene.add_segmentation(volume_node, "liver", "spleen")
    spleen_mask, liver_mask = a_blob(1), a_blob(2)
    writing.write_slices(node, spleen, volume, 0, slices_of(spleen_mask, 0))
    if not shared:
        node.GetSegmentation().SeparateSegmentLabelmap(liver)
    assert (labelmap(node, liver) is labelmap(node, spleen)) == shared

    writing.write_slices(node, liver, volume, 0, slices_of(liver_mask, 0), EditingRules.from_overlap(overlap))

    expected_liver = liver_mask & ~spleen_mask if overlap is Overlap.KEEP_OTHERS else liver_mask
    expected_spleen = spleen_mask & ~liver_mask if overlap is Overlap.OVERWRITE else spleen_mask
    np.testing.assert_array_equal(nodes.read_segment(node, liver, volume), expected_liver)
    np.testing.assert_array_equal(nodes.read_segment(node, spleen, volume), expected_spleen)


def test_shrinking_a_segment_on_a_shared_layer_leaves_its_neighbour_there(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (liver, spleen) = a_scene.add_segmentation(volume_node, "liver", "spleen")
    left, right = np.zeros(SHAPE_KJI, bool), np.zeros(SHAPE_KJI, bool)
    left[1:6, 2:9, 1:7], right[1:6, 2:9, 7:13] = True, True
    writing.write_slices(node, liver, volume, 0, slices_of(left, 0))
    writing.write_slices(node, spleen, volume, 0, slices_of(right, 0))
    left[:, :, 4:] = False
    writing.write_slices(node, liver, volume, 0, slices_of(left, 0))
    assert labelmap(node, liver) is labelmap(node, spleen)
    np.testing.assert_array_equal(nodes.read_segment(node, liver, volume), left)
    np.testing.assert_array_equal(nodes.read_segment(node, spleen, volume), right)


def test_only_what_changes_is_written_and_in_the_memory_the_labelmap_has(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(1)
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    memory = layers.Layer.of(node, segment, volume).voxels_kji
    before = memory.copy()
    mask[3, 4:6, 7:10] ^= True
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    again = layers.Layer.of(node, segment, volume).voxels_kji
    assert np.shares_memory(memory, again)
    assert (memory != before).sum() == 6
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), mask)


def test_writing_does_not_touch_other_layers(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (liver, spleen) = a_scene.add_segmentation(volume_node, "liver", "spleen")
    node.GetSegmentation().SeparateSegmentLabelmap(spleen)
    writing.write_slices(node, spleen, volume, 0, slices_of(a_blob(1), 0))
    before = labelmap(node, spleen), labelmap(node, spleen).GetMTime()
    writing.write_slices(node, liver, volume, 0, slices_of(a_blob(2), 0))
    assert (labelmap(node, spleen), labelmap(node, spleen).GetMTime()) == before


def test_writing_what_is_already_there_changes_nothing(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(1)
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    modified = labelmap(node, segment).GetMTime()
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    assert labelmap(node, segment).GetMTime() == modified


def test_more_segments_than_a_byte_can_number_share_a_layer(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, ids = a_scene.add_segmentation(volume_node, *(f"lesion {n}" for n in range(300)))
    for n, segment in enumerate(ids):
        pixel = np.zeros(SHAPE_KJI[1:], bool)
        pixel[divmod(n % 180, 15)] = True
        writing.write_slices(node, segment, volume, 0, {n // 180: pixel})
    for n in (0, 179, 255, 256, 299):
        assert np.argwhere(nodes.read_segment(node, ids[n], volume)).tolist() == [
            [n // 180, *divmod(n % 180, 15)]
        ]


def test_a_segmentation_on_another_grid_is_refused_and_left_alone(a_scene) -> None:
    volume_node, other_node = (
        a_scene.add_volume(a_scene.grids["straight"]),
        a_scene.add_volume(a_scene.grids["oblique"]),
    )
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    volume, other = nodes.read_volume_node(volume_node), nodes.read_volume_node(other_node)
    mask = a_blob(1)
    writing.write_slices(node, segment, volume, 0, slices_of(mask, 0))
    with pytest.raises(InputError, match="lies on another voxel grid"):
        writing.write_slices(node, segment, other, 0, slices_of(~mask, 0))
    np.testing.assert_array_equal(nodes.read_segment(node, segment, volume), mask)


def test_a_segmentation_made_of_surfaces_is_refused(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    with pytest.raises(InputError, match="stored as 'Closed surface'; make Binary labelmap its source"):
        nodes.read_segment(node, segment, nodes.read_volume_node(volume_node))


def test_an_unknown_segment_and_a_wrong_slice_shape_are_refused(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    with pytest.raises(InputError, match="has no segment 'Segment_9'"):
        nodes.read_segment(node, "Segment_9", volume)
    with pytest.raises(InputError, match=r"has shape \(12, 15\), not \(3, 3\)"):
        writing.write_slices(node, segment, volume, 0, {0: np.ones((3, 3), bool)})


def test_segments_are_listed_with_name_and_color(a_scene) -> None:
    node, ids = a_scene.add_segmentation(a_scene.add_volume(a_scene.grids["straight"]), "liver", "spleen")
    node.GetSegmentation().GetSegment(ids[1]).SetColor(0.25, 0.5, 1.0)
    liver, spleen = nodes.list_segments(node)
    assert (liver.id, liver.name) == (ids[0], "liver")
    assert (spleen.name, spleen.color_rgb) == ("spleen", (0.25, 0.5, 1.0))


def test_annotated_slices_are_those_with_foreground() -> None:
    mask = np.zeros((5, 6, 7), bool)
    mask[3, 2, 4] = mask[1, 2, 6] = True
    assert [nodes.annotated_slices(mask, axis) for axis in (0, 1, 2)] == [[1, 3], [2], [4, 6]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_painted_axis_is_the_one_with_the_fewest_slices(axis: int) -> None:
    liver, spleen = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    as_stack(liver, axis)[[2, 6], 1:8, 2:7] = True
    as_stack(spleen, axis)[4, 3:6, 3:6] = True
    assert nodes.guess_axis([liver, spleen]) == axis


def test_whole_objects_are_taken_for_painted_across_the_volumes_own_slices() -> None:
    organ, rod = np.zeros((20, 30, 30), bool), np.zeros((20, 30, 30), bool)
    organ[2:18, 5:19, 4:28] = True  # 16, 14 and 24 slices
    rod[:, 3:11, 3:10] = True
    assert nodes.painted_across(organ) is None
    assert nodes.guess_axis([organ]) == 0
    assert nodes.guess_axis([organ, rod]) == 0
    assert nodes.guess_axis([np.ones((40, 12, 40), bool)]) == 1  # far fewer the other way


def test_a_thin_mask_tells_across_which_axis_it_was_painted() -> None:
    mask = np.zeros((9, 9, 9), bool)
    assert nodes.painted_across(mask) is None
    mask[4, 4, 4] = True
    assert nodes.painted_across(mask) is None
    mask[1:8, 4, 4] = True
    assert nodes.painted_across(mask) is None  # a line lies in two views
    mask[1:8, 4, 2:7] = True
    assert nodes.painted_across(mask) == 1


def test_predicted_slices_are_not_taken_for_drawn_ones_until_the_user_changes_them(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(1)
    writing.write_slices(node, segment, volume, 0, {3: mask[3]})
    writing.write_predicted_slices(node, segment, volume, 0, {1: mask[1], 2: mask[2], 4: mask[4]})

    def drawn() -> list[int]:
        start, box = nodes.read_drawn(node, segment, volume)
        return [start[0] + n for n in nodes.annotated_slices(box, 0)]

    assert drawn() == [3]
    corrected = mask[4].copy()
    corrected[2, 2] ^= True
    writing.write_slices(node, segment, volume, 0, {4: corrected})
    assert drawn() == [3, 4]


def test_what_was_predicted_is_remembered_in_a_saved_file(a_scene, tmp_path) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["oblique"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(1)
    writing.write_slices(node, segment, volume, 0, {3: mask[3]})
    writing.write_predicted_slices(node, segment, volume, 0, {2: mask[2], 4: mask[4]})
    storage = a_scene.scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "liver.seg.nrrd"))
    assert storage.WriteData(node)

    loaded = a_scene.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
    assert storage.ReadData(loaded)
    (again,) = nodes.list_segments(loaded)
    assert tags.predicted_slices(loaded, again.id) == tags.predicted_slices(node, segment)
    np.testing.assert_array_equal(
        nodes.read_segment(loaded, again.id, volume), nodes.read_segment(node, segment, volume)
    )


def test_a_predicted_slice_that_is_written_empty_no_longer_counts_as_predicted(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (segment,) = a_scene.add_segmentation(volume_node, "liver")
    mask = a_blob(1)
    writing.write_predicted_slices(node, segment, volume, 0, {3: mask[3], 4: mask[4]})
    writing.write_predicted_slices(node, segment, volume, 0, {3: np.zeros_like(mask[3])})
    assert tags.predicted_slices(node, segment).keys() == {(0, 4)}
    assert nodes.annotated_slices(nodes.read_segment(node, segment, volume), 0) == [4]


def test_overwriting_a_predicted_neighbour_does_not_make_its_slices_drawn(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (liver, spleen) = a_scene.add_segmentation(volume_node, "liver", "spleen")
    writing.write_predicted_slices(node, spleen, volume, 0, slices_of(a_blob(1), 0))
    writing.write_predicted_slices(
        node, liver, volume, 0, slices_of(a_blob(2), 0), EditingRules.from_overlap(Overlap.OVERWRITE)
    )
    assert not nodes.read_drawn(node, spleen, volume)[1].any()


def test_surfaces_follow_what_is_written_once_they_are_refreshed(a_scene) -> None:
    volume_node = a_scene.add_volume(a_scene.grids["straight"])
    volume = nodes.read_volume_node(volume_node)
    node, (liver, spleen) = a_scene.add_segmentation(volume_node, "liver", "spleen")
    block = np.ones((6, 6), bool)
    for segment in (liver, spleen):
        writing.write_slices(node, segment, volume, 0, {3: np.pad(block, ((3, 3), (4, 5)))})
    node.CreateClosedSurfaceRepresentation()
    told = []
    modified = slicer.vtkSegmentation.RepresentationModified
    node.GetSegmentation().AddObserver(modified, lambda *_: told.append(modified))

    writing.write_slices(node, liver, volume, 0, {k: np.pad(block, ((3, 3), (4, 5))) for k in (2, 4, 5)})
    writing.refresh_surfaces(node, [liver, "gone"])
    assert told
    thickness = {}
    for segment in (liver, spleen):
        bounds = node.GetSegmentation().GetSegment(segment).GetRepresentation("Closed surface").GetBounds()
        thickness[segment] = bounds[5] - bounds[4]
    assert thickness[liver] > thickness[spleen] + 2
