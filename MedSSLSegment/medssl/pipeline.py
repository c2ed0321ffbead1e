"""The whole story: a volume and one annotated slice per organ go in, the organs come out.

    volume = read_volume("ct.nii.gz")
    annotation = read_segmentation("annotation.nii.gz", like=volume)
    result = propagate_volume(volume, annotation)
    write_segmentation(result.segmentation, "organs.nii.gz")
    scores = evaluate(result.segmentation, read_segmentation("truth.nii.gz", like=volume))

`propagate_volume` is four steps, each of which can be used alone: `references_from_annotation` finds the
annotated slices, `load_tracker` loads a model, `propagate` carries the masks from slice to slice, and `collect`
puts the slices together on the volume's own grid. `refine_volume` sharpens a coarse segmentation in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas
from .errors import InputError
from .events import Progress, drain
from .prompts import Reference, SlicePrompt
from .registry import DEFAULT_MODEL
from .results import SliceMask
from .segmentation import Segmentation
from .volume import Volume, as_stack

if TYPE_CHECKING:
    from .client import WorkerClient
    from .foundation.protocols import ImagePredictor, SliceTracker
    from .messages import Streamed
    from .propagate import PropagateOptions
    from .refine import RefineOptions, RefineReport

__all__ = [
    "PropagationResult",
    "RefinementResult",
    "SliceChoice",
    "annotated_slices",
    "choose_axis",
    "collect",
    "propagate_volume",
    "references_from_annotation",
    "refine_volume",
]

SliceChoice = Mapping[str, Sequence[int]] | Sequence[int] | Literal["all"] | None
"""Annotated slices to start from: per segment, the same for all segments, all slices, or left to the program."""

_MANY_SLICES = 20
"""More annotated slices than this in a row look like a finished segmentation, not like reference slices."""


@dataclass(frozen=True, eq=False)
class PropagationResult:
    """Every organ in the whole volume."""

    segmentation: Segmentation
    """On the volume's own grid; segments keep the annotation's names, labels and colours."""
    confidence: Mapping[str, NDArray[np.float32]]
    """(N,) per segment: 0 .. 1 for each slice across `axis`, NaN where propagation did not come."""
    references: Mapping[str, Sequence[int]]
    """Reference slices of each segment, in order."""
    axis: int
    """Slice axis that was propagated along: 0 = K, 1 = J, 2 = I."""
    seconds: float
    """Wall time, without loading the model."""


@dataclass(frozen=True, eq=False)
class RefinementResult:
    """A coarse segmentation, sharpened."""

    segmentation: Segmentation
    """On the volume's own grid; segments keep their names, labels and colours."""
    reports: Mapping[str, RefineReport]
    """Per segment: coarse, largest component and refined, side by side."""
    seconds: float
    """Wall time, without loading the model."""


