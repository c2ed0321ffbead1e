"""A coarse mask becomes a refined one: boxes around it on every slice, answered by a promptable model.

The coarse mask usually comes from a fine-tuned model. Every slice that it touches is shown to an
`ImagePredictor` with one box around all of the mask (or one for each connected part), a margin in millimetres
wider; the answers together are the refined slice (PolyCL, eq. 6 and 7). A slice whose answer agrees too
little with the coarse mask keeps the coarse one, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import Cancelled, InputError
from .events import Eta, Progress, drain
from .metrics import SegmentScore, dice, hausdorff95_mm, normalised_surface_dice, volume_error
from .prompts import box_of_mask, boxes_of_components, label_components, margin_px
from .results import SliceMask
from .volume import Volume, Window, as_stack, put_slice, take_slice

if TYPE_CHECKING:
    from .foundation.protocols import ImagePredictor

__all__ = [
    "RefineOptions",
    "RefineReport",
    "RefinedSlice",
    "largest_component",
    "refine",
    "refine_mask",
    "refine_slice",
]

_Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How a coarse mask is refined.

    Raises:
        InputError: a value is out of range.
    """

    axis: int = 0
    """Slice axis of the voxel grid to go along: 0 = K, 1 = J, 2 = I."""
    margin_mm: float = 5.0
    """How much wider than the mask each box is, on every side."""
    per_component: bool = False
    """One box for each connected part of a slice instead of one around all of them."""
    min_component_px: int = 10
    """With `per_component`: smaller parts get no box and stay as they are."""
    largest_component: bool = False
    """Refine only the largest connected part of the volume and drop the rest."""
    guard_dice: float = 0.5
    """A slice keeps its coarse mask if its refined one has a lower Dice with it; 0 always takes the refined one."""
    window: Window | None = None
    """Window for the whole volume; None = chosen from its intensities."""

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise InputError(f"The slice axis must be 0, 1 or 2, not {self.axis}.")
        if not 0 <= self.margin_mm < np.inf:
            raise InputError(f"The margin around a box must be 0 mm or more, not {self.margin_mm:g} mm.")
        if not 0 <= self.guard_dice <= 1:
            raise InputError(f"The guard on agreement is a Dice from 0 to 1, not {self.guard_dice:g}.")


@dataclass(frozen=True)
class RefinedSlice:
    """What happened on one slice."""

    index: int
    """Slice index along the axis."""
    agreement: float
    """Dice of the model's answer with the coarse mask, 0 .. 1."""
    score: float
    """The model's own estimate of its answer, 0 .. 1; of several boxes, the lowest."""
    kept_coarse: bool
    """The answer agreed too little, so the coarse mask was kept."""


@dataclass(frozen=True, eq=False)
class RefineReport:
    """The coarse mask, its largest component and the refined mask, side by side."""

    coarse_kji: _Mask
    """(K, J, I) what came in."""
    largest_kji: _Mask
    """(K, J, I) the largest connected part of the coarse mask (voxels that touch at a corner belong together)."""
    refined_kji: _Mask
    """(K, J, I) the result; coarse where a slice kept it."""
    slices: tuple[RefinedSlice, ...]
    """Every slice that was shown to the model, in order."""

    @property
    def kept_coarse(self) -> tuple[int, ...]:
        """Indices of the slices that kept the coarse mask."""
        return tuple(s.index for s in self.slices if s.kept_coarse)

    @property
    def summary(self) -> str:
        """One sentence for a person."""
        if not self.slices:
            return "The coarse mask is empty, so there was nothing to refine."
        kept = self.kept_coarse
        if not kept:
            return f"All {len(self.slices)} slices were refined."
        return (
            f"{len(self.slices) - len(kept)} of {len(self.slices)} slices were refined; the coarse mask was kept on"
            f" {', '.join(str(index) for index in kept)}, where the refined one agreed too little with it."
        )

    def scores(
        self, truth_kji: _Mask, spacing_kji_mm: tuple[float, float, float], tolerance_mm: float = 2.0
    ) -> tuple[SegmentScore, SegmentScore, SegmentScore]:
        """Score the three masks against the truth, in the order coarse, largest component, refined.

        Args:
            truth_kji: (K, J, I) bool.
            spacing_kji_mm: voxel spacing.
            tolerance_mm: what the normalised surface Dice forgives.
        """

        def score(name: str, mask: _Mask) -> SegmentScore:
            voxel_ml = float(np.prod(spacing_kji_mm)) / 1000.0
            return SegmentScore(
                segment=name,
                dice=dice(mask, truth_kji),
                hd95_mm=hausdorff95_mm(mask, truth_kji, spacing_kji_mm),
                nsd=normalised_surface_dice(mask, truth_kji, spacing_kji_mm, tolerance_mm),
                tolerance_mm=tolerance_mm,
                volume_error=volume_error(mask, truth_kji),
                predicted_ml=np.count_nonzero(mask) * voxel_ml,
                true_ml=np.count_nonzero(truth_kji) * voxel_ml,
            )

        return (
            score("coarse", self.coarse_kji),
            score("largest component", self.largest_kji),
            score("refined", self.refined_kji),
        )


