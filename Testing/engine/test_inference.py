"""Prediction covers every voxel once, whatever the grid, and what is streamed equals what the whole would give."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from medssl.datasets.grid import PreparedGrid, prepare_image
from medssl.datasets.input_contract import InputContract
from medssl.errors import Cancelled, InputError
from medssl.events import Log
from medssl.few_labels.finetuning import predictor_of
from medssl.few_labels.segmenter import ModelInfo, SegmentationModel
from medssl.few_labels.tiling import ScanPredictor
from medssl.inference import PredictedSlices, predict, predict_volume
from medssl.segmentation import Segment
from medssl.volume import Volume
from numpy.typing import NDArray
from torch import Tensor

FLAT = InputContract(size=(16, 16), spacing_kji_mm=(None, 4.0, 4.0), window_hu=(-200.0, 400.0))
MODEL = dataclasses.replace(FLAT, size=(32, 32))
SOLID = InputContract(spatial_dims=3, size=(8, 16, 16), spacing_kji_mm=(4.0, 4.0, 4.0))


def volume(spacing_kji: tuple[float, float, float] = (5.0, 2.0, 3.0), orientation: str = "RAS") -> Volume:
    rng = np.random.default_rng(0)
    voxels = rng.integers(-150, 300, (11, 33, 29)).astype(np.int16)
    voxels[:, :3] = -1000
    k, j, i = spacing_kji
    axes = {
        "RAS": np.diag([i, j, k]),
        "LPS": np.diag([-i, -j, k]),
        "coronal": np.array([[i, 0, 0], [0, 0, k], [0, j, 0]]),
    }
    affine = np.eye(4)
    affine[:3, :3] = axes[orientation]
    return Volume(voxels, affine, "random")


def model(
    contract: InputContract = FLAT, names: tuple[str, ...] = ("kidney_left", "kidney_right")
) -> SegmentationModel:
    torch.manual_seed(0)
    segments = tuple(Segment(name, 3 * n, (1.0, 0.0, 0.0)) for n, name in enumerate(names, start=1))
    built = SegmentationModel.build(ModelInfo(backbone="unet2d_4", contract=contract, segments=segments))
    with torch.no_grad():
        built.network.head.weight.mul_(20.0)  # random weights that decide
    built.network.eval()
    return built


def brighter(images: Tensor) -> Tensor:
    """Two classes, each voxel by itself, so tiles cannot matter."""
    bright = images[:, :1].sigmoid()
    return torch.cat([1.0 - bright, bright], dim=1)


def predictor(contract: InputContract, **changes: object) -> ScanPredictor:
    whole = ScanPredictor(answer=brighter, contract=contract, classes=2, divisor=8)
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def image(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    return np.random.default_rng(1).integers(-400, 600, shape).astype(np.int16)


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("shape", [(5, 16, 16), (3, 50, 23), (4, 7, 9)])
def test_slices_of_any_size_are_predicted_as_each_voxel_by_itself(
    shape: tuple[int, int, int], fixed_size: bool
) -> None:
    scan = image(shape)
    found = np.full((2, *shape), np.nan)
    for slab in predictor(FLAT, fixed_size=fixed_size).slabs(scan):
        found[:, slab.first : slab.stop] = slab.probabilities
    expected = brighter(torch.from_numpy(FLAT.apply(scan))[:, None])[:, 1]
    np.testing.assert_allclose(found[1], expected, atol=1e-5)


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("shape", [(8, 16, 16), (30, 37, 21), (3, 9, 40)])
def test_blocks_of_any_size_are_predicted_as_each_voxel_by_itself(
    shape: tuple[int, int, int], fixed_size: bool
) -> None:
    scan = image(shape)
    found, seen = np.full((2, *shape), np.nan), np.zeros(shape[0], int)
    for slab in predictor(SOLID, fixed_size=fixed_size).slabs(scan):
        found[:, slab.first : slab.stop] = slab.probabilities
        seen[slab.first : slab.stop] += 1
    assert (seen == 1).all()
    expected = brighter(torch.from_numpy(SOLID.apply(scan))[None])[0, 1]
    np.testing.assert_allclose(found[1], expected, atol=1e-5)


@pytest.mark.parametrize(("contract", "k_mm"), [(FLAT, None), (FLAT, 1.0), (FLAT, 5.0), (SOLID, None)])
def test_slabs_come_from_the_start_outwards(contract: InputContract, k_mm: float | None) -> None:
    spacing = k_mm and (k_mm, 4.0, 4.0)
    slabs = list(predictor(contract).slabs(image((200, 16, 16)), start=150, spacing_kji_mm=spacing))
    assert sorted(k for slab in slabs for k in range(slab.first, slab.stop)) == list(range(200))
    away = [max(slab.first - 150, 150 - (slab.stop - 1), 0) for slab in slabs]
    assert away[0] <= 8  # a slice in two rows of blocks waits for both
    assert away[0] == 0 or contract is SOLID
    assert len(slabs) > 3
    assert all(b >= a - 40 for a, b in itertools.pairwise(away))


def test_air_is_not_shown_to_the_network() -> None:
    def refuse(images: Tensor) -> Tensor:
        raise AssertionError

    (slab,) = predictor(FLAT, answer=refuse).slabs(np.full((4, 16, 16), -1000, np.int16))
    assert (slab.probabilities[0] == 1.0).all()


@pytest.mark.parametrize("contract", [FLAT, SOLID])
@pytest.mark.parametrize("corner", [(0, 0), (30, 41), (60, 90), (77, 105)])
def test_tiles_cover_the_body_and_not_the_air_around_it(
    contract: InputContract, corner: tuple[int, int]
) -> None:
    j, i = corner
    scan = np.full((8, 90, 120), -1000, np.int16)
    body = (slice(None), slice(j, j + 13), slice(i, i + 15))
    scan[body] = image((8, 13, 15))
    shown: list[int] = []

    def counting(images: Tensor) -> Tensor:
        shown.append(images.shape[0] * images.shape[-1] * images.shape[-2])
        return brighter(images)

    (slab,) = predictor(contract, fixed_size=True, answer=counting).slabs(scan)
    expected = torch.from_numpy(contract.apply(scan[body])).sigmoid()
    np.testing.assert_allclose(slab.probabilities[1][body], expected.reshape(8, 13, 15), atol=1e-5)
    slices = 8 if contract is FLAT else 1
    assert sum(shown) <= slices * 9 * 16 * 16  # the whole has 70 tiles
    far = np.ones((90, 120), bool)
    far[max(j - 20, 0) : j + 33, max(i - 20, 0) : i + 35] = False
    assert (slab.probabilities[0][:, far] == 1.0).all()


def bright(images: Tensor) -> Tensor:
    """Two classes: what is nearly at the top of the window, and everything else."""
    found = (images[:, :1] > 1.2).float()
    return torch.cat([1.0 - found, found], dim=1)


def with_objects(
    shape: tuple[int, int, int], thickness: int, count: int
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A body of water in air with bright objects, and where they are."""
    rng = np.random.default_rng(thickness)
    scan, there = np.full(shape, -1000, np.int16), np.zeros(shape, bool)
    scan[:, 4:-4, 6:-6] = 0
    for _ in range(count):
        k, j, i = (int(rng.integers(4, side - 4 - thickness)) for side in shape)
        there[k : k + thickness, j : j + int(rng.integers(1, 6)), i : i + int(rng.integers(1, 6))] = True
    scan[there] = 390
    return scan, there


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize(("k_mm", "thickness"), [(5.0, 2), (2.5, 2), (2.0, 3), (1.0, 6)])
def test_what_is_two_slices_and_six_mm_thick_is_found_as_if_every_slice_were_looked_at(
    k_mm: float, thickness: int, fixed_size: bool
) -> None:
    shown = []

    def counting(images: Tensor) -> Tensor:
        shown.append(images.numel())
        return bright(images)

    flat = predictor(FLAT, answer=counting, fixed_size=fixed_size)
    for count in (1, 2, 5):
        scan, there = with_objects((40, 60, 50), thickness, count)
        found = np.zeros(scan.shape, bool)
        for slab in flat.slabs(scan, spacing_kji_mm=(k_mm, 4.0, 4.0)):
            found[slab.first : slab.stop] = slab.probabilities.argmax(0)
        np.testing.assert_array_equal(found, there)
        looked_at = sum(shown)
        shown.clear()
        assert len(list(flat.slabs(scan)))
        assert looked_at < 0.9 * sum(shown)
        shown.clear()