def propagate_volume(
    volume: Volume,
    annotation: Segmentation,
    *,
    model: str = DEFAULT_MODEL,
    device: str = "auto",
    tracker: SliceTracker | None = None,
    worker: WorkerClient | None = None,
    axis: int | None = None,
    slices: SliceChoice = None,
    segments: Sequence[str] | None = None,
    options: PropagateOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> PropagationResult:
    """Carry annotated slices through a volume.

    Args:
        volume: the image.
        annotation: annotated slices on the volume's grid; see `references_from_annotation`.
        model: id of a tracker in the model registry.
        device: auto, cpu, cuda, cuda:N or mps.
        tracker: a tracker that is already loaded; `model` and `device` are then not used.
        worker: a worker, here or on another machine, that does the work in place of this process.
        axis: slice axis 0, 1 or 2; None takes the one that `choose_axis` finds.
        slices: which annotated slices to start from.
        segments: names of the segments to do; None means all.
        options: range, direction, stop rule and window; its axis is replaced by `axis`.
        on_progress: called after each step.
        cancelled: asked between steps; True ends the work with `Cancelled`.

    Raises:
        InputError: the annotation is empty, or a segment, slice or range does not exist.
        ModelError: the model is unknown, missing or damaged.
        Cancelled: `cancelled` said so.
    """
    from .propagate import PropagateOptions, propagate

    axis = choose_axis(volume, annotation) if axis is None else axis
    references = references_from_annotation(volume, annotation, axis, slices, segments)
    options = replace(options or PropagateOptions(), axis=axis)
    events: Iterable[Streamed]
    if worker is None:
        tracker = tracker or _load_tracker(model, device)
        started = time.monotonic()
        events = propagate(volume, references, tracker, options, cancelled)
    else:
        started = time.monotonic()
        events = worker.propagate(volume, references, options, model=model, device=device).events()
    return collect(volume, annotation, references, events, started, on_progress)


def refine_volume(
    volume: Volume,
    coarse: Segmentation,
    *,
    model: str = DEFAULT_MODEL,
    device: str = "auto",
    predictor: ImagePredictor | None = None,
    segments: Sequence[str] | None = None,
    options: RefineOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RefinementResult:
    """Sharpen a coarse segmentation, segment by segment and slice by slice.

    Args:
        volume: the image.
        coarse: whole segments on the volume's grid, e.g. from a fine-tuned model.
        model: id of a model in the model registry that answers boxes.
        device: auto, cpu, cuda, cuda:N or mps.
        predictor: a model that is already loaded; `model` and `device` are then not used.
        segments: names of the segments to refine; None means all. The others are left out of the result.
        options: axis, margin, guard and window.
        on_progress: called after each slice.
        cancelled: asked between slices; True ends the work with `Cancelled`.

    Raises:
        InputError: other grid, or a segment that does not exist.
        ModelError: the model is unknown, missing or damaged.
        Cancelled: `cancelled` said so.
    """
    from .refine import RefineOptions, refine

    coarse.require_grid_of(volume)
    names = _chosen_segments(coarse, segments, None)
    predictor = predictor or _load_image_predictor(model, device)
    started = time.monotonic()
    options = options or RefineOptions()
    canvas = Canvas(volume, options.axis, [coarse.segment(name) for name in names])
    reports = {}
    for name in names:
        show = partial(_show, canvas, name, on_progress)
        reports[name] = drain(refine(volume, coarse.mask(name), predictor, options, cancelled), show)
    return RefinementResult(canvas.segmentation(), reports, time.monotonic() - started)


def references_from_annotation(
    volume: Volume,
    annotation: Segmentation,
    axis: int | None = None,
    slices: SliceChoice = None,
    segments: Sequence[str] | None = None,
) -> list[Reference]:
    """Turn an annotation's non-empty slices into reference slices.

    Args:
        volume: the image.
        annotation: a segmentation on the volume's grid in which only some slices are filled.
        axis: slice axis 0, 1 or 2; None takes the one that `choose_axis` finds.
        slices: None takes every non-empty slice of a segment, but refuses a segment that is filled on more than
            20 slices without a gap: that is a finished segmentation, and starting from all of it would only give it
            back. "all" takes it as it is; slice numbers pick some. Numbers by segment are about these segments;
            of the others, finished ones are then left out unless `segments` names them.
        segments: names of the segments to use; None means all that are annotated.

    Returns:
        One mask reference per segment and slice, in the order of the annotation's segments.

    Raises:
        InputError: other grid, nothing annotated, or a segment or slice that does not exist.
    """
    annotation.require_grid_of(volume)
    axis = choose_axis(volume, annotation) if axis is None else axis
    volume.require_stack(axis)
    labels_nhw = as_stack(annotation.labels_kji, axis)
    chosen = {
        name: _chosen_slices(
            name,
            annotated_slices(as_stack(annotation.mask(name), axis)),
            slices,
            asked_for=segments is not None,
        )
        for name in _chosen_segments(annotation, segments, slices)
    }
    _check_choice(chosen, slices, segments)
    return [
        Reference(name, SlicePrompt(axis, index, mask=labels_nhw[index] == annotation.segment(name).label))
        for name, indices in chosen.items()
        for index in indices
    ]


def choose_axis(volume: Volume, annotation: Segmentation) -> int:
    """Find the axis an annotation was drawn across: the one with the fewest annotated slices.

    Axial when in doubt: two axes tie, or the annotation is filled on so many slices that it looks finished.
    """
    axial = volume.axis_of("axial")
    filled = annotation.labels_kji != 0
    counts = {axis: len(annotated_slices(as_stack(filled, axis))) for axis in (axial, 0, 1, 2)}
    return axial if min(counts.values()) > _MANY_SLICES else min(counts, key=lambda axis: counts[axis])


def annotated_slices(mask_nhw: NDArray[np.bool_]) -> list[int]:
    """Indices of the non-empty slices of a stack (N, H, W), in order."""
    return [int(index) for index in np.flatnonzero(mask_nhw.any(axis=(1, 2)))]


def collect(
    volume: Volume,
    annotation: Segmentation,
    references: Sequence[Reference],
    events: Iterable[Streamed],
    started: float,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> PropagationResult:
    """Put propagated slices together on the volume's grid.

    A label map holds one segment per voxel: where two overlap, a reference slice wins, then the more confident.

    Args:
        volume: the image.
        annotation: says names, labels and colours of the segments.
        references: the reference slices the events come from.
        events: slices and progress in any order; what the worker logs is not kept.
        started: `time.monotonic()` at the beginning of the work.
        on_progress: called with each progress event.
    """
    axis = references[0].prompt.axis
    indices: dict[str, list[int]] = {}
    for reference in references:
        indices.setdefault(reference.segment, []).append(reference.prompt.index)
    canvas = Canvas(volume, axis, [s for s in annotation.segments if s.name in indices])
    for event in events:
        if isinstance(event, Progress):
            on_progress(event)
        elif isinstance(event, SliceMask):
            canvas.write(event)
    return PropagationResult(
        canvas.segmentation(), canvas.confidence(), indices, axis, time.monotonic() - started
    )


def _show(
    canvas: Canvas, segment: str, on_progress: Callable[[Progress], None], event: SliceMask | Progress
) -> None:
    """Put a refined slice on the canvas under its segment's name."""
    if isinstance(event, Progress):
        on_progress(replace(event, text=segment))
    else:
        canvas.write(replace(event, segment=segment))


def _load_tracker(model: str, device: str) -> SliceTracker:
    from .foundation import load_tracker

    return load_tracker(model, device)


def _load_image_predictor(model: str, device: str) -> ImagePredictor:
    from .foundation import load_image_predictor

    return load_image_predictor(model, device)


def _chosen_segments(
    annotation: Segmentation, segments: Sequence[str] | None, slices: SliceChoice
) -> list[str]:
    names = [segment.name for segment in annotation.segments]
    asked = [*(segments or ()), *(slices if isinstance(slices, Mapping) else ())]
    for name in asked:
        if name not in names:
            raise InputError(
                f"The annotation has no segment '{name}'; it has {', '.join(names) or 'none at all'}."
            )
    return [name for name in names if segments is None or name in segments]


def _chosen_slices(name: str, annotated: list[int], slices: SliceChoice, *, asked_for: bool) -> list[int]:
    wanted = slices.get(name) if isinstance(slices, Mapping) else slices
    if wanted == "all":
        return annotated
    if wanted is None:
        if _looks_finished(annotated) and isinstance(slices, Mapping) and not asked_for:
            return []
        if _looks_finished(annotated):
            raise InputError(
                f"The annotation of {name} fills slices {annotated[0]} to {annotated[-1]} without a gap, which leaves"
                f" nothing to find; name the reference slices, e.g. {annotated[len(annotated) // 2]}, or 'all'."
            )
        return annotated
    if isinstance(slices, Mapping):
        for index in sorted(set(wanted) - set(annotated)):
            raise InputError(f"Slice {index} of {name} is not annotated; {_known(annotated)}.")
    return sorted(set(wanted) & set(annotated))


def _check_choice(
    chosen: Mapping[str, Sequence[int]], slices: SliceChoice, segments: Sequence[str] | None
) -> None:
    if isinstance(slices, Sequence) and slices != "all":
        for index in sorted(set(slices) - {index for indices in chosen.values() for index in indices}):
            raise InputError(f"Slice {index} is not annotated for any segment; choose an annotated slice.")
    for name in segments or ():
        if not chosen[name]:
            raise InputError(f"The annotation of {name} is empty; paint at least one slice of it.")
    if not any(chosen.values()):
        raise InputError("The annotation is empty; paint at least one slice of a segment.")


def _looks_finished(annotated: Sequence[int]) -> bool:
    return len(annotated) > _MANY_SLICES and annotated[-1] - annotated[0] + 1 == len(annotated)


def _known(annotated: Sequence[int]) -> str:
    if not annotated:
        return "none of its slices is"
    return (
        "its annotated slices are "
        + ", ".join(map(str, annotated[:10]))
        + (", ..." if len(annotated) > 10 else "")
    )
