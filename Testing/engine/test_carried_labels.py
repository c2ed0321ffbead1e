"""Labels carried from annotated slices to those nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medssl.datasets.data import IGNORE, Scan, intensity_stats
from medssl.datasets.labelled import LabelledCase
from medssl.errors import Cancelled
from medssl.events import Log, Progress
from medssl.few_labels.annotated_samples import AnnotatedCase
from medssl.few_labels.carried_labels import carried_labels, with_carried_labels
from medssl.few_labels.finetune_run import FinetuneConfig, finetune
from medssl.foundation.intensity import IntensityTracker
from medssl.foundation.protocols import SliceTracker, TrackedSlice, TrackJob
from medssl.metrics import dice
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import propagate
from medssl.results import SliceMask
from medssl.runs.run_folder import RunFolder
from medssl.segmentation import Segment, Segmentation
from medssl.volume import Volume

SPACING = (3.0, 1.0, 1.0)
FIRST, LAST = 8, 23
"""Slices that show the bright rod; a dark one goes through all 32."""


def truth() -> np.ndarray:
    labels = np.zeros((32, 48, 56), np.uint8)
    _, rows, columns = np.ogrid[:32, :48, :56]
    labels[np.broadcast_to((rows - 16) ** 2 + (columns - 16) ** 2 < 64, labels.shape)] = 1
    labels[:FIRST][labels[:FIRST] == 1] = 0
    labels[LAST + 1 :][labels[LAST + 1 :] == 1] = 0
    labels[np.broadcast_to((rows - 30) ** 2 + (columns - 40) ** 2 < 49, labels.shape)] = 2
    return labels


def a_case(vouched: Sequence[int], known: tuple[bool, ...] = (True, True, True)) -> AnnotatedCase:
    labels = truth()
    noise = np.random.default_rng(0).normal(0.0, 8.0, labels.shape)
    image = (np.choose(labels, [40, 180, -120]) + noise).astype(np.int16)
    scan = Scan("scan", "scan", "patient", labels.shape, SPACING, intensity_stats(image))
    return AnnotatedCase(scan, image, labels, np.array(known)).only_slices(list(vouched))


def ends_found(drawn: int = 15) -> tuple[int, int]:
    """First and last slice on which the tracker sees the bright rod."""
    case = a_case([drawn])
    volume = Volume(case.image, np.diag([*SPACING[::-1], 1.0]), "scan")
    reference = Reference("1", SlicePrompt(0, drawn, mask=truth()[drawn] == 1))
    found = [
        event.index
        for event in propagate(volume, [reference], IntensityTracker())
        if isinstance(event, SliceMask) and event.mask.any()
    ]
    return min(found), max(found)


class Says:
    """A tracker that answers the same mask everywhere, rated as it is told to be."""

    def __init__(self, quality: float, everywhere: tuple[slice, slice] | None = None) -> None:
        self._quality, self._everywhere = quality, everywhere
        self._masks: dict[tuple[int, int], np.ndarray] = {}

    def open(self, volume: Volume, axis: int, window: object) -> Says:
        return self

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        assert prompt.mask is not None
        self._masks[object_id, prompt.index] = prompt.mask
        return TrackedSlice(object_id, prompt.index, prompt.mask, None, 1.0)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        for job in jobs:
            mask = self._masks[job.object_id, job.start].copy()
            if self._everywhere:
                mask[self._everywhere] = True
            for index in range(job.start + job.step, job.stop + job.step, job.step):
                yield [(job, TrackedSlice(job.object_id, index, mask, None, 1.0, self._quality))]

    def drop(self, job: TrackJob) -> None:
        raise AssertionError("nothing ends here")


def test_one_annotated_slice_labels_the_others() -> None:
    part = carried_labels([a_case([15])], IntensityTracker())

    assert part is not None
    real, taught = truth(), part.labels != IGNORE
    for label in (1, 2):
        assert dice((part.labels == label) & taught, (real == label) & taught) > 0.9
    assert taught.mean() > 0.8
    assert part.known.tolist() == [True, True, True]


def test_what_lies_far_from_an_object_is_background_beyond_its_end_too() -> None:
    part = carried_labels([a_case([15])], IntensityTracker())

    assert part is not None
    corner = part.labels[:, 40:, :8]
    assert np.all(np.delete(corner, 15, axis=0) == 0)


def test_just_past_an_end_the_surroundings_of_the_object_teach_nothing() -> None:
    part = carried_labels([a_case([15])], IntensityTracker())

    assert part is not None
    first, last = ends_found()
    for beyond in (*range(first - 4, first), *range(last + 1, last + 5)):
        assert np.all(part.labels[beyond, 10:22, 10:22] == IGNORE)
    assert np.all(part.labels[2, 10:22, 10:22] == 0)


@pytest.mark.parametrize(("drawn", "before"), [(15, 3), (20, 1)])
def test_just_before_an_end_the_object_teaches_nothing_but_keeps_most_of_its_way(
    drawn: int, before: int
) -> None:
    """10 mm are three slices of 3 mm; of three slices two fifths are one."""
    part = carried_labels([a_case([drawn])], IntensityTracker())

    assert part is not None
    last = ends_found(drawn)[1]
    teaches = [bool((part.labels[index] == 1).any()) for index in range(drawn + 1, last + 1)]
    assert teaches == [True] * (last - drawn - before) + [False] * before
    assert np.all(part.labels[last - before + 1 : last + 1, 14:18, 14:18] == IGNORE)


@pytest.mark.parametrize(("scans", "teaches"), [(2, True), (3, False)])
def test_only_where_there_are_scans_enough_are_slices_before_an_end_left_out(
    scans: int, teaches: bool
) -> None:
    cases = [replace(a_case([15]), scan=replace(a_case([15]).scan, id=f"scan {n}")) for n in range(scans)]
    *_, taught = with_carried_labels(cases, (), IntensityTracker)

    assert isinstance(taught, list)
    assert {bool((part.labels[ends_found()[1]] == 1).any()) for part in taught[scans:]} == {teaches}


def test_an_object_that_goes_on_to_the_last_slice_of_the_volume_has_no_end_there() -> None:
    part = carried_labels([a_case([15])], IntensityTracker())

    assert part is not None
    assert all((part.labels[index] == 2).any() for index in (0, 1, 30, 31))


def test_annotated_slices_stay_with_those_who_drew_them() -> None:
    case = a_case([4, 15])
    before = case.labels.copy()
    part = carried_labels([case], IntensityTracker())

    assert part is not None
    assert np.all(part.labels[[4, 15]] == IGNORE)
    assert np.array_equal(case.labels, before)
    assert not part.image.flags.writeable or np.array_equal(part.image, case.image)


def test_a_segment_that_no_annotated_slice_shows_stays_unknown() -> None:
    part = carried_labels([a_case([3])], IntensityTracker())

    assert part is not None
    assert part.known.tolist() == [True, False, True]


def test_a_segment_the_case_does_not_know_is_not_carried() -> None:
    part = carried_labels([a_case([15], known=(True, False, True))], IntensityTracker())

    assert part is not None
    assert not (part.labels == 1).any()
    assert not part.known[1]


@pytest.mark.parametrize("vouched", [range(32), [], [3]])
def test_nothing_is_carried_where_nothing_is_annotated_or_nothing_is_left(vouched: Sequence[int]) -> None:
    case = a_case(vouched, known=(True, True, False))
    assert carried_labels([case], IntensityTracker()) is None


def test_a_slice_the_tracker_is_not_sure_of_teaches_nothing() -> None:
    case = a_case([15], known=(True, True, False))
    sure, unsure = (carried_labels([case], Says(quality)) for quality in (0.6, 0.4))

    assert sure is not None
    assert unsure is not None
    mask = case.labels[15] == 1
    assert np.all(sure.labels[14][mask] == 1)
    assert np.all(unsure.labels[14][mask] == IGNORE)
    assert np.all(unsure.labels[14][~mask] == 0)


def test_where_two_segments_claim_a_voxel_nothing_is_taught() -> None:
    part = carried_labels([a_case([15])], Says(0.9, (slice(40, 44), slice(4, 8))))

    assert part is not None
    assert np.all(part.labels[14, 40:44, 4:8] == IGNORE)


def test_a_segment_that_another_one_hides_wholly_is_not_carried() -> None:
    case = a_case([15])
    rod = (case.labels == 1).astype(np.uint8)
    same = [replace(case, labels=np.where(case.labels == IGNORE, IGNORE, rod * label)) for label in (1, 2)]
    part = carried_labels(same, IntensityTracker())

    assert part is not None
    assert not np.isin(part.labels, (1, 2)).any()


def test_labels_across_another_axis_are_carried_along_it() -> None:
    case = a_case(range(32), known=(True, True, False))
    labels = np.full_like(case.labels, IGNORE)
    labels[:, :, 16] = case.labels[:, :, 16]
    across = AnnotatedCase(case.scan, case.image, labels, case.known)
    part = carried_labels([across], IntensityTracker())

    assert part is not None
    assert np.all(part.labels[:, :, 16] == IGNORE)
    assert (part.labels[:, :, 14] == 1).any()
    assert np.all(part.labels[:, :, 50] == 0)


def test_parts_of_a_scan_are_carried_together() -> None:
    rod, tube = a_case([15], known=(True, True, False)), a_case([12], known=(True, False, True))
    part = carried_labels([rod, tube], IntensityTracker())

    assert part is not None
    assert part.known.tolist() == [True, True, True]
    assert np.all(part.labels[[12, 15]] == IGNORE)
    assert {1, 2} <= set(np.unique(part.labels[14]).tolist())


def test_slices_that_are_measured_on_are_not_learnt_from() -> None:
    measured = a_case([18, 19])
    *_, cases = with_carried_labels([a_case([15])], [measured], IntensityTracker)

    assert isinstance(cases, list)
    assert len(cases) == 2
    assert np.all(cases[1].labels[[18, 19]] == IGNORE)
    assert (cases[1].labels[17] == 1).any()


def scans(*ids: str) -> list[AnnotatedCase]:
    case = a_case([15])
    return [replace(case, scan=replace(case.scan, id=i, name=i)) for i in ids]


def test_only_the_scans_that_are_named_are_carried() -> None:
    *_, cases = with_carried_labels(scans("a", "b", "c"), [], IntensityTracker, only=["c", "a"])
    assert isinstance(cases, list)
    assert [case.scan.id for case in cases] == ["a", "b", "c", "a", "c"]


def test_without_time_the_annotated_slices_teach_alone_and_it_is_said() -> None:
    *said, cases = with_carried_labels(scans("a", "b"), [], IntensityTracker, seconds=0.0)
    assert isinstance(cases, list)
    assert [case.scan.id for case in cases] == ["a", "b"]
    assert said == [Log("There was no time to carry those of 2 cases; a larger budget has it.")]


def test_who_asks_to_stop_is_heard_whatever_the_time() -> None:
    with pytest.raises(Cancelled):
        list(with_carried_labels(scans("a"), [], IntensityTracker, lambda: True, seconds=0.0))


def test_cases_that_are_annotated_everywhere_need_no_tracker() -> None:
    def never() -> SliceTracker:
        raise AssertionError("the tracker was loaded")

    (cases,) = with_carried_labels([a_case(range(32))], [], never)
    assert isinstance(cases, list)
    assert len(cases) == 1


def a_run(tmp_path: Path, names: Sequence[str], **changes: Any) -> tuple[FinetuneConfig, list[LabelledCase]]:
    """Two slices of a rod vouched for in each case, and settings for a tiny network."""
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    rod = Segmentation(np.where(truth() == 1, 1, 0).astype(np.uint8), affine, (Segment("rod", 1, (1, 0, 0)),))
    cases = [
        LabelledCase(
            name, name, Volume(a_case(range(32)).image + np.int16(n), affine), rod, vouched={0: [14, 15]}
        )
        for n, name in enumerate(names)
    ]
    settings: dict[str, Any] = {
        "segments": ("rod",), "backbone": "unet2d_4", "batch": 2, "size": (32, 32),
        "spacing": (0.0, 1.0, 1.0), "device": "cpu", **changes,
    }  # fmt: skip
    return FinetuneConfig(data=tmp_path, out=tmp_path / "run", **settings), cases


@pytest.mark.parametrize("carry", [True, False])
def test_a_run_says_when_it_learns_from_carried_slices(tmp_path: Path, carry: bool) -> None:
    config, cases = a_run(tmp_path, ["one"], steps=2, carry=carry)
    said = [event.text for event in finetune(config, cases=cases) if isinstance(event, Log)]
    assert any("carried" in text for text in said) is carry


def test_the_cost_of_carrying_is_told_as_soon_as_it_is_known(tmp_path: Path) -> None:
    config, cases = a_run(tmp_path, ["one", "two", "three"], steps=2)
    said = [event.text for event in finetune(config, cases=cases) if isinstance(event, Log)]
    forecast = next(
        n for n, text in enumerate(said) if text.startswith("Carrying annotated slices will take")
    )
    assert "and the training then about" in said[forecast]
    assert "were carried to the others" in said[forecast + 1]
    assert "2 steps will take about" in said[forecast + 2]


def test_a_budget_too_small_to_carry_is_spent_on_steps_also_when_the_run_goes_on(tmp_path: Path) -> None:
    config, cases = a_run(tmp_path, ["one", "two", "three"], minutes=1e-3, save_every_minutes=1e-9)

    saved: list[bool] = []

    def after_the_first_steps() -> bool:
        saved.append((config.out / "resume.pt").exists())
        return sum(saved) > 2

    said: list[str] = []

    def listen() -> None:
        for event in finetune(config, after_the_first_steps, cases):
            said.extend([event.text] if isinstance(event, Log) else [])

    with pytest.raises(Cancelled):
        listen()
    assert any("There was no time to carry" in text for text in said)
    assert any("10 steps will take about" in text for text in said)
    again = [event.text for event in finetune(config, cases=cases) if isinstance(event, Log)]
    assert any(text.startswith("Going on after step") for text in again)
    assert not any("carr" in text for text in again)


@pytest.mark.parametrize("doing", ["preparing the cases", "carrying annotated slices"])
def test_a_run_that_is_stopped_before_its_first_step_says_what_it_did_and_how_to_go_on(
    tmp_path: Path, doing: str
) -> None:
    config, cases = a_run(tmp_path, ["one", "two"], steps=2)
    begun: list[bool] = [doing.startswith("preparing")]

    def listen() -> None:
        for event in finetune(config, lambda: any(begun), cases):
            begun.append(isinstance(event, Progress))

    with pytest.raises(Cancelled, match=f"Stopped while {doing}; go on with: medssl runs resume .*run"):
        listen()
    assert RunFolder.open(config.out).status.state == "stopped"
