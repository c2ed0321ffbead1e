"""Answers that were tracked already come again without being tracked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from medssl.foundation.protocols import TrackedSlice, TrackJob
from medssl.foundation.replay import ReplayingSession
from medssl.prompts import SlicePrompt

SHAPE = (20, 30)


class CountingSession:
    """Answers every slice with random probabilities that depend on the reference slice only, and counts."""

    def __init__(self) -> None:
        self.tracked: list[tuple[int, int]] = []

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        assert prompt.mask is not None
        return TrackedSlice(object_id, prompt.index, prompt.mask, None, 1.0)

    def remove_reference(self, object_id: int, index: int) -> None: ...

    def drop(self, job: TrackJob) -> None: ...

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        for distance in range(1, 50):
            going = [job for job in jobs if distance <= abs(job.stop - job.start)]
            if going:
                yield [(job, self._answer(job, job.start + job.step * distance)) for job in going]

    def _answer(self, job: TrackJob, index: int) -> TrackedSlice:
        self.tracked.append((job.start, index))
        probability = np.random.default_rng([job.start, index]).random(SHAPE, np.float32)
        return TrackedSlice(job.object_id, index, probability > 0.5, probability, 0.9, 0.8)


def prompt(index: int, col: int = 10) -> SlicePrompt:
    mask = np.zeros(SHAPE, bool)
    mask[5:9, col : col + 5] = True
    return SlicePrompt(0, index, mask=mask)


def answers(session: ReplayingSession, *jobs: TrackJob) -> dict[int, TrackedSlice]:
    return {answer.index: answer for item in session.run(jobs) for _, answer in item}


def test_a_job_that_lies_within_an_earlier_one_is_not_tracked_again() -> None:
    inner = CountingSession()
    session = ReplayingSession(inner)
    session.add_reference(0, prompt(10))
    first = answers(session, TrackJob(0, 10, 20))
    inner.tracked.clear()
    session.add_reference(0, prompt(15))
    again = answers(session, TrackJob(0, 10, 14), TrackJob(0, 15, 20))
    assert inner.tracked == [(15, index) for index in range(16, 21)]
    for index in range(11, 15):
        assert (again[index].mask == first[index].mask).all()
        assert again[index].probability == pytest.approx(first[index].probability, abs=1 / 255)
        assert (again[index].score, again[index].quality) == (0.9, 0.8)


def test_another_mask_on_the_reference_slice_is_tracked_anew() -> None:
    inner = CountingSession()
    session = ReplayingSession(inner)
    session.add_reference(0, prompt(10))
    answers(session, TrackJob(0, 10, 12))
    inner.tracked.clear()
    session.add_reference(0, prompt(10, col=11))
    answers(session, TrackJob(0, 10, 12))
    assert inner.tracked == [(10, 11), (10, 12)]


def test_a_longer_job_than_before_is_tracked_whole() -> None:
    inner = CountingSession()
    session = ReplayingSession(inner)
    session.add_reference(0, prompt(10))
    answers(session, TrackJob(0, 10, 12))
    assert sorted(answers(session, TrackJob(0, 10, 13))) == [11, 12, 13]


def test_a_replayed_job_can_be_dropped() -> None:
    session = ReplayingSession(CountingSession())
    session.add_reference(0, prompt(10))
    job = TrackJob(0, 10, 20)
    answers(session, job)
    seen = []
    for item in session.run([job]):
        seen += [answer.index for _, answer in item]
        session.drop(job)
    assert seen == [11]


def test_memory_stays_within_the_budget() -> None:
    inner = CountingSession()
    session = ReplayingSession(inner, budget_bytes=3000)
    session.add_reference(0, prompt(10))
    answers(session, TrackJob(0, 10, 30))
    assert session._used <= 3000
    assert session._used == sum(answer.nbytes for answer in session._answers.values())
