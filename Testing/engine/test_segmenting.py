"""Every stage of the pipeline is kept, and reference slices come from where the prompt mode says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from medssl.cases import CaseStore, Vouched
from medssl.errors import Cancelled, InputError
from medssl.events import Log, Progress
from medssl.evidence import of_propagation, of_segmentation, vouched_references
from medssl.foundation.intensity import IntensityTracker
from medssl.foundation.protocols import Prediction
from medssl.known_slices import KnownSlices
from medssl.metrics import dice
from medssl.pipeline import propagate_volume
from medssl.prompts import SlicePrompt
from medssl.results import SliceMask, UncertaintyMap
from medssl.segmentation import Segment, Segmentation, read_segmentation
from medssl.segmenting import (
    STAGES,
    SegmentOptions,
    SegmentResult,
    choose_references,
    drop_small_parts,
    segment_volume,
)
from medssl.suggest import suggest_slices
from medssl.volume import Volume, Window
from scipy import ndimage

GRID = np.diag([2.0, 2.0, 3.0, 1.0])
SEGMENTS = (Segment("liver", 3, (1.0, 0.0, 0.0)), Segment("spleen", 7, (0.0, 1.0, 0.0)))


def ball(centre: tuple[int, int, int], radii: tuple[int, int, int]) -> np.ndarray:
    places = np.indices((16, 40, 48), float)
    return sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii, strict=True)) < 1  # type: ignore[no-any-return]


LIVER, SPLEEN = ball((8, 18, 14), (6, 10, 9)), ball((7, 22, 36), (4, 7, 6))
TRUTH = Segmentation(np.where(LIVER, 3, np.where(SPLEEN, 7, 0)).astype(np.uint8), GRID, SEGMENTS)


@pytest.fixture
def volume() -> Volume:
    noise = np.random.default_rng(0).normal(0, 5, TRUTH.shape_kji)
    return Volume((LIVER * 150 + SPLEEN * 220 + noise - 60).astype(np.int16), GRID)


@pytest.fixture
def coarse() -> Segmentation:
    """Too fat, with a speck of liver far away."""
    labels = np.zeros(TRUTH.shape_kji, np.uint8)
    labels[ndimage.binary_dilation(LIVER, np.ones((1, 5, 5)))] = 3
    labels[ndimage.binary_dilation(SPLEEN, np.ones((1, 3, 3)))] = 7
    labels[8, 36:38, 44:46] = 3
    return replace(TRUTH, labels_kji=labels)


@dataclass
class Bright:
    """Calls what is bright in a box the object."""

    encoded: int = 0
    image: np.ndarray = field(default_factory=lambda: np.zeros((1, 1)))

    def set_image(self, slice_hu: np.ndarray, window: Window, spacing_rc_mm: tuple[float, float]) -> None:
        self.encoded, self.image = self.encoded + 1, slice_hu

    def predict(self, prompt: SlicePrompt) -> Prediction:
        raise AssertionError("The pipeline asks about boxes.")

    def predict_boxes(self, boxes_xyxy_px: np.ndarray, hint: np.ndarray | None = None) -> list[Prediction]:
        answers = []
        for x0, y0, x1, y1 in np.rint(boxes_xyxy_px).astype(int):
            mask = np.zeros(self.image.shape, bool)
            mask[y0 : y1 + 1, x0 : x1 + 1] = self.image[y0 : y1 + 1, x0 : x1 + 1] > 15
            answers.append(Prediction(mask, 0.9, np.zeros((4, 4), np.float32)))
        return answers


def run(volume: Volume, coarse: Segmentation, **changes: object) -> SegmentResult:
    annotation, known = changes.pop("annotation", None), changes.pop("known", None)
    options = SegmentOptions(margin_mm=2.0, **changes)  # type: ignore[arg-type]
    return segment_volume(
        volume, coarse, predictor=Bright(), tracker=IntensityTracker(), options=options,
        annotation=annotation, known=known,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_stages_come_closer_to_the_truth_and_lie_side_by_side(
    volume: Volume, coarse: Segmentation, tmp_path: Path
) -> None:
    result = run(volume, coarse)
    scores = {stage: np.mean([s.dice for s in each]) for stage, each in result.scores(TRUTH).items()}
    assert list(scores) == list(STAGES)
    assert scores["coarse"] < 0.85 < 0.97 < scores["refined"]
    assert scores["final"] > 0.95
    assert result.segmentation.segments == SEGMENTS
    assert result.agreement["liver"][8] < 0.9
    assert np.isnan(result.agreement["liver"][0])
    result.write(tmp_path / "stages")
    for stage in STAGES:
        again = read_segmentation(tmp_path / "stages" / f"{stage}.seg.nrrd", volume)
        np.testing.assert_array_equal(again.labels_kji, result.stages[stage].labels_kji)


def test_each_slice_is_encoded_once_for_all_segments(volume: Volume, coarse: Segmentation) -> None:
    predictor = Bright()
    segment_volume(volume, coarse, predictor=predictor, tracker=IntensityTracker())
    assert predictor.encoded == len(np.flatnonzero(coarse.labels_kji.any(axis=(1, 2))))


def test_what_is_streamed_adds_up_to_every_stage(volume: Volume, coarse: Segmentation) -> None:
    events: list[object] = []
    result = segment_volume(
        volume, coarse, predictor=Bright(), tracker=IntensityTracker(), on_event=events.append
    )
    assert {event.text for event in events if isinstance(event, Progress)} == {
        "coarse",
        "refined",
        "propagated",
        "final",
    }
    for stage in ("coarse", "refined", "propagated", "final"):
        found = {name: np.zeros(volume.shape_kji, bool) for name in TRUTH.names}
        for event in events:
            if isinstance(event, SliceMask) and event.stage == stage:
                found[event.segment][event.index] = event.mask
        for name, mask in found.items():
            np.testing.assert_array_equal(mask, result.stages[stage].mask(name))
    references = [e for e in events if isinstance(e, SliceMask) and e.is_reference]
    assert sorted(e.index for e in references if e.segment == "liver") == list(result.references["liver"])


def test_reference_slices_are_sure_large_and_spread_out() -> None:
    area = np.array([0, 4, 8, 20, 22, 20, 18, 9, 0, 0])
    sure = np.full(10, 0.9)
    assert choose_references(sure, area, 1) == [4]
    low, high = choose_references(sure, area, 2)
    assert high - low >= 2
    doubtful = sure.copy()
    doubtful[4] = 0.3
    assert 4 not in choose_references(doubtful, area, 10)
    assert choose_references(sure, np.zeros(10), 3) == []


def test_an_annotation_is_where_the_references_come_from_and_nothing_else(
    volume: Volume, coarse: Segmentation
) -> None:
    drawn = np.zeros_like(TRUTH.labels_kji)
    drawn[6] = np.where(LIVER[6], 3, 0)
    annotation = Segmentation(drawn, GRID, SEGMENTS[:1])
    result = run(volume, coarse, prompt="annotation", annotation=annotation)
    assert result.references == {"liver": (6,)}
    np.testing.assert_array_equal(result.segmentation.labels_kji, result.stages["propagated"].labels_kji)
    np.testing.assert_array_equal(result.segmentation.mask("liver")[6], LIVER[6])
    nonsense = replace(coarse, labels_kji=np.roll(coarse.labels_kji, 9, axis=2))
    other = run(volume, nonsense, prompt="annotation", annotation=annotation)
    np.testing.assert_array_equal(other.segmentation.labels_kji, result.segmentation.labels_kji)
    with pytest.raises(InputError, match="give both or neither"):
        run(volume, coarse, annotation=annotation)
    with pytest.raises(InputError, match="give both or neither"):
        run(volume, coarse, prompt="annotation")


def test_propagation_from_chosen_slices_ends_near_where_the_refined_mask_does(
    volume: Volume, coarse: Segmentation
) -> None:
    """Though what is tracked goes on to both ends of the volume."""
    rod = ball((8, 18, 14), (99, 10, 9))
    through = Volume((rod * 150 + SPLEEN * 220 - 60).astype(np.int16), GRID)
    labels = coarse.labels_kji.copy()
    labels[[*range(5), *range(12, 16)]] = 0
    result = run(through, replace(coarse, labels_kji=labels))
    shown = np.flatnonzero(result.stages["propagated"].mask("liver").any(axis=(1, 2)))
    assert (shown[0], shown[-1]) == (5 - 2, 11 + 2)  # 6 mm of 3 mm slices
    drawn = Segmentation(
        np.where(rod & (np.arange(16) == 8)[:, None, None], 3, 0).astype(np.uint8), GRID, SEGMENTS[:1]
    )
    asked = run(through, replace(coarse, labels_kji=labels), prompt="annotation", annotation=drawn)
    assert asked.segmentation.mask("liver")[[0, 15]].any(axis=(1, 2)).all()


def settled(volume: Volume, tmp_path: Path) -> KnownSlices:
    """A case that says the liver is a square on slice 6 and not on slice 8, whatever the truth."""
    labels = np.zeros_like(TRUTH.labels_kji)
    labels[6, 3:7, 3:7] = 3
    drawn = Segmentation(labels, GRID, SEGMENTS)
    case = CaseStore(tmp_path / "store").add(volume, drawn, [Vouched("liver", 0, (6, 8))])
    return KnownSlices.of_case(case, 0)


def test_what_a_person_has_settled_is_in_the_final_mask_as_it_is(
    volume: Volume, coarse: Segmentation, tmp_path: Path
) -> None:
    plain, known = run(volume, coarse), settled(volume, tmp_path)
    kept = run(volume, coarse, known=known)
    liver = kept.segmentation.mask("liver")
    assert np.argwhere(liver[6]).tolist() == [[j, i] for j in range(3, 7) for i in range(3, 7)]
    assert not liver[8].any()
    others = [k for k in range(16) if k not in (6, 8)]
    np.testing.assert_array_equal(kept.segmentation.labels_kji[others], plain.segmentation.labels_kji[others])
    np.testing.assert_array_equal(kept.segmentation.mask("spleen"), plain.segmentation.mask("spleen"))
    np.testing.assert_array_equal(kept.stages["coarse"].labels_kji, plain.stages["coarse"].labels_kji)
    assert (known.count(("liver", "spleen")), known.count(("spleen",))) == (2, 0)


def test_a_slice_that_is_drawn_anew_replaces_what_was_settled(
    volume: Volume, coarse: Segmentation, tmp_path: Path
) -> None:
    drawn = np.zeros_like(TRUTH.labels_kji)
    drawn[6] = np.where(LIVER[6], 3, 0)
    annotation = Segmentation(drawn, GRID, SEGMENTS[:1])
    known = settled(volume, tmp_path)
    result = run(volume, coarse, prompt="annotation", annotation=annotation, known=known)
    np.testing.assert_array_equal(result.segmentation.mask("liver")[6], LIVER[6])
    assert not result.segmentation.mask("liver")[8].any()


def test_known_slices_without_labels_only_empty_what_is_absent(volume: Volume, coarse: Segmentation) -> None:
    known = KnownSlices(axis=0, shown={"liver": [7]}, absent={"liver": [8], "kidney": [2]})
    found, plain = (run(volume, coarse, **given).segmentation for given in ({"known": known}, {}))
    assert not found.mask("liver")[8].any()
    np.testing.assert_array_equal(found.labels_kji[7], plain.labels_kji[7])
    assert KnownSlices.of_case(None, 0).put_into(coarse) is coarse


def test_a_segment_that_is_not_there_is_named_and_stays_empty(volume: Volume) -> None:
    events: list[object] = []
    nothing = replace(TRUTH, labels_kji=np.zeros_like(TRUTH.labels_kji))
    predictor = Bright()
    result = segment_volume(
        volume, nothing, predictor=predictor, tracker=IntensityTracker(), on_event=events.append
    )
    assert [event.text for event in events if isinstance(event, Log)] == [
        "Nothing was found of liver.",
        "Nothing was found of spleen.",
    ]
    assert predictor.encoded == 0
    assert not result.segmentation.labels_kji.any()


def test_small_parts_are_dropped_by_their_share_of_the_largest(coarse: Segmentation) -> None:
    assert drop_small_parts(coarse, 0.0) is coarse
    for share in (0.1, 1.0):
        kept = drop_small_parts(coarse, share)
        assert not kept.labels_kji[8, 36:38, 44:46].any()
        assert np.count_nonzero(coarse.labels_kji) - np.count_nonzero(kept.labels_kji) == 4


def test_wrong_requests_are_refused_in_a_sentence(volume: Volume, coarse: Segmentation) -> None:
    with pytest.raises(InputError, match="does not know pancreas; it finds liver, spleen"):
        run(volume, coarse, segments=("pancreas",))
    with pytest.raises(InputError, match="At least 1 reference slice"):
        SegmentOptions(references=0)
    with pytest.raises(Cancelled):
        segment_volume(volume, coarse, predictor=Bright(), tracker=IntensityTracker(), cancelled=lambda: True)


def test_a_trained_model_gives_probabilities_and_uncertainty_maps(volume: Volume) -> None:
    import torch
    from medssl.datasets.input_contract import InputContract
    from medssl.few_labels.segmenter import ModelInfo, SegmentationModel

    torch.manual_seed(0)
    contract = InputContract(size=(16, 16), spacing_kji_mm=(None, 4.0, 4.0), modality="MR", scale="volume")
    model = SegmentationModel.build(ModelInfo(backbone="unet2d_4", contract=contract, segments=SEGMENTS))
    model.network.eval()
    events: list[object] = []
    mr = Volume(volume.voxels_kji + np.int16(100), GRID)  # nothing as dark as fat in a CT
    result = segment_volume(
        mr, model, predictor=Bright(), tracker=IntensityTracker(), on_event=events.append, device="cpu",
        options=SegmentOptions(uncertainty="flip-average", start=3),
    )  # fmt: skip
    maps = [event for event in events if isinstance(event, UncertaintyMap)]
    assert sorted(m.index for m in maps) == list(range(16))
    assert result.uncertainty_kji is not None
    assert 0 <= result.uncertainty_kji.min() <= result.uncertainty_kji.max() <= 1


@pytest.mark.parametrize(
    ("modality", "asked", "sharpens"), [("CT", True, True), ("CT", False, False), ("MR", True, False)]
)
def test_a_models_answer_on_a_ct_is_sharpened_unless_that_is_not_wanted(
    volume: Volume, modality: str, asked: bool, sharpens: bool
) -> None:
    import torch
    from medssl.datasets.input_contract import InputContract
    from medssl.few_labels.segmenter import ModelInfo, SegmentationModel

    torch.manual_seed(0)
    contract = InputContract(size=(16, 32), spacing_kji_mm=(None, 4.0, 4.0), modality=modality)
    model = SegmentationModel.build(ModelInfo(backbone="unet2d_4", contract=contract, segments=SEGMENTS))
    events: list[object] = []
    result = segment_volume(
        volume, model, predictor=Bright(), tracker=IntensityTracker(), on_event=events.append, device="cpu",
        options=SegmentOptions(sharpen=asked, least_part=0.0, anyway=True),
    )  # fmt: skip
    assert any(isinstance(e, SliceMask) and e.stage == "sharpened" for e in events) is sharpens
    coarse, sharpened = (result.stages[stage].labels_kji for stage in ("coarse", "sharpened"))
    assert sharpens or np.array_equal(coarse, sharpened)


def test_results_become_evidence_for_the_next_slice(volume: Volume, coarse: Segmentation) -> None:
    result = run(volume, coarse)
    liver, spleen = of_segmentation(volume, result, {"liver": [8]})
    assert (liver.references, spleen.references) == ((8,), ())
    assert liver.area_px[8] == np.count_nonzero(result.segmentation.mask("liver")[8])
    assert (liver.absent, next(of_segmentation(volume, result, {}, {"liver": [1]})).absent) == ((), (1,))
    suggestions = suggest_slices([liver, spleen], count=3)
    assert next(s.index for s in suggestions if s.segment == "spleen") == 7
    drawn = np.zeros_like(TRUTH.labels_kji)
    drawn[6] = np.where(LIVER[6], 3, 0)
    found = propagate_volume(volume, Segmentation(drawn, GRID, SEGMENTS[:1]), tracker=IntensityTracker())
    (evidence,) = of_propagation(volume, found)
    assert list(evidence.references) == [6]
    assert dice(found.segmentation.mask("liver"), LIVER) > 0.8


def test_vouched_slices_are_told_apart_by_whether_they_show_the_segment(
    tmp_path: Path, volume: Volume
) -> None:
    store = CaseStore(tmp_path / "store")
    rows = [Vouched("liver", 0, (0, 6, 7)), Vouched("liver", 0, (1,)), Vouched("spleen", 1, (4,))]
    case = store.add(volume, TRUTH, rows)
    assert not LIVER[:2].any()
    assert vouched_references(case, 0) == ({"liver": [6, 7]}, {"liver": [0, 1]})
    assert vouched_references(case, 2) == ({}, {})
    assert vouched_references(None, 0) == ({}, {})
