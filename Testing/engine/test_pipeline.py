"""From an annotation to whole organs, with a tracker that copies the mask for a few slices."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from medssl.errors import Cancelled, InputError
from medssl.events import Log, Progress
from medssl.foundation.protocols import Prediction, TrackedSlice, TrackJob
from medssl.pipeline import (
    annotated_slices,
    choose_axis,
    collect,
    propagate_volume,
    references_from_annotation,
    refine_volume,
)
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import PropagateOptions
from medssl.results import SliceMask
from medssl.segmentation import Segment, Segmentation
from medssl.volume import Volume, Window, as_stack

SHAPE_KJI = (30, 26, 28)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
LIVER = Segment("liver", 2, (0.8, 0.3, 0.2))
SPLEEN = Segment("spleen", 7, (0.2, 0.5, 0.9))


@dataclass
class CopyingTracker:
    """Repeats each reference mask on every slice."""

    masks: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    axis: int | None = None

    def open(self, volume: Volume, axis: int, window: Window) -> CopyingTracker:
        self.axis = axis
        return self

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        assert prompt.mask is not None
        self.masks[object_id, prompt.index] = prompt.mask
        return TrackedSlice(object_id, prompt.index, prompt.mask, None, 1.0)

    def remove_reference(self, object_id: int, index: int) -> None:
        del self.masks[object_id, index]

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        for job in jobs:
            for index in range(job.start + job.step, job.stop + job.step, job.step):
                mask = self.masks[job.object_id, job.start]
                confidence = 0.9 ** abs(index - job.start)
                yield [(job, TrackedSlice(job.object_id, index, mask, None, confidence))]

    def drop(self, job: TrackJob) -> None:
        """Goes on: what is dropped is not listened to."""


class OpeningPredictor:
    """Answers a box with everything in it."""

    def set_image(self, slice_hu: np.ndarray, window: Window, spacing_rc_mm: tuple[float, float]) -> None:
        self.shape = slice_hu.shape

    def predict(self, prompt: SlicePrompt) -> Prediction:
        assert prompt.box_xyxy_px is not None
        return self.predict_boxes(prompt.box_xyxy_px[None])[0]

    def predict_boxes(self, boxes_xyxy_px: np.ndarray, hint: np.ndarray | None = None) -> list[Prediction]:
        answers = []
        for x0, y0, x1, y1 in boxes_xyxy_px:
            mask = np.zeros(self.shape, bool)
            mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
            answers.append(Prediction(mask, 0.8, np.zeros((1, 1), np.float32)))
        return answers


@pytest.fixture
def volume() -> Volume:
    voxels = np.random.default_rng(1).normal(0, 50, SHAPE_KJI).astype(np.int16)
    return Volume(voxels, AFFINE, "noise")


def _annotation(*marks: tuple[Segment, tuple[slice | int, ...]]) -> Segmentation:
    labels = np.zeros(SHAPE_KJI, np.uint8)
    for segment, where in marks:
        labels[where] = segment.label
    return Segmentation(labels, AFFINE, (LIVER, SPLEEN))


def _square(axis: int, index: int, first: int = 5, last: int = 12) -> tuple[slice | int, ...]:
    where: list[slice | int] = [slice(first, last)] * 3
    where[axis] = index
    return tuple(where)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_becomes_the_organ_along_the_axis_it_was_drawn_across(volume: Volume, axis: int) -> None:
    annotation = _annotation((LIVER, _square(axis, 9)))
    tracker = CopyingTracker()
    options = PropagateOptions(first=4, last=15)
    result = propagate_volume(volume, annotation, tracker=tracker, options=options)
    assert (result.axis, tracker.axis) == (axis, axis)
    mask = as_stack(result.segmentation.mask("liver"), axis)
    assert annotated_slices(mask) == list(range(4, 16))
    assert (mask[4:16] == as_stack(annotation.mask("liver"), axis)[9]).all()
    assert result.segmentation.segments == (LIVER,)
    assert result.references == {"liver": [9]}


def test_confidence_is_known_exactly_where_propagation_came(volume: Volume) -> None:
    annotation = _annotation((LIVER, _square(0, 9)))
    result = propagate_volume(
        volume, annotation, tracker=CopyingTracker(), options=PropagateOptions(first=4, last=15)
    )
    confidence = result.confidence["liver"]
    assert np.flatnonzero(np.isfinite(confidence)).tolist() == list(range(4, 16))
    assert confidence[9] == 1.0
    assert (np.diff(confidence[9:16]) < 0).all()


def test_where_segments_overlap_a_reference_wins_then_the_more_confident(volume: Volume) -> None:
    annotation = _annotation((LIVER, _square(0, 8, 5, 15)), (SPLEEN, _square(0, 14, 10, 20)))
    result = propagate_volume(
        volume, annotation, tracker=CopyingTracker(), options=PropagateOptions(stop=False)
    )
    both = np.s_[11, 11]  # a row and column that both squares cover
    column = result.segmentation.labels_kji[(slice(None), *both)]
    assert column[8] == LIVER.label
    assert column[14] == SPLEEN.label
    assert (column[:11] == LIVER.label).all()
    assert (column[12:] == SPLEEN.label).all()


def test_the_order_of_events_does_not_decide_overlaps(volume: Volume) -> None:
    annotation = _annotation((LIVER, _square(0, 8)), (SPLEEN, _square(0, 14)))
    references = references_from_annotation(volume, annotation)
    everywhere = np.ones(SHAPE_KJI[1:], bool)
    events = [SliceMask("liver", 0, 10, everywhere, 0.4), SliceMask("spleen", 0, 10, everywhere, 0.6)]
    for order in (events, events[::-1]):
        stream = [Progress(0, 1), Log("worker log"), *order]
        result = collect(volume, annotation, references, stream, time.monotonic())
        assert (result.segmentation.labels_kji[10] == SPLEEN.label).all()


def test_references_are_the_annotated_slices_as_drawn(volume: Volume) -> None:
    annotation = _annotation((LIVER, _square(0, 3)), (LIVER, _square(0, 20)), (SPLEEN, _square(0, 9, 15, 20)))
    references = references_from_annotation(volume, annotation)
    assert [(r.segment, r.prompt.index) for r in references] == [("liver", 3), ("liver", 20), ("spleen", 9)]
    for reference in references:
        assert reference.prompt.mask is not None
        drawn = annotation.mask(reference.segment)[reference.prompt.index]
        assert np.array_equal(reference.prompt.mask, drawn)


@pytest.mark.parametrize(
    ("slices", "found"),
    [
        (None, {"liver": [3, 20], "spleen": [9]}),
        ("all", {"liver": [3, 20], "spleen": [9]}),
        ([9], {"spleen": [9]}),
        ([20, 9, 9], {"liver": [20], "spleen": [9]}),
        ({"liver": [20]}, {"liver": [20], "spleen": [9]}),
    ],
)
def test_which_slices_are_taken(volume: Volume, slices: object, found: dict[str, list[int]]) -> None:
    annotation = _annotation((LIVER, _square(0, 3)), (LIVER, _square(0, 20)), (SPLEEN, _square(0, 9)))
    taken: dict[str, list[int]] = {}
    reference: Reference
    for reference in references_from_annotation(volume, annotation, slices=slices):  # type: ignore[arg-type]
        taken.setdefault(reference.segment, []).append(reference.prompt.index)
    assert taken == found


def test_a_finished_segmentation_needs_a_choice_of_slices(volume: Volume) -> None:
    finished = _annotation((LIVER, np.s_[2:26, 5:12, 5:12]))
    with pytest.raises(InputError, match="slices 2 to 25 without a gap"):
        references_from_annotation(volume, finished, axis=0)
    assert len(references_from_annotation(volume, finished, axis=0, slices="all")) == 24
    assert len(references_from_annotation(volume, finished, axis=0, slices=[13])) == 1


def test_finished_segments_that_nobody_names_are_left_out_when_slices_are_given_by_name(
    volume: Volume,
) -> None:
    annotation = _annotation((LIVER, np.s_[2:26, 5:12, 5:12]), (SPLEEN, np.s_[2:26, 13:20, 5:12]))
    references = references_from_annotation(volume, annotation, axis=0, slices={"liver": [13]})
    assert [(r.segment, r.prompt.index) for r in references] == [("liver", 13)]
    with pytest.raises(InputError, match="spleen fills slices 2 to 25"):
        references_from_annotation(
            volume, annotation, axis=0, slices={"liver": [13]}, segments=["liver", "spleen"]
        )


def test_the_axis_is_axial_when_in_doubt(volume: Volume) -> None:
    finished = _annotation((LIVER, np.s_[2:26, 2:24, 2:27]))
    one_voxel = _annotation((LIVER, np.s_[4, 5, 6]))
    lying = Volume(volume.voxels_kji, volume.ijk_to_ras[:, [2, 0, 1, 3]])
    assert choose_axis(volume, finished) == choose_axis(volume, one_voxel) == 0
    assert choose_axis(lying, one_voxel) == lying.axis_of("axial") != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segments": ["pancreas"]}, "no segment 'pancreas'; it has liver, spleen"),
        ({"segments": ["spleen"]}, "annotation of spleen is empty"),
        ({"slices": {"liver": [4]}}, "Slice 4 of liver is not annotated; its annotated slices are 3"),
        ({"slices": {"spleen": [4]}}, "Slice 4 of spleen is not annotated; none of its slices is"),
        ({"slices": [4]}, "Slice 4 is not annotated for any segment"),
    ],
)
def test_a_choice_that_does_not_exist(volume: Volume, arguments: dict[str, object], message: str) -> None:
    annotation = _annotation((LIVER, _square(0, 3)))
    with pytest.raises(InputError, match=message):
        references_from_annotation(volume, annotation, **arguments)  # type: ignore[arg-type]


def test_nothing_annotated(volume: Volume) -> None:
    with pytest.raises(InputError, match="annotation is empty"):
        propagate_volume(volume, _annotation(), tracker=CopyingTracker())


def test_another_grid(volume: Volume) -> None:
    other = Segmentation(np.ones((4, 4, 4), np.uint8), AFFINE, (Segment("liver", 1, (1, 0, 0)),))
    with pytest.raises(InputError, match="shape"):
        references_from_annotation(volume, other)


def test_progress_is_told_and_cancel_is_heard(volume: Volume) -> None:
    annotation = _annotation((LIVER, _square(0, 9)))
    seen: list[Progress] = []
    with pytest.raises(Cancelled):
        propagate_volume(
            volume,
            annotation,
            tracker=CopyingTracker(),
            on_progress=seen.append,
            cancelled=lambda: len(seen) > 3,
        )
    assert 3 < len(seen) < 8


def test_refined_segments_keep_their_identity_and_report_side_by_side(volume: Volume) -> None:
    coarse = _annotation((LIVER, np.s_[4:9, 5:12, 5:12]), (SPLEEN, np.s_[6, 15:20, 15:20]))
    result = refine_volume(volume, coarse, predictor=OpeningPredictor(), segments=["spleen"])
    assert result.segmentation.segments == (SPLEEN,)
    refined = result.segmentation.mask("spleen")
    assert annotated_slices(refined) == [6]
    assert np.array_equal(refined, result.reports["spleen"].refined_kji)
    assert (refined & coarse.mask("spleen")).sum() == coarse.mask("spleen").sum()


def test_refining_nothing_calls_no_model(volume: Volume) -> None:
    result = refine_volume(volume, _annotation(), predictor=OpeningPredictor())
    assert not result.segmentation.labels_kji.any()
    assert "nothing to refine" in result.reports["liver"].summary
