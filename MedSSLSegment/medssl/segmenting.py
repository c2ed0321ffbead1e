"""The full pipeline: a model's coarse mask is sharpened, becomes boxes, a refined, and a propagated mask.

    model = read_model("liver.safetensors")
    result = segment_volume(volume, model, predictor=load_image_predictor("sam-vit-b"), tracker=load_tracker("..."))
    write_segmentation(result.segmentation, "liver.seg.nrrd")
    result.scores(truth)                                         # of every stage, side by side

Two modes say where the reference slices come from, and they never mix. `prompt="prediction"` is automatic: they are
chosen among the refined slices by how sure all the models are of them. `prompt="annotation"` starts from slices that a
person has drawn; coarse and refined masks are then only there to compare with.

Every stage is kept as a label map, however many segments there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas
from .errors import Cancelled, InputError
from .events import Eta, Log, Progress, drain
from .formats.imagefile import write_image
from .known_slices import KnownSlices
from .metrics import SegmentScore, dice, evaluate
from .pipeline import annotated_slices, references_from_annotation
from .prompts import Reference, SlicePrompt
from .propagate import PropagateOptions, propagate
from .refine import RefinedSlice, RefineOptions, largest_component, refine_slice
from .results import SliceMask, UncertaintyMap
from .segmentation import Segmentation, write_segmentation
from .sharpening import sharpen
from .storage import make_folder
from .volume import Volume, Window, as_stack, take_slice

if TYPE_CHECKING:
    from .few_labels.segmenter import SegmentationModel
    from .foundation.protocols import ImagePredictor, Prediction, SliceTracker

__all__ = [
    "STAGES",
    "SegmentEvent",
    "SegmentOptions",
    "SegmentResult",
    "Stage",
    "choose_references",
    "drop_small_parts",
    "segment",
    "segment_volume",
]

Stage = Literal["coarse", "largest", "sharpened", "refined", "propagated", "final"]
STAGES: tuple[Stage, ...] = ("coarse", "largest", "sharpened", "refined", "propagated", "final")
"""In the order they are made; "largest" is the largest connected part of each coarse segment, for comparison.
"sharpened" is what is refined: the large parts of the coarse mask, weighed against the intensities of a CT."""
SegmentEvent: TypeAlias = "SliceMask | UncertaintyMap | Progress | Log"
"""What `segment` yields; a `SliceMask` says in `stage` which it belongs to, a `Progress` in `text`."""

_BEYOND_MM = 6.0
"""Propagation from chosen slices goes so far past where the refined mask ends: a tracker goes on too far rather than
stop early, and three reference slices of a few labels' model say less about the ends than the model does."""
_LEAST_QUALITY = 0.5
"""A reference slice is at least this share as sure as the surest one."""


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How a volume is segmented.

    Raises:
        InputError: a value that cannot be.
    """

    prompt: Literal["prediction", "annotation"] = "prediction"
    """Where reference slices come from: chosen among the refined ones, or drawn by a person."""
    segments: tuple[str, ...] = ()
    """Names of those to find; empty for all the model knows, or all that are annotated."""
    axis: int | None = None
    """Slice axis to refine and propagate along (0 = K, 1 = J, 2 = I); None is the axial one."""
    references: int = 3
    """prompt="prediction": how many reference slices to choose for each segment, at most."""
    least_part: float = 0.5
    """Connected parts of a coarse segment smaller than this share of its largest are dropped; 0 keeps all."""
    sharpen: bool = True
    """Weigh a model's answer on a CT against the volume's own intensities before it is refined; see
    `medssl.sharpening`. Thin objects whose surroundings look alike, such as the spinal cord, do better without."""
    margin_mm: float = 5.0
    """How much wider than the sharpened mask each box is, on every side."""
    per_component: bool = False
    """One box for each connected part of a slice instead of one around all of them."""
    guard_dice: float = 0.5
    """A slice keeps its sharpened mask if its refined one has a lower Dice with it."""
    crop: Literal["auto", "off"] = "off"
    """auto propagates on a crop around the reference slices, for small structures."""
    window: Window | None = None
    """Intensity window of the promptable models; None = chosen from the volume."""
    uncertainty: Literal["off", "flip-average", "dropout"] = "off"
    """Whether the coarse answer is averaged (see `medssl.inference.predict`); unless off, maps are sent too."""
    start: int | None = None
    """Axial slice to begin the coarse prediction with; None is the middle."""
    anyway: bool = False
    """Only warn where the volume is of another modality than the model has learnt from."""

    def __post_init__(self) -> None:
        if self.prompt not in ("prediction", "annotation"):
            raise InputError(f"There is no prompt mode '{self.prompt}'; choose prediction or annotation.")
        if self.references < 1:
            raise InputError(f"At least 1 reference slice must be chosen, not {self.references}.")
        if not 0.0 <= self.least_part <= 1.0:
            raise InputError(f"The least part is a share from 0 to 1, not {self.least_part:g}.")
        self.refine_options(0)
        self.propagate_options(0)

    def refine_options(self, axis: int) -> RefineOptions:
        """The part that `medssl.refine` reads."""
        return RefineOptions(
            axis=axis,
            margin_mm=self.margin_mm,
            per_component=self.per_component,
            guard_dice=self.guard_dice,
            window=self.window,
        )

    def propagate_options(self, axis: int) -> PropagateOptions:
        """The part that `medssl.propagate` reads."""
        return PropagateOptions(axis=axis, crop=self.crop, window=self.window)


@dataclass(frozen=True, eq=False)
class SegmentResult:
    """Every stage of every segment, on the volume's own grid."""

    stages: Mapping[Stage, Segmentation]
    """One label map per stage."""
    prompt: Literal["prediction", "annotation"]
    """Where the reference slices came from."""
    axis: int
    """Slice axis of what is said about slices: 0 = K, 1 = J, 2 = I."""
    references: Mapping[str, tuple[int, ...]]
    """Reference slices of each segment, rising; none for a segment that was not found."""
    confidence: Mapping[str, NDArray[np.float32]]
    """(N,) per segment: the tracker's, 0 .. 1; NaN where propagation did not come."""
    agreement: Mapping[str, NDArray[np.float32]]
    """(N,) per segment: lowest Dice of a slice between sharpened, refined and propagated; NaN where all are empty."""
    refined_slices: Mapping[str, tuple[RefinedSlice, ...]]
    """Per segment: what happened on each slice that was refined."""
    uncertainty_kji: NDArray[np.float32] | None
    """(K, J, I) of the model, 0 (sure) .. 1 (no idea); None where the coarse mask came from elsewhere."""
    seconds: float
    """Wall time."""

    @property
    def segmentation(self) -> Segmentation:
        """The result."""
        return self.stages["final"]

    def scores(self, truth: Segmentation, tolerance_mm: float = 2.0) -> dict[Stage, list[SegmentScore]]:
        """Score every stage against the truth, on the segments that both have.

        Raises:
            InputError: another grid, or no segment in common.
        """
        names = [name for name in self.segmentation.names if name in truth.names]
        if not names:
            raise InputError(f"The truth has none of {', '.join(self.segmentation.names)}.")
        return {stage: evaluate(found, truth, tolerance_mm, names) for stage, found in self.stages.items()}

    def write(self, folder: Path) -> None:
        """Write every stage as <stage>.seg.nrrd, and the uncertainty as uncertainty.nii.gz.

        Raises:
            StorageError: no space or no permission.
        """
        make_folder(folder)
        for stage, found in self.stages.items():
            write_segmentation(found, folder / f"{stage}.seg.nrrd")
        if self.uncertainty_kji is not None:
            write_image(folder / "uncertainty.nii.gz", self.uncertainty_kji, self.segmentation.ijk_to_ras)


