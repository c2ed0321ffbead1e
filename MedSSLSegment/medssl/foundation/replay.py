"""Answers that were tracked already are given again instead of being tracked again.

When a user corrects one slice, the stretch between it and the last reference slice is tracked from both ends. From the
old reference slice nothing has changed: those answers are still here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..prompts import SlicePrompt
from .protocols import TrackedSlice, TrackingSession, TrackJob

__all__ = ["ReplayingSession"]

_BUDGET_BYTES = 96 * 2**20
_Key = tuple[bytes, int, int]  # reference mask, its slice, tracked slice


class ReplayingSession:
    """Wraps a session whose jobs depend on nothing but their own reference slice.

    Args:
        session: does the tracking.
        budget_bytes: memory for answers; the oldest go first.
    """

    def __init__(self, session: TrackingSession, budget_bytes: int = _BUDGET_BYTES) -> None:
        self._session = session
        self._budget = budget_bytes
        self._used = 0
        self._answers: OrderedDict[_Key, _Compact] = OrderedDict()
        self._masks: dict[tuple[int, int], bytes] = {}
        self._dropped: set[TrackJob] = set()

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        """Tell the tracker what an object is on one slice."""
        answer = self._session.add_reference(object_id, prompt)
        self._masks[object_id, prompt.index] = np.packbits(answer.mask).tobytes()
        return answer

    def remove_reference(self, object_id: int, index: int) -> None:
        """Forget a reference slice."""
        self._masks.pop((object_id, index), None)
        self._session.remove_reference(object_id, index)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        """Give known jobs' answers again, side by side with those that must be tracked."""
        self._dropped.clear()
        known = {job: self._known(job) for job in jobs if job.start != job.stop}
        replayed = {job: iter(answers) for job, answers in known.items() if answers is not None}
        tracked = self._session.run([job for job in jobs if job not in replayed])
        while True:
            item = next(tracked, [])
            for job, answer in item:
                self._keep(job, answer)
            for job, answers in list(replayed.items()):
                again = None if job in self._dropped else next(answers, None)
                if again is None:
                    del replayed[job]
                else:
                    item = [*item, (job, again)]
            if not item:
                return
            yield item

    def drop(self, job: TrackJob) -> None:
        """Stop computing a job of the run under way."""
        self._dropped.add(job)
        self._session.drop(job)

    def _known(self, job: TrackJob) -> list[TrackedSlice] | None:
        """All answers of a job, or None where one of them is missing."""
        mask = self._masks.get((job.object_id, job.start))
        if mask is None:
            return None
        kept = [
            self._answers.get((mask, job.start, index))
            for index in range(job.start + job.step, job.stop + job.step, job.step)
        ]
        answers = [answer.whole(job.object_id) for answer in kept if answer is not None]
        return answers if len(answers) == len(kept) else None

    def _keep(self, job: TrackJob, answer: TrackedSlice) -> None:
        mask = self._masks.get((job.object_id, job.start))
        if mask is None:
            return
        key = (mask, job.start, answer.index)
        compact = _Compact.of(answer)
        self._used += compact.nbytes - (self._answers[key].nbytes if key in self._answers else 0)
        self._answers[key] = compact
        while self._used > self._budget:
            _, oldest = self._answers.popitem(last=False)
            self._used -= oldest.nbytes


@dataclass(frozen=True, eq=False)
class _Compact:
    """A tracked slice in few bytes: its box, probabilities in 255ths."""

    index: int
    shape: tuple[int, ...]
    rows: slice
    cols: slice
    probability: NDArray[np.uint8]
    score: float
    quality: float | None

    @property
    def nbytes(self) -> int:
        return self.probability.nbytes + 200

    @classmethod
    def of(cls, answer: TrackedSlice) -> _Compact:
        exact = answer.mask.astype(np.float32) if answer.probability is None else answer.probability
        told = exact >= np.float32(1 / 255)
        told |= answer.mask
        rows, cols = _span(np.any(told, axis=1)), _span(np.any(told, axis=0))
        # One half rounds down: it lies outside the mask, and what lies above it inside.
        levels = exact[rows, cols] * np.float32(255)
        levels -= np.float32(0.5)
        levels = np.ceil(levels, out=levels).astype(np.uint8)
        return cls(answer.index, answer.mask.shape, rows, cols, levels, answer.score, answer.quality)

    def whole(self, object_id: int) -> TrackedSlice:
        probability = np.zeros(self.shape, np.float32)
        probability[self.rows, self.cols] = self.probability.astype(np.float32) / 255
        return TrackedSlice(object_id, self.index, probability > 0.5, probability, self.score, self.quality)


def _span(filled: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(filled)
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)
