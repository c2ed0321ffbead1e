"""Measure the slices between two annotated ones, and what it gives that each direction says how well it fits.

    bench_between.py --data FOLDER [--limit N] [--model medssl-nano]

Every labelled object of a held-out patient is annotated on two slices, a sixth of its extent from either end; what
counts are the slices between. The same tracker is asked twice: as it is, and with its expected fit hidden, so that its
two directions are blended by nearness and object score alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from medssl.foundation import load_tracker
from medssl.foundation.protocols import SliceTracker, TrackedSlice, TrackingSession, TrackJob
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import PropagateOptions, propagate
from medssl.registry import DEFAULT_MODEL
from medssl.results import SliceMask
from medssl.volume import Volume, Window
from protocol import (
    Case,
    ObjectTask,
    bootstrap_mean,
    data_root,
    held_out_cases,
    mean_dice,
    object_tasks,
    read_case,
)

LEAST_SLICES = 9
"""Of an object, so that there is something between."""


@dataclass(frozen=True)
class Untold:
    """A tracker that does not say how well its masks fit; a `SliceTracker`."""

    tracker: SliceTracker

    def open(self, volume: Volume, axis: int, window: Window) -> TrackingSession:
        return _UntoldSession(self.tracker.open(volume, axis, window))


@dataclass(frozen=True)
class _UntoldSession:
    session: TrackingSession

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        return replace(self.session.add_reference(object_id, prompt), quality=None)

    def remove_reference(self, object_id: int, index: int) -> None:
        self.session.remove_reference(object_id, index)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        for items in self.session.run(jobs):
            yield [(job, replace(answer, quality=None)) for job, answer in items]

    def drop(self, job: TrackJob) -> None:
        self.session.drop(job)


@dataclass(frozen=True)
class Between:
    """How one object fared between its two annotated slices."""

    patient: str
    organ: str
    dice: float
    """Of all slices between, in 3D."""
    told: list[tuple[float, float]]
    """Confidence and true Dice of each slice."""


def annotated_pair(task: ObjectTask) -> tuple[int, int] | None:
    """The two slices that are annotated; None for an object that is too short."""
    filled = np.flatnonzero(task.truth_kji.any(axis=(1, 2)))
    if len(filled) < LEAST_SLICES:
        return None
    inset = len(filled) // 6
    return int(filled[inset]), int(filled[-1 - inset])


def measure(tracker: SliceTracker, case: Case) -> list[Between]:
    """Every object of a case that is long enough."""
    found = []
    for task in object_tasks(case):
        if pair := annotated_pair(task):
            found.append(_measure(tracker, case.volume, task, *pair))
    return found


def _measure(tracker: SliceTracker, volume: Volume, task: ObjectTask, low: int, high: int) -> Between:
    references = [Reference(task.organ, SlicePrompt(0, z, mask=task.truth_kji[z])) for z in (low, high)]
    answer, told = np.zeros_like(task.truth_kji), []
    for event in propagate(volume, references, tracker, PropagateOptions(first=low, last=high)):
        if isinstance(event, SliceMask) and not event.is_reference:
            answer[event.index] = event.mask
            told.append((event.confidence, mean_dice(event.mask, task.truth_kji[event.index])))
    inside = slice(low + 1, high)
    return Between(task.patient, task.organ, mean_dice(answer[inside], task.truth_kji[inside]), told)


def report(as_it_is: Sequence[Between], untold: Sequence[Between]) -> str:
    """Means, the paired gain, and what the confidence is worth."""
    patients = [each.patient for each in as_it_is]
    gains = [one.dice - other.dice for one, other in zip(as_it_is, untold, strict=True)]
    lines = [f"{len(as_it_is)} objects of {len(set(patients))} patients, Dice between two annotated slices"]
    for title, found in (("as it is", as_it_is), ("fit untold", untold)):
        said, true = np.array([pair for each in found for pair in each.told]).T
        lines.append(
            f"{title}: {bootstrap_mean([each.dice for each in found], patients)};"
            f" confidence against the Dice of the slice: correlation {np.corrcoef(said, true)[0, 1]:.2f},"
            f" mean error {np.abs(said - true).mean():.3f}"
        )
    lines.append(f"gain, paired by object: {bootstrap_mean(gains, patients)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of labelled CTs (or the environment variable MEDSSL_DATA)")
    parser.add_argument("--limit", type=int, help="only so many patients of the head and neck")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="tracker (default: %(default)s)")
    options = parser.parse_args(argv)
    root = data_root(options.data)
    if root is None:
        parser.error("give --data, or set MEDSSL_DATA")
    torch.set_num_threads(1)
    tracker = load_tracker(options.model, "cpu")
    groups = held_out_cases()
    names = groups["head_neck"][: options.limit] + groups["abdomen"]
    found: tuple[list[Between], list[Between]] = ([], [])
    for folder in (Path(root) / name for name in names):
        if folder.is_dir():
            case = read_case(folder)
            for way, results in zip((tracker, Untold(tracker)), found, strict=True):
                results += measure(way, case)
    print(report(*found))


if __name__ == "__main__":
    main()
