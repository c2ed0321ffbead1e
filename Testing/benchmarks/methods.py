"""The methods that are compared: ours through `propagate`, the classical tracker alone, and copying."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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


@dataclass
class Carried:
    """What a method made of the annotated slice of a task."""

    answer_kji: NDArray[np.bool_]
    """(K, J, I) mask."""
    computed: int = 0
    """Slices it worked on."""
    confidence: dict[int, float] = field(default_factory=dict)
    """Of the slices it filled, where it says so."""


Carry = Callable[[Volume, ObjectTask], Carried]
"""Carries the annotated slice of a task through the volume."""


def carry_with_propagate(tracker: SliceTracker) -> Carry:
    """The product's own way: `propagate` with its stop rule."""

    def carry(volume: Volume, task: ObjectTask) -> Carried:
        reference = Reference(task.organ, SlicePrompt(0, task.index, mask=task.annotation))
        carried = Carried(np.zeros_like(task.truth_kji))
        for event in propagate(volume, [reference], tracker, PropagateOptions()):
            if isinstance(event, SliceMask):
                carried.answer_kji[event.index] = event.mask
                if not event.is_reference:
                    carried.confidence[event.index] = event.confidence
            else:
                carried.computed = event.done
        return carried

    return carry


def carry_alone(tracker: SliceTracker) -> Carry:
    """A tracker without the product's stop rule: each direction ends where its own score falls below one half."""

    def carry(volume: Volume, task: ObjectTask) -> Carried:
        session = tracker.open(volume, 0, Window.auto(volume))
        session.add_reference(0, SlicePrompt(0, task.index, mask=task.annotation))
        carried = Carried(np.zeros_like(task.truth_kji))
        carried.answer_kji[task.index] = task.annotation
        ends = [end for end in (0, len(task.truth_kji) - 1) if end != task.index]
        for items in session.run([TrackJob(0, task.index, end) for end in ends]):
            carried.computed += len(items)
            for job, tracked in items:
                if tracked.score < 0.5:
                    session.drop(job)
                else:
                    carried.answer_kji[tracked.index] = tracked.mask
        return carried

    return carry


def score_case(case: Case, tasks: Iterator[ObjectTask], methods: dict[str, Carry]) -> list[ObjectScore]:
    """Scores of every method, and of copying, on the objects of a case."""
    scores = []
    for task in tasks:
        scores.append(score_object(COPY, task, copy_mask(task)))
        for name, carry in methods.items():
            start = time.perf_counter()
            carried = carry(case.volume, task)
            seconds = time.perf_counter() - start
            scores.append(
                score_object(name, task, carried.answer_kji, seconds, carried.computed, carried.confidence)
            )
    return scores


def methods_of(model: str) -> dict[str, Carry]:
    """The classical tracker, and a model of the registry unless `model` is the classical tracker itself."""
    methods: dict[str, Carry] = {INTENSITY: carry_alone(IntensityTracker())}
    if model != INTENSITY:
        from medssl.foundation import load_tracker

        methods[model] = carry_with_propagate(load_tracker(model, "cpu"))
    return methods