@pytest.mark.parametrize(("objects", "slices"), [((), 11), ((6, 7, 8, 9), 14), ((20,), 12)])
def test_nothing_is_asked_between_two_slices_that_show_nothing(objects: tuple[int, ...], slices: int) -> None:
    scan = np.zeros((21, 16, 16), np.int16)
    scan[list(objects), 4:8, 4:8] = 390
    shown: list[int] = []

    def counting(images: Tensor) -> Tensor:
        shown.append(len(images))
        return bright(images)

    found = list(predictor(FLAT, answer=counting).slabs(scan, spacing_kji_mm=(5.0, 4.0, 4.0)))
    assert sum(shown) == slices
    assert sum(int(slab.probabilities[1].sum()) for slab in found) == 16 * len(objects)
    assert all((slab.probabilities.sum(0) == 1.0).all() for slab in found)


@pytest.mark.parametrize("spacing", [None, (1.0, 4.0, 4.0), (5.0, 4.0, 4.0)])
def test_only_wanted_slices_come_and_each_once(spacing: tuple[float, float, float] | None) -> None:
    wanted = [0, 3, 4, *range(7, 30), 39]
    slabs = list(predictor(FLAT).slabs(image((40, 16, 16)), wanted=wanted, spacing_kji_mm=spacing))
    assert sorted(k for slab in slabs for k in range(slab.first, slab.stop)) == wanted


