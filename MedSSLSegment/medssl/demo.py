"""The demonstration: annotate the middle slice of each organ, hide the rest, and see how much comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputError, StorageError
from .events import Progress
from .metrics import SegmentScore, evaluate
from .pipeline import PropagationResult, annotated_slices, propagate_volume
from .registry import DEFAULT_MODEL
from .report import write_report
from .segmentation import Segment, Segmentation, write_segmentation
from .volume import Volume, as_stack, write_volume

if TYPE_CHECKING:
    from .foundation.protocols import SliceTracker

__all__ = ["PHANTOM_ORGANS", "DemoResult", "annotate_middle_slices", "run_demo", "write_demo"]

PHANTOM_ORGANS = (
    "liver", "spleen", "kidney_right", "kidney_left", "stomach", "gallbladder", "pancreas", "aorta",
    "heart", "lung_right", "lung_left", "inferior_vena_cava",
)  # fmt: skip
"""What the demonstration looks for in the phantom, which has many more: ribs, vertebrae, vessels."""
MIN_SLICES = 5
"""An organ on fewer slices leaves too little to find."""


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration did and how well."""

    volume: Volume
    truth: Segmentation
    """The whole organs, which the program was not shown."""
    annotation: Segmentation
    """What it was shown: one slice per organ."""
    result: PropagationResult
    scores: list[SegmentScore]
    """Per segment, over the whole volume."""


def run_demo(
    volume: Volume,
    truth: Segmentation,
    *,
    segments: Sequence[str] | None = None,
    model: str = DEFAULT_MODEL,
    device: str = "auto",
    tracker: SliceTracker | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> DemoResult:
    """Give the program one slice of each organ and compare what it makes of it with the whole organ.

    Args:
        volume: the image.
        truth: whole organs on the volume's grid.
        segments: names of the organs to do; None means all.
        model: id of a tracker in the model registry.
        device: auto, cpu, cuda, cuda:N or mps.
        tracker: a tracker that is already loaded; `model` and `device` are then not used.
        on_progress: called after each step.

    Raises:
        InputError: a segment does not exist, or none is on at least 5 slices.
        ModelError: the model is unknown, missing or damaged.
    """
    axis = volume.axis_of("axial")
    asked = truth if segments is None else _only(truth, [truth.segment(name) for name in segments])
    annotation = annotate_middle_slices(asked, axis)
    result = propagate_volume(
        volume, annotation, model=model, device=device, tracker=tracker, axis=axis, on_progress=on_progress
    )
    kept = _only(truth, annotation.segments)
    return DemoResult(volume, kept, annotation, result, evaluate(result.segmentation, kept))


def annotate_middle_slices(truth: Segmentation, axis: int) -> Segmentation:
    """Keep of each segment the non-empty slice nearest its middle, and drop segments on fewer than 5 slices.

    Args:
        truth: whole organs.
        axis: slice axis 0, 1 or 2.

    Raises:
        InputError: no segment is left.
    """
    labels_nhw = as_stack(truth.labels_kji, axis)
    annotated = np.zeros_like(truth.labels_kji)
    kept = []
    for segment in truth.segments:
        mask_nhw = labels_nhw == segment.label
        filled = annotated_slices(mask_nhw)
        if len(filled) >= MIN_SLICES:
            middle = min(filled, key=lambda index: abs(2 * index - filled[0] - filled[-1]))
            as_stack(annotated, axis)[middle][mask_nhw[middle]] = segment.label
            kept.append(segment)
    if not kept:
        raise InputError(
            f"No segment of the labels is on {MIN_SLICES} or more slices; give labels of whole organs."
        )
    return Segmentation(annotated, truth.ijk_to_ras, tuple(kept))


def _only(segmentation: Segmentation, segments: Sequence[Segment]) -> Segmentation:
    """Leave out every segment but some."""
    inside = np.isin(segmentation.labels_kji, [segment.label for segment in segments])
    labels = np.where(inside, segmentation.labels_kji, 0).astype(segmentation.labels_kji.dtype)
    return Segmentation(labels, segmentation.ijk_to_ras, tuple(segments))


def write_demo(demo: DemoResult, folder: str | Path, title: str) -> list[Path]:
    """Write image, annotation, result (as NIfTI and for 3D Slicer) and the picture; return their paths.

    Raises:
        StorageError: no space or no permission.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} cannot be made ({error.strerror}); choose another."
        ) from error
    paths = [
        folder / name
        for name in (
            "ct.nii.gz",
            "annotation.nii.gz",
            "segmentation.nii.gz",
            "segmentation.seg.nrrd",
            "report.png",
        )
    ]
    write_volume(demo.volume, paths[0])
    write_segmentation(demo.annotation, paths[1])
    write_segmentation(demo.result.segmentation, paths[2])
    write_segmentation(demo.result.segmentation, paths[3])
    remarks = {score.segment: f"Dice {score.dice:.3f}  HD95 {score.hd95_mm:5.1f} mm" for score in demo.scores}
    write_report(paths[4], demo.volume, demo.result, demo.truth, remarks, title)
    return paths