def segment_volume(
    volume: Volume,
    model: SegmentationModel | Segmentation,
    *,
    predictor: ImagePredictor,
    tracker: SliceTracker,
    annotation: Segmentation | None = None,
    known: KnownSlices | None = None,
    options: SegmentOptions | None = None,
    device: str = "auto",
    on_event: Callable[[SegmentEvent], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> SegmentResult:
    """Segment a volume to the end; see `segment`.

    Args:
        on_event: called with what `segment` yields.
    """
    work = segment(
        volume, model, predictor=predictor, tracker=tracker, annotation=annotation, known=known, options=options,
        device=device, cancelled=cancelled,
    )  # fmt: skip
    return drain(work, on_event)


def segment(
    volume: Volume,
    model: SegmentationModel | Segmentation,
    *,
    predictor: ImagePredictor,
    tracker: SliceTracker,
    annotation: Segmentation | None = None,
    known: KnownSlices | None = None,
    options: SegmentOptions | None = None,
    device: str = "auto",
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[SegmentEvent, None, SegmentResult]:
    """Segment a volume stage by stage, streamed; what the generator returns at its end has every stage.

    Args:
        volume: the image; only read.
        model: makes the coarse mask; or a coarse mask, of whatever program, on the volume's grid.
        predictor: promptable model that answers boxes.
        tracker: promptable model that propagates.
        annotation: with prompt="annotation": slices somebody has drawn, on the volume's grid.
        known: slices somebody vouches for, in either mode: the final mask has them as they are, but for those that
            the annotation draws anew.
        options: None takes the defaults.
        device: of the coarse model.
        cancelled: asked before every slice or batch.

    Yields:
        Slices of the stages coarse, sharpened (of a model on a CT), refined, propagated and final as soon as they are
        known, uncertainty maps where asked for, progress, and a word on each segment that was not found. Slices of
        sharpened and final are those that are not empty.

    Raises:
        InputError: an annotation without prompt="annotation" or the other way round, a segment that the model or the
            annotation does not know, an annotation or known slices on another grid, or a model of another modality.
        Cancelled: `cancelled` said so; what was yielded stands.
    """
    options = options or SegmentOptions()
    started = time.monotonic()
    axis = volume.axis_of("axial") if options.axis is None else options.axis
    volume.require_stack(axis)
    finds = model if isinstance(model, Segmentation) else model.info
    names = _wanted(finds.names, annotation, options)
    drawn = _drawn(volume, annotation, axis, names, options)

    coarse = yield from _coarse(volume, model, names, options, device, cancelled)
    sharpened = yield from _sharpened(volume, model, coarse, axis, options, cancelled)
    refined, slices = yield from _refine(
        volume, sharpened, predictor, options.refine_options(axis), cancelled
    )
    references = drawn
    if references is None:
        references = _chosen(coarse, refined, slices, axis, options.references)
    for name in names:
        if not any(reference.segment == name for reference in references):
            yield Log(f"Nothing was found of {name}.")
    canvas = Canvas(volume, axis, coarse.found.segments)
    if references:
        reach = _reach(refined, axis, volume.spacing_kji_mm[axis]) if drawn is None else {}
        propagation = options.propagate_options(axis)
        yield from _propagate(volume, references, tracker, propagation, canvas, reach, cancelled)
    largest = yield from _large(coarse.found, 1.0, "final")
    stages: dict[Stage, Segmentation] = {
        "coarse": coarse.found,
        "largest": largest,
        "sharpened": sharpened,
        "refined": refined,
        "propagated": canvas.segmentation(),
    }
    yield Progress(0, len(names), None, "final")
    stages["final"] = stages["propagated"] if drawn is not None else _vote(stages)
    if known is not None:
        stages["final"] = known.without(_indices(names, drawn or ())).put_into(stages["final"])
    confidence = canvas.confidence()
    yield from _final_slices(stages["final"], axis, confidence)
    agreement, eta = {}, Eta(len(names))
    for done, name in enumerate(names, start=1):
        agreement[name] = _agreement(stages, name, axis)
        yield eta.step(done, "final")
    return SegmentResult(
        stages=stages,
        prompt=options.prompt,
        axis=axis,
        references=_indices(names, references),
        confidence=confidence,
        agreement=agreement,
        refined_slices=slices,
        uncertainty_kji=coarse.uncertainty_kji,
        seconds=time.monotonic() - started,
    )


def choose_references(quality: NDArray[Any], area_px: NDArray[Any], count: int) -> list[int]:
    """Choose reference slices: sure, large, and spread over the object.

    One after the other, each the best of what its quality and area are worth; slices near those already chosen are
    worth less. None is taken that is less than half as sure as the surest.

    Args:
        quality: (N,) how sure the models are of each slice, 0 .. 1.
        area_px: (N,) pixels found on it.
        count: how many at most.

    Returns:
        Slice indices, rising; none where nothing was found.
    """
    found = np.flatnonzero((area_px > 0) & (quality > 0))
    if not found.size:
        return []
    worth = np.where(quality >= _LEAST_QUALITY * quality[found].max(), quality * area_px / area_px.max(), 0.0)
    worth[area_px == 0] = 0.0
    gap = max(1.0, (found[-1] - found[0] + 1) / count)
    chosen: list[int] = []
    while len(chosen) < count:
        best = int(worth.argmax())
        if worth[best] <= 0:
            break
        chosen.append(best)
        distance = np.abs(np.arange(len(worth)) - best)
        worth = worth * np.minimum(1.0, distance / gap)
    return sorted(chosen)


def drop_small_parts(found: Segmentation, least_part: float) -> Segmentation:
    """Drop the connected parts of each segment that are much smaller than its largest.

    Args:
        found: only read.
        least_part: share of the largest part's voxels, 0 .. 1; 0 keeps all, 1 the largest alone.
    """
    return drain(_large(found, least_part, ""), lambda event: None)


def _large(found: Segmentation, least_part: float, stage: str) -> Generator[Progress, None, Segmentation]:
    """As `drop_small_parts`, segment by segment; the progress is of a stage."""
    if least_part <= 0:
        return found
    from scipy import ndimage

    labels = np.zeros_like(found.labels_kji)
    boxes = ndimage.find_objects(found.labels_kji)
    for part in found.segments:
        yield Progress(0, 0, None, stage)
        box = boxes[part.label - 1] if part.label <= len(boxes) else None
        if box is not None:
            inside = found.labels_kji[box] == part.label
            labels[box][_large_parts(inside, least_part)] = part.label
    return replace(found, labels_kji=labels)


def _large_parts(mask_kji: NDArray[np.bool_], least_part: float) -> NDArray[np.bool_]:
    if least_part >= 1:
        return largest_component(mask_kji)
    from scipy import ndimage

    numbers, _ = ndimage.label(mask_kji, np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    large: NDArray[np.bool_] = (sizes >= max(1.0, least_part * sizes.max()))[numbers]
    return large


# What is asked for


def _wanted(
    known: Sequence[str], annotation: Segmentation | None, options: SegmentOptions
) -> tuple[str, ...]:
    """Names of the segments to do, in the model's order."""
    if (annotation is not None) != (options.prompt == "annotation"):
        raise InputError(
            "Annotated slices go with the prompt mode annotation; with prediction, references are chosen among the"
            " predicted slices: give both or neither."
        )
    drawn = None if annotation is None else annotation.names
    for name in options.segments or drawn or ():
        if name not in known:
            raise InputError(f"The model does not know {name}; it finds {', '.join(known)}.")
        if drawn is not None and name not in drawn:
            raise InputError(f"The annotation has no segment '{name}'; it has {', '.join(drawn)}.")
    wanted = options.segments or drawn or known
    return tuple(name for name in known if name in wanted)


def _drawn(
    volume: Volume,
    annotation: Segmentation | None,
    axis: int,
    names: Sequence[str],
    options: SegmentOptions,
) -> list[Reference] | None:
    """A person's reference slices; None where they are to be chosen. No prediction has been made yet."""
    if annotation is None:
        return None
    return references_from_annotation(volume, annotation, axis, None, names)


# Coarse


@dataclass(frozen=True, eq=False)
class _Coarse:
    """What the model says."""

    found: Segmentation
    probability_kji: NDArray[np.float32] | None
    """Of the label that was chosen; None where the mask came from elsewhere."""
    uncertainty_kji: NDArray[np.float32] | None

    def sureness(self, name: str, axis: int) -> NDArray[np.float32]:
        """(N,) mean probability of a segment's own voxels on each slice; 1 where it is not known."""
        count = self.found.shape_kji[axis]
        if self.probability_kji is None:
            return np.ones(count, np.float32)
        inside = as_stack(self.found.mask(name), axis)
        sums = as_stack(self.probability_kji, axis).sum(axis=(1, 2), where=inside)
        mean: NDArray[np.float32] = sums / np.maximum(inside.sum(axis=(1, 2)), 1)
        return mean


def _coarse(
    volume: Volume,
    model: SegmentationModel | Segmentation,
    names: Sequence[str],
    options: SegmentOptions,
    device: str,
    cancelled: Callable[[], bool],
) -> Generator[SegmentEvent, None, _Coarse]:
    if isinstance(model, Segmentation):
        model.require_grid_of(volume)
        found = _only(model, names)
        yield from _slices_of(found, volume.axis_of("axial"), "coarse")
        return _Coarse(found, None, None)
    from .inference import predict

    segments = tuple(s for s in model.info.segments if s.name in names)
    labels = np.zeros(volume.shape_kji, np.uint8)
    probability = np.zeros(volume.shape_kji, np.float32)
    uncertainty = np.zeros(volume.shape_kji, np.float32)
    for event in predict(
        model,
        volume,
        start=options.start,
        uncertainty=options.uncertainty,
        anyway=options.anyway,
        device=device,
        cancelled=cancelled,
    ):
        if isinstance(event, Progress):
            yield replace(event, text="coarse")
            continue
        if isinstance(event, Log):
            yield event
            continue
        kept = np.where(np.isin(event.labels, [s.label for s in segments]), event.labels, np.uint8(0))
        for n, index in enumerate(event.indices):
            take_slice(labels, event.axis, index)[:] = kept[n]
            take_slice(probability, event.axis, index)[:] = event.probability[n]
            take_slice(uncertainty, event.axis, index)[:] = event.uncertainty[n]
            for part in segments:
                inside = kept[n] == part.label
                if inside.any():
                    sure = float(event.probability[n][inside].mean())
                    yield SliceMask(part.name, event.axis, index, inside, sure, stage="coarse")
            if options.uncertainty != "off":
                yield UncertaintyMap.of(event.axis, index, event.uncertainty[n])
    found = Segmentation(labels, volume.ijk_to_ras, segments, volume.name)
    return _Coarse(found, probability, uncertainty)


def _only(found: Segmentation, names: Sequence[str]) -> Segmentation:
    segments = tuple(s for s in found.segments if s.name in names)
    kept = np.isin(found.labels_kji, [s.label for s in segments])
    return replace(found, labels_kji=np.where(kept, found.labels_kji, 0), segments=segments)


# Sharpened


def _sharpened(
    volume: Volume,
    model: SegmentationModel | Segmentation,
    coarse: _Coarse,
    axis: int,
    options: SegmentOptions,
    cancelled: Callable[[], bool],
) -> Generator[SegmentEvent, None, Segmentation]:
    """The large parts of the coarse mask, sharpened where there are probabilities, of a CT."""
    start = yield from _large(coarse.found, options.least_part, "coarse")
    if isinstance(model, Segmentation) or coarse.probability_kji is None or not options.sharpen:
        return start
    if model.info.contract.modality != "CT":
        return start
    found = yield from sharpen(volume, start, coarse.probability_kji, cancelled)
    found = yield from _large(found, options.least_part, "sharpened")
    yield from _slices_of(found, axis, "sharpened")
    return found


# Refined


def _refine(
    volume: Volume,
    coarse: Segmentation,
    predictor: ImagePredictor,
    options: RefineOptions,
    cancelled: Callable[[], bool],
) -> Generator[SegmentEvent, None, tuple[Segmentation, dict[str, tuple[RefinedSlice, ...]]]]:
    """Refine all segments slice by slice, so that each slice is encoded only once."""
    window = options.window or Window.auto(volume)
    once = _EncodesOnce(predictor)
    canvas = Canvas(volume, options.axis, coarse.segments)
    happened: dict[str, list[RefinedSlice]] = {name: [] for name in coarse.names}
    labels_nhw = as_stack(coarse.labels_kji, options.axis)
    touched = annotated_slices(labels_nhw != 0)
    eta = Eta(len(touched))
    for done, index in enumerate(touched, start=1):
        if cancelled():
            raise Cancelled("The segmentation was cancelled while refining.")
        once.next_slice()
        for part in coarse.segments:
            mask = labels_nhw[index] == part.label
            if mask.any():
                mask, what = refine_slice(volume, mask, index, once, window, options)
                happened[part.name].append(what)
                confidence = what.agreement if what.kept_coarse else what.score
                answer = SliceMask(part.name, options.axis, index, mask, confidence, stage="refined")
                canvas.write(answer)
                yield answer
        yield eta.step(done, "refined")
    return canvas.segmentation(), {name: tuple(each) for name, each in happened.items()}


class _EncodesOnce:
    """An image predictor that several segments ask about the same slice, which it is shown once."""

    def __init__(self, predictor: ImagePredictor) -> None:
        self._predictor = predictor
        self._shown = False

    def next_slice(self) -> None:
        """The next image will be another slice."""
        self._shown = False

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode a slice, unless it was shown already."""
        if not self._shown:
            self._predictor.set_image(slice_hu, window, spacing_rc_mm)
        self._shown = True

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Pass a prompt on."""
        return self._predictor.predict(prompt)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Pass boxes on."""
        return self._predictor.predict_boxes(boxes_xyxy_px, hint)


# Propagated


def _chosen(
    coarse: _Coarse,
    refined: Segmentation,
    slices: Mapping[str, Sequence[RefinedSlice]],
    axis: int,
    count: int,
) -> list[Reference]:
    """Reference slices among the refined ones."""
    references = []
    for name, happened in slices.items():
        quality = np.zeros(refined.shape_kji[axis], np.float32)
        for what in happened:
            quality[what.index] = what.agreement * what.score
        quality *= coarse.sureness(name, axis)
        stack = as_stack(refined.mask(name), axis)
        for index in choose_references(quality, np.count_nonzero(stack, axis=(1, 2)), count):
            references.append(Reference(name, SlicePrompt(axis, index, mask=stack[index])))
    return references


def _propagate(
    volume: Volume,
    references: Sequence[Reference],
    tracker: SliceTracker,
    options: PropagateOptions,
    canvas: Canvas,
    reach: Mapping[str, range],
    cancelled: Callable[[], bool],
) -> Generator[SegmentEvent, None, None]:
    """Propagate every segment, those with a reach within it."""
    if reach and all(reference.segment in reach for reference in references):
        first, last = (choose(r[end] for r in reach.values()) for choose, end in ((min, 0), (max, -1)))
        options = replace(options, first=first, last=last)
    for event in propagate(volume, references, tracker, options, cancelled):
        if not isinstance(event, SliceMask):
            yield replace(event, text="propagated")
        elif event.index in reach.get(event.segment, (event.index,)):
            canvas.write(event)
            yield replace(event, stage="propagated")


def _reach(refined: Segmentation, axis: int, step_mm: float) -> dict[str, range]:
    """Per segment, the slices that propagation may fill: nobody has said where the object ends, but the model has."""
    beyond = round(_BEYOND_MM / step_mm)
    reach = {}
    for name in refined.names:
        stack = as_stack(refined.mask(name), axis)
        if found := annotated_slices(stack):
            reach[name] = range(max(found[0] - beyond, 0), min(found[-1] + beyond + 1, len(stack)))
    return reach


# Final


def _vote(stages: Mapping[Stage, Segmentation]) -> Segmentation:
    """Where sharpened and refined agree, what they say; elsewhere propagation decides, as the third voice."""
    first, second, third = (stages[stage].labels_kji for stage in ("sharpened", "refined", "propagated"))
    propagated, labels = stages["propagated"], np.where(first == second, first, third)
    return replace(propagated, labels_kji=labels)


def _final_slices(
    found: Segmentation, axis: int, confidence: Mapping[str, NDArray[np.float32]]
) -> Generator[SliceMask, None, None]:
    for event in _slices_of(found, axis, "final"):
        sure = float(confidence[event.segment][event.index])
        yield replace(event, confidence=0.0 if np.isnan(sure) else sure)


def _slices_of(found: Segmentation, axis: int, stage: Stage) -> Generator[SliceMask, None, None]:
    labels_nhw = as_stack(found.labels_kji, axis)
    for index in annotated_slices(labels_nhw != 0):
        for part in found.segments:
            mask = labels_nhw[index] == part.label
            if mask.any():
                yield SliceMask(part.name, axis, index, mask, 1.0, stage=stage)


def _agreement(stages: Mapping[Stage, Segmentation], name: str, axis: int) -> NDArray[np.float32]:
    """(N,) lowest Dice between sharpened, refined and propagated; NaN where all three are empty."""
    stacks = [as_stack(stages[stage].mask(name), axis) for stage in ("sharpened", "refined", "propagated")]
    lowest = np.full(len(stacks[0]), np.nan, np.float32)
    for index in annotated_slices(stacks[0] | stacks[1] | stacks[2]):
        first, second, third = (stack[index] for stack in stacks)
        lowest[index] = min(dice(first, second), dice(second, third), dice(first, third))
    return lowest


def _indices(names: Sequence[str], references: Sequence[Reference]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(sorted(r.prompt.index for r in references if r.segment == name)) for name in names}
