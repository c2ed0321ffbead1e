"""A coarse mask is refined slice by slice, and never quietly replaced by something worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from medssl.errors import Cancelled, InputError
from medssl.events import Progress
from medssl.foundation.protocols import Prediction
from medssl.metrics import dice
from medssl.prompts import SlicePrompt
from medssl.refine import RefineOptions, RefineReport, largest_component, refine, refine_mask
from medssl.results import SliceMask
from medssl.volume import Volume, Window, take_slice
from scipy import ndimage

SHAPE = (10, 40, 48)
SPACING = (4.0, 1.0, 2.0)


def ball() -> np.ndarray:
    k, j, i = np.mgrid[:10, :40, :48]
    return np.asarray(((k - 5) / 3.4) ** 2 + ((j - 18) / 10) ** 2 + ((i - 22) / 9) ** 2 < 1)


TRUTH = ball()
COARSE = ndimage.binary_dilation(TRUTH, np.ones((1, 5, 5)))
"""The truth, two pixels too fat on every slice."""


@pytest.fixture
def volume() -> Volume:
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    return Volume((TRUTH * 100 + noise).astype(np.int16), np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0]))


@dataclass
class FakePredictor:
    """Sees the object where it is bright, within each box it is asked about."""

    broken: Callable[[int], bool] = lambda call: False
    """Which slices, in the order they are set, are answered with the whole box."""
    images: list[np.ndarray] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    spacings: list[tuple[float, float]] = field(default_factory=list)
    batches: list[np.ndarray] = field(default_factory=list)

    def set_image(self, slice_hu: np.ndarray, window: Window, spacing_rc_mm: tuple[float, float]) -> None:
        self.images.append(slice_hu)
        self.windows.append(window)
        self.spacings.append(spacing_rc_mm)

    def predict(self, prompt: SlicePrompt) -> Prediction:
        raise AssertionError("Refinement asks about boxes in batches.")

    def predict_boxes(self, boxes_xyxy_px: np.ndarray, hint: np.ndarray | None = None) -> list[Prediction]:
        self.batches.append(boxes_xyxy_px)
        return [self._answer(box, 0.9 - 0.1 * n) for n, box in enumerate(boxes_xyxy_px)]

    def _answer(self, box: np.ndarray, score: float) -> Prediction:
        x0, y0, x1, y1 = np.rint(box).astype(int)
        mask = np.zeros(self.images[-1].shape, bool)
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
        if self.broken(len(self.images) - 1):
            mask = ~mask
        else:
            mask &= self.images[-1] > 50
        return Prediction(mask, score, np.zeros((4, 4), np.float32))


def test_a_coarse_mask_comes_closer_to_the_truth(volume: Volume) -> None:
    report = refine_mask(volume, COARSE, FakePredictor())
    np.testing.assert_array_equal(report.refined_kji, TRUTH)
    np.testing.assert_array_equal(report.coarse_kji, COARSE)
    assert report.kept_coarse == ()
    assert report.summary == "All 7 slices were refined."
    coarse, largest, refined = report.scores(TRUTH, SPACING)
    assert [s.segment for s in (coarse, largest, refined)] == ["coarse", "largest component", "refined"]
    assert coarse.dice == largest.dice == dice(COARSE, TRUTH) < 0.9
    assert coarse.volume_error > 0.3
    assert coarse.hd95_mm > 2
    assert (refined.dice, refined.hd95_mm, refined.nsd, refined.volume_error) == (1, 0, 1, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_touched_slice_is_shown_once_with_one_box_a_margin_wider(volume: Volume, axis: int) -> None:
    predictor = FakePredictor()
    window = Window(50, 100)
    options = RefineOptions(axis=axis, margin_mm=4.0, window=window, guard_dice=0)
    report = refine_mask(volume, COARSE, predictor, options)
    touched = [n for n in range(SHAPE[axis]) if take_slice(COARSE, axis, n).any()]
    assert [s.index for s in report.slices] == touched
    assert len(predictor.batches) == len(touched)
    row_mm, col_mm = volume.slice_spacing_mm(axis)
    assert set(predictor.windows) == {window}
    assert set(predictor.spacings) == {(row_mm, col_mm)}
    for index, image, boxes in zip(touched, predictor.images, predictor.batches, strict=True):
        np.testing.assert_array_equal(image, take_slice(volume.voxels_kji, axis, index))
        rows, cols = np.nonzero(take_slice(COARSE, axis, index))
        height, width = image.shape
        expected = [
            max(cols.min() - 4.0 / col_mm, 0),
            max(rows.min() - 4.0 / row_mm, 0),
            min(cols.max() + 4.0 / col_mm, width - 1),
            min(rows.max() + 4.0 / row_mm, height - 1),
        ]
        np.testing.assert_allclose(boxes, [expected])


def test_slices_come_as_soon_as_they_are_known_each_with_its_progress(volume: Volume) -> None:
    events = list(refine(volume, COARSE, FakePredictor()))
    masks, steps = events[::2], events[1::2]
    assert all(isinstance(m, SliceMask) for m in masks)
    assert all(isinstance(s, Progress) for s in steps)
    assert [m.index for m in masks if isinstance(m, SliceMask)] == list(range(2, 9))
    assert [(s.done, s.total) for s in steps if isinstance(s, Progress)] == [(n, 7) for n in range(1, 8)]
    for mask in masks:
        assert isinstance(mask, SliceMask)
        np.testing.assert_array_equal(mask.mask, TRUTH[mask.index])
        assert mask.confidence == pytest.approx(0.9)
        assert not mask.is_reference


def test_a_slice_that_disagrees_keeps_the_coarse_mask_and_says_so(volume: Volume) -> None:
    notes: list[str] = []
    predictor = FakePredictor(broken=lambda call: call == 3)
    report = refine_mask(volume, COARSE, predictor, progress=lambda step: notes.append(step.text))
    assert report.kept_coarse == (5,)
    np.testing.assert_array_equal(report.refined_kji[5], COARSE[5])
    np.testing.assert_array_equal(report.refined_kji[4], TRUTH[4])
    assert [n for n in notes if n] == [
        "Slice 5 keeps the coarse mask: the refined one agreed too little with it (Dice 0.00)."
    ]
    assert report.summary.startswith("6 of 7 slices were refined; the coarse mask was kept on 5,")
    kept = report.slices[3]
    assert (kept.index, kept.agreement, kept.kept_coarse) == (5, 0.0, True)


def test_a_guard_of_zero_takes_every_answer(volume: Volume) -> None:
    predictor = FakePredictor(broken=lambda call: call == 3)
    report = refine_mask(volume, COARSE, predictor, RefineOptions(guard_dice=0))
    assert report.kept_coarse == ()
    assert not (report.refined_kji[5] & COARSE[5]).any()


@pytest.mark.parametrize(
    "options", [RefineOptions(), RefineOptions(per_component=True, largest_component=True)]
)
def test_empty_in_is_empty_out_and_the_model_is_not_called(volume: Volume, options: RefineOptions) -> None:
    predictor = FakePredictor()
    events = refine(volume, np.zeros(SHAPE, bool), predictor, options)
    with pytest.raises(StopIteration) as end:
        next(events)
    report = end.value.value
    assert isinstance(report, RefineReport)
    assert not report.refined_kji.any()
    assert not report.largest_kji.any()
    assert report.slices == ()
    assert "nothing to refine" in report.summary
    assert predictor.images == predictor.batches == []


def two_parts() -> np.ndarray:
    """The coarse ball, an island that is bright in no image, and specks."""
    coarse = COARSE.copy()
    coarse[4:6, 33:38, 40:46] = True
    coarse[5, 1, 1:4] = True
    return coarse


def test_each_connected_part_gets_its_own_box_in_one_batch(volume: Volume) -> None:
    predictor = FakePredictor()
    options = RefineOptions(per_component=True, margin_mm=0, guard_dice=0)
    report = refine_mask(volume, two_parts(), predictor, options)
    assert [len(b) for b in predictor.batches] == [1, 1, 2, 2, 1, 1, 1]
    np.testing.assert_array_equal(predictor.batches[3][1], [40, 33, 45, 37])
    assert report.slices[3].score == pytest.approx(0.8)  # the lower one
    expected = TRUTH.copy()
    expected[5, 1, 1:4] = True  # too small for a box: stays
    np.testing.assert_array_equal(report.refined_kji, expected)


def test_only_specks_are_left_alone_and_the_model_is_not_called(volume: Volume) -> None:
    coarse = np.zeros(SHAPE, bool)
    coarse[5, 1, 1:4] = True
    predictor = FakePredictor()
    report = refine_mask(volume, coarse, predictor, RefineOptions(per_component=True))
    np.testing.assert_array_equal(report.refined_kji, coarse)
    assert predictor.images == []


def test_with_the_largest_component_alone_islands_are_emptied(volume: Volume) -> None:
    coarse = two_parts()
    coarse[0, 5:9, 5:9] = True  # an island on a slice of its own
    options = RefineOptions(largest_component=True)
    predictor = FakePredictor()
    masks = {e.index: e.mask for e in refine(volume, coarse, predictor, options) if isinstance(e, SliceMask)}
    assert list(masks) == [0, *range(2, 9)]
    assert not masks[0].any()
    np.testing.assert_array_equal(masks[5], TRUTH[5])
    assert len(predictor.images) == 7
    report = refine_mask(volume, coarse, FakePredictor(), options)
    np.testing.assert_array_equal(report.largest_kji, COARSE)
    np.testing.assert_array_equal(report.refined_kji, TRUTH)


def test_the_report_holds_the_largest_component_even_when_it_was_not_asked_for(volume: Volume) -> None:
    report = refine_mask(volume, two_parts(), FakePredictor())
    np.testing.assert_array_equal(report.largest_kji, COARSE)
    np.testing.assert_array_equal(report.coarse_kji, two_parts())


@pytest.mark.parametrize("density", [0.0, 0.05, 0.2, 1.0])
def test_the_largest_component_is_found_by_flooding(density: float) -> None:
    mask = np.random.default_rng(1).random((6, 9, 11)) < density
    best: set[tuple[int, ...]] = set()
    left = set(map(tuple, np.argwhere(mask).tolist()))
    while left:
        front, part = [left.pop()], set()
        while front:
            voxel = front.pop()
            part.add(voxel)
            near = {n for n in left if max(abs(a - b) for a, b in zip(n, voxel, strict=True)) <= 1}
            left -= near
            front += near
        best = max(best, part, key=len)
    result = largest_component(mask)
    assert result.sum() == len(best)
    assert not (result & ~mask).any()


def test_cancelling_stops_before_the_next_slice(volume: Volume) -> None:
    predictor = FakePredictor()
    with pytest.raises(Cancelled):
        for _ in refine(volume, COARSE, predictor, cancelled=lambda: len(predictor.images) == 3):
            pass
    assert len(predictor.images) == 3


def test_a_mask_of_another_grid_is_refused(volume: Volume) -> None:
    with pytest.raises(InputError, match=r"coarse mask has shape \(3, 4, 5\), but the volume has"):
        refine_mask(volume, np.zeros((3, 4, 5), bool), FakePredictor())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axis": 3}, "must be 0, 1 or 2, not 3"),
        ({"margin_mm": -1.0}, "0 mm or more, not -1 mm"),
        ({"margin_mm": float("nan")}, "0 mm or more"),
        ({"guard_dice": 1.5}, r"from 0 to 1, not 1\.5"),
    ],
)
def test_options_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RefineOptions(**fields)  # type: ignore[arg-type]


def test_the_model_gets_the_coarse_mask_as_a_hint_beside_the_box(volume: Volume) -> None:
    hints: list[np.ndarray | None] = []

    class Listening(FakePredictor):
        def predict_boxes(
            self, boxes_xyxy_px: np.ndarray, hint: np.ndarray | None = None
        ) -> list[Prediction]:
            hints.append(hint)
            return super().predict_boxes(boxes_xyxy_px)

    coarse = np.zeros(volume.shape_kji, bool)
    coarse[2, 3:5, 2:6] = True
    refine_mask(volume, coarse, Listening())
    assert len(hints) == 1
    assert np.array_equal(hints[0], coarse[2])


def test_a_single_pixel_has_a_box_even_without_a_margin(volume: Volume) -> None:
    coarse = np.zeros(volume.shape_kji, bool)
    coarse[2, 3, 2] = True
    report = refine_mask(volume, coarse, FakePredictor(), RefineOptions(margin_mm=0.0, guard_dice=0.0))
    assert len(report.slices) == 1