def refine(
    volume: Volume,
    coarse_kji: _Mask,
    predictor: ImagePredictor,
    options: RefineOptions | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[SliceMask | Progress, None, RefineReport]:
    """Refine a coarse mask slice by slice; what the generator returns at its end is the report.

    Args:
        volume: only read.
        coarse_kji: (K, J, I) bool on the volume's grid. If it is empty, the model is not called.
        predictor: the promptable model.
        options: None takes the defaults.
        cancelled: asked before every slice.

    Yields:
        A `SliceMask` (its segment left empty) for every slice the coarse mask touches, as soon as it is
        known, each followed by a `Progress`. Its confidence is the model's score, or the agreement where the
        coarse mask was kept.

    Raises:
        InputError: the mask is not on the volume's grid.
        Cancelled: `cancelled` said so.
    """
    options = options or RefineOptions()
    coarse = np.asarray(coarse_kji, bool)
    if coarse.shape != volume.shape_kji:
        raise InputError(f"The coarse mask has shape {coarse.shape}, but the volume has {volume.shape_kji}.")
    largest = largest_component(coarse)
    start = largest if options.largest_component else coarse
    refined = start.copy()
    touched = np.flatnonzero(as_stack(coarse, options.axis).any(axis=(1, 2)))
    window = options.window or Window.auto(volume)
    eta = Eta(len(touched))
    slices = []
    for done, index in enumerate(touched.tolist(), start=1):
        if cancelled():
            raise Cancelled("The refinement was cancelled.")
        mask, confidence, text = take_slice(start, options.axis, index), 1.0, ""
        if mask.any():
            mask, what = refine_slice(volume, mask, index, predictor, window, options)
            slices.append(what)
            put_slice(refined, options.axis, index, mask)
            confidence = what.agreement if what.kept_coarse else what.score
            text = _note(what) if what.kept_coarse else ""
        yield SliceMask("", options.axis, index, mask, confidence)
        yield eta.step(done, text)
    return RefineReport(coarse, largest, refined, tuple(slices))


def refine_mask(
    volume: Volume,
    coarse_kji: _Mask,
    predictor: ImagePredictor,
    options: RefineOptions | None = None,
    progress: Callable[[Progress], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RefineReport:
    """Refine a coarse mask to the end and return the report; see `refine`."""

    def show(event: SliceMask | Progress) -> None:
        if isinstance(event, Progress):
            progress(event)

    return drain(refine(volume, coarse_kji, predictor, options, cancelled), show)


def largest_component(mask_kji: _Mask) -> _Mask:
    """The largest connected part of a (K, J, I) mask; voxels that touch at a corner belong together."""
    from scipy import ndimage

    result = np.zeros_like(mask_kji)
    boxes = ndimage.find_objects(mask_kji.astype(np.uint8))
    if boxes:
        box = boxes[0]  # labels take four bytes a voxel: only where there is something
        labels, _ = ndimage.label(mask_kji[box], np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        result[box] = labels == sizes.argmax()
    return result


def refine_slice(
    volume: Volume,
    coarse: _Mask,
    index: int,
    predictor: ImagePredictor,
    window: Window,
    options: RefineOptions,
) -> tuple[_Mask, RefinedSlice]:
    """Refine one slice: the unit of `refine`, for callers that go through several segments slice by slice.

    Args:
        volume: only read.
        coarse: (H, W) bool, not empty, on slice `index` across `options.axis`.
        index: slice index.
        predictor: the promptable model; it is shown the slice.
        window: of the whole volume.
        options: margin, boxes and guard.

    Returns:
        The mask that holds, refined or coarse, and what happened.
    """
    spacing_rc_mm = volume.slice_spacing_mm(options.axis)
    boxes, answer = _boxes_and_rest(coarse, margin_px(options.margin_mm, spacing_rc_mm), options)
    score = 1.0
    if len(boxes):
        predictor.set_image(take_slice(volume.voxels_kji, options.axis, index), window, spacing_rc_mm)
        predictions = predictor.predict_boxes(_not_flat(boxes), coarse)
        for prediction in predictions:
            answer |= prediction.mask
        score = min(prediction.score for prediction in predictions)
    agreement = dice(answer, coarse)
    kept = agreement < options.guard_dice
    return coarse if kept else answer, RefinedSlice(index, agreement, score, kept)


def _not_flat(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Widen boxes around a single row or column of pixels to those pixels' edges: a box must have an inside."""
    half = np.where(boxes[:, 2:] == boxes[:, :2], np.float32(0.5), np.float32(0.0))
    widened: NDArray[np.float32] = boxes + np.concatenate([-half, half], axis=1)
    return widened


def _boxes_and_rest(
    coarse: _Mask, margin: tuple[float, float], options: RefineOptions
) -> tuple[NDArray[np.float32], _Mask]:
    """The boxes (B, 4) to ask about, and the pixels too few for a box, which stay as they are."""
    box = box_of_mask(coarse, margin)
    if not options.per_component or box is None:
        return np.array([] if box is None else [box], np.float32).reshape(-1, 4), np.zeros_like(coarse)
    labels = label_components(coarse)
    small = np.bincount(labels.ravel()) < options.min_component_px
    small[0] = False
    return boxes_of_components(coarse, options.min_component_px, margin), small[labels]


def _note(what: RefinedSlice) -> str:
    return (
        f"Slice {what.index} keeps the coarse mask: the refined one agreed too little with it"
        f" (Dice {what.agreement:.2f})."
    )
