"""The real worker on the real engine, from the client's end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from medssl.client import LocalCommand, WorkerClient
from medssl.events import Progress
from medssl.metrics import dice
from medssl.phantom import Phantom, phantom_ct
from medssl.prompts import Reference, SlicePrompt, box_of_mask
from medssl.registry import DEFAULT_MODEL, find_entry, is_available
from medssl.results import SliceMask
from medssl.volume import Volume

INTENSITY_WORKER = Path(__file__).with_name("intensity_worker.py")
PATIENCE_S = 120.0
ORGAN = "liver"


@dataclass(frozen=True, kw_only=True)
class IntensityCommand(LocalCommand):
    """Starts the real worker and engine with the tracker that needs no weights."""

    def argv(self) -> list[str]:
        return [sys.executable, str(INTENSITY_WORKER)]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return phantom_ct(seed=3, shape_kji=(48, 64, 64), spacing_kji_mm=(8.0, 6.0, 6.0))


@pytest.fixture(scope="module")
def intensity_client() -> Iterator[WorkerClient]:
    with WorkerClient(IntensityCommand()) as client:
        yield client


def middle_slice(phantom: Phantom, organ: str) -> Reference:
    """The organ's largest slice, as a user would annotate it."""
    truth = phantom.segmentation.mask(organ)
    index = int(truth.sum(axis=(1, 2)).argmax())
    return Reference(organ, SlicePrompt(0, index, mask=truth[index]))


def collected(volume: Volume, events: list[object]) -> np.ndarray:
    found = np.zeros(volume.shape_kji, bool)
    for event in events:
        if isinstance(event, SliceMask):
            found[event.index] = event.mask
    return found


def test_one_annotated_slice_becomes_the_organ_through_the_worker(
    intensity_client: WorkerClient, phantom: Phantom
) -> None:
    ticket = intensity_client.propagate(phantom.volume, [middle_slice(phantom, ORGAN)], {"axis": 0})
    events = list(ticket.events())
    assert dice(collected(phantom.volume, events), phantom.segmentation.mask(ORGAN)) > 0.5
    assert any(isinstance(event, Progress) and event.seconds_left is not None for event in events)
    suggested = ticket.result().summary["suggestions"]
    assert {one["segment"] for one in suggested} == {ORGAN}
    assert all(one["reason"] and one["gain"] > 0 for one in suggested)
    info = intensity_client.info().result(PATIENCE_S)
    assert info.models == (DEFAULT_MODEL,)
    assert info.device == intensity_client.status.device != ""


def test_the_same_run_again_on_the_kept_session_gives_the_same_masks(
    intensity_client: WorkerClient, phantom: Phantom
) -> None:
    def run(*references: Reference) -> np.ndarray:
        ticket = intensity_client.propagate(phantom.volume, references)
        return collected(phantom.volume, list(ticket.events()))

    liver, spleen = middle_slice(phantom, ORGAN), middle_slice(phantom, "spleen")
    alone = run(liver)
    run(spleen, liver)
    np.testing.assert_array_equal(run(liver), alone)


def test_a_box_is_answered_through_the_worker(intensity_client: WorkerClient, phantom: Phantom) -> None:
    reference = middle_slice(phantom, ORGAN)
    assert reference.prompt.mask is not None
    box = SlicePrompt(0, reference.prompt.index, box_xyxy_px=box_of_mask(reference.prompt.mask))
    (answer,) = intensity_client.predict(phantom.volume, box, segment=ORGAN).events()
    assert isinstance(answer, SliceMask)
    assert (answer.segment, answer.index, answer.confidence) == (ORGAN, box.index, 0.9)
    assert answer.mask.any()


def test_a_coarse_mask_is_refined_and_reported_through_the_worker(
    intensity_client: WorkerClient, phantom: Phantom
) -> None:
    coarse = phantom.segmentation.mask(ORGAN).copy()
    coarse[2, 3:5, 3:5] = True
    ticket = intensity_client.refine(phantom.volume, coarse, {"guard_dice": 0.2}, segment=ORGAN)
    slices = [event for event in ticket.events() if isinstance(event, SliceMask)]
    assert {one.segment for one in slices} == {ORGAN}
    assert {one.index for one in slices} == set(np.flatnonzero(coarse.any(axis=(1, 2))).tolist())
    summary = ticket.result().summary
    assert "slices were refined" in summary["text"]
    assert [one["index"] for one in summary["slices"]] == [one.index for one in slices]
    assert summary["largest_kji"].sum() < coarse.sum()


@pytest.mark.skipif(not is_available(find_entry(DEFAULT_MODEL)), reason="the shipped weights are not there")
def test_the_shipped_model_propagates_through_the_worker(phantom: Phantom) -> None:
    reference = middle_slice(phantom, ORGAN)
    first, last = reference.prompt.index - 3, reference.prompt.index + 3
    with WorkerClient(LocalCommand(threads=1)) as client:
        options = {"first": first, "last": last}
        ticket = client.propagate(phantom.volume, [reference], options, device="cpu")
        found = collected(phantom.volume, list(ticket.events()))
    near = slice(first, last + 1)
    assert dice(found[near], phantom.segmentation.mask(ORGAN)[near]) > 0.7