def test_whether_to_stop_is_asked_before_every_batch() -> None:
    asked: list[str] = []

    def answer(images: Tensor) -> Tensor:
        asked.append("network")
        return brighter(images)

    def go_on() -> bool:
        asked.append("user")
        return False

    scan = image((60, 100, 100))
    list(predictor(FLAT, answer=answer).slabs(scan, spacing_kji_mm=(1.0, 4.0, 4.0), cancelled=go_on))
    assert asked.count("network") > 3
    assert ("network", "network") not in itertools.pairwise(asked)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "coronal"])
@pytest.mark.parametrize("k_mm", [None, 3.0, 9.0])
def test_slices_brought_back_one_by_one_equal_the_whole(orientation: str, k_mm: float | None) -> None:
    contract = dataclasses.replace(FLAT, spacing_kji_mm=(k_mm, 4.0, 4.0))
    source = volume(orientation=orientation)
    _, grid = prepare_image(source, contract)
    prepared = np.random.default_rng(2).random((2, *grid.shape_kji)).astype(np.float32)
    whole = grid.to_native(prepared)
    axis = grid.axes[0]
    for index in range(source.shape_kji[axis]):
        (part,) = np.moveaxis(grid.slices_to_native(prepared, [index]), 1, 0)
        np.testing.assert_allclose(part, np.moveaxis(whole, axis + 1, 0)[index], atol=1e-6)


