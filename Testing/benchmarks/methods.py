"""The methods that are compared: ours through `propagate`, the classical tracker alone, and copying."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from medssl.foundation.intensity import IntensityTracker
from medssl.foundation.protocols import SliceTracker, TrackJob
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import PropagateOptions, propagate
from medssl.results import SliceMask
from medssl.volume import Volume, Window
from numpy.typing import NDArray
from protocol import Case, ObjectScore, ObjectTask, copy_mask, score_object

__all__ = ["COPY", "INTENSITY", "PARENTS", "carry_alone", "carry_with_propagate", "methods_of", "score_case"]

COPY = "copy"
INTENSITY = "intensity"
PARENTS = (COPY, INTENSITY)
"""What a learned default has to beat: copying (which is told the extent) and the classical tracker."""

Carry = Callable[[Volume, ObjectTask], tuple[NDArray[np.bool_], int]]
"""Carries the annotated slice of a task through the volume: (K, J, I) mask and number of slices computed."""


def carry_with_propagate(tracker: SliceTracker) -> Carry:
    """The product's own way: `propagate` with its stop rule."""

    def carry(volume: Volume, task: ObjectTask) -> tuple[NDArray[np.bool_], int]:
        reference = Reference(task.organ, SlicePrompt(0, task.index, mask=task.annotation))
        options = PropagateOptions()
        answer = np.zeros_like(task.truth_kji)
        computed = 0
        for event in propagate(volume, [reference], tracker, options):
            if isinstance(event, SliceMask):
                answer[event.index] = event.mask
            else:
                computed = event.done
        return answer, computed

    return carry


def carry_alone(tracker: SliceTracker) -> Carry:
    """A tracker without the product's stop rule: each direction ends where its own score falls below one half."""

    def carry(volume: Volume, task: ObjectTask) -> tuple[NDArray[np.bool_], int]:
        session = tracker.open(volume, 0, Window.auto(volume))
        session.add_reference(0, SlicePrompt(0, task.index, mask=task.annotation))
        answer = np.zeros_like(task.truth_kji)
        answer[task.index] = task.annotation
        ends = [end for end in (0, len(answer) - 1) if end != task.index]
        computed = 0
        for items in session.run([TrackJob(0, task.index, end) for end in ends]):
            computed += len(items)
            for job, tracked in items:
                if tracked.score < 0.5:
                    session.drop(job)
                else:
                    answer[tracked.index] = tracked.mask
        return answer, computed

    return carry


def score_case(case: Case, tasks: Iterator[ObjectTask], methods: dict[str, Carry]) -> list[ObjectScore]:
    """Scores of every method, and of copying, on the objects of a case."""
    scores = []
    for task in tasks:
        scores.append(score_object(COPY, task, copy_mask(task)))
        for name, carry in methods.items():
            start = time.perf_counter()
            answer, computed = carry(case.volume, task)
            scores.append(score_object(name, task, answer, time.perf_counter() - start, computed))
    return scores


def methods_of(model: str) -> dict[str, Carry]:
    """The classical tracker, and a model of the registry unless `model` is the classical tracker itself."""
    methods: dict[str, Carry] = {INTENSITY: carry_alone(IntensityTracker())}
    if model != INTENSITY:
        from medssl.foundation import load_tracker

        methods[model] = carry_with_propagate(load_tracker(model, "cpu"))
    return methods