def test_a_slice_is_final_when_nothing_it_depends_on_is_missing() -> None:
    source = volume()
    grid = PreparedGrid.of(source, dataclasses.replace(FLAT, spacing_kji_mm=(4.0, 4.0, 4.0)))
    done = np.zeros(grid.shape_kji[0], bool)
    done[3:9] = True
    prepared = np.random.default_rng(3).random(grid.shape_kji).astype(np.float32)
    other = np.where(done[:, None, None], prepared, 0.0)
    same = np.isclose(grid.to_native(prepared), grid.to_native(other)).all(axis=(1, 2))
    np.testing.assert_array_equal(grid.final_slices(done), same)
    assert 0 < same.sum() < len(same)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "coronal"])
@pytest.mark.parametrize("contract", [MODEL, dataclasses.replace(MODEL, fit="resize", neighbours=1)])
def test_streamed_slices_cover_the_volume_once_on_its_own_grid(
    orientation: str, contract: InputContract
) -> None:
    source = volume(orientation=orientation)
    built = model(contract)
    events = [e for e in predict(built, source, device="cpu") if isinstance(e, PredictedSlices)]
    axis = source.axis_of("axial")
    assert sorted(n for event in events for n in event.indices) == list(range(source.shape_kji[axis]))
    whole = predict_volume(built, source, device="cpu")
    assert whole.segmentation.shape_kji == source.shape_kji
    assert set(np.unique(whole.segmentation.labels_kji)) == {0, 3, 6}
    assert whole.probability.min() >= 1 / 3 - 1e-6
    assert 0.0 <= whole.uncertainty.min() <= whole.uncertainty.max() <= 1.0


def test_the_mean_with_the_mirror_image_is_its_own_mirror_image() -> None:
    source = volume()
    mirrored = Volume(source.voxels_kji[:, :, ::-1], source.ijk_to_ras, "mirrored")
    labels = predict_volume(model(), source, uncertainty="flip-average", device="cpu").segmentation.labels_kji
    found = predict_volume(
        model(), mirrored, uncertainty="flip-average", device="cpu"
    ).segmentation.labels_kji
    swapped = np.array([0, 0, 0, 6, 0, 0, 3])[found][:, :, ::-1]
    assert (swapped == labels).mean() > 0.99


def test_dropout_repeats_and_leaves_the_network_as_it_was() -> None:
    built = model()
    built.network.backbone.encoder.stages[0][-1].p = 0.3
    first, second = (predict_volume(built, volume(), uncertainty="dropout", device="cpu") for _ in range(2))
    np.testing.assert_array_equal(first.uncertainty, second.uncertainty)
    assert not any(module.training for module in built.network.modules())


def test_what_cannot_be_mirrored_is_answered_once_and_says_so() -> None:
    built = model(names=("left kidney",))
    said: list[Log] = []
    found = predict_volume(built, volume(), uncertainty="flip-average", device="cpu", on_warning=said.append)
    once = predict_volume(built, volume(), device="cpu")
    np.testing.assert_array_equal(found.uncertainty, once.uncertainty)
    assert "other side of left kidney" in said[-1].text


def test_a_slice_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="0 to 10"):
        list(predict(model(), volume(), start=11, device="cpu"))


def test_prediction_stops_when_asked() -> None:
    with pytest.raises(Cancelled):
        list(predict(model(), volume(), device="cpu", cancelled=lambda: True))


def test_a_network_that_normalises_by_what_is_in_view_is_shown_what_it_has_learnt_from() -> None:
    """A far bright part that comes into view changes nothing where a tile of training does not reach it."""
    built = model(dataclasses.replace(MODEL, neighbours=0), ("liver",))
    scan = np.random.default_rng(0).integers(-100, 200, (1, 32, 160)).astype(np.int16)
    brighter_far = scan.copy()
    brighter_far[:, :, 96:] = 400
    answers = [
        next(predictor_of(built.network, MODEL).slabs(image)).probabilities for image in (scan, brighter_far)
    ]
    np.testing.assert_allclose(answers[0][..., :64], answers[1][..., :64], atol=1e-6)
    assert not np.allclose(answers[0][..., 96:], answers[1][..., 96:])
