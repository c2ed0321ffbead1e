"""What the worker asks of the engine, and the engine that answers.

The worker knows messages, this file knows models. Nothing here imports torch before a request needs a model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ProtocolError
from ..events import Progress
from ..messages import Predict, PredictVolume, Propagate, Refine, SegmentVolume, Streamed
from ..prompts import SlicePrompt
from ..registry import find_entry
from ..results import SliceMask
from ..streamed_evidence import StreamedEvidence, suggestions
from ..volume import Volume, Window, take_slice
from ..wire.codec import from_plain
from . import memory
from .trained import TrainedModels, predict_volume, segment_volume

if TYPE_CHECKING:
    from ..foundation.protocols import (
        ImagePredictor,
        Prediction,
        SliceTracker,
        TrackedSlice,
        TrackingSession,
        TrackJob,
    )

__all__ = [
    "Engine",
    "EngineBackend",
    "EngineRequest",
    "ImageKeeper",
    "LongRequest",
    "OwnImage",
    "SessionKeeper",
    "Work",
]

LongRequest: TypeAlias = Propagate | Refine | PredictVolume | SegmentVolume
EngineRequest: TypeAlias = LongRequest | Predict
Work: TypeAlias = Generator[Streamed, None, dict[str, Any]]
"""Work item by item; what it returns goes into `Finished.summary`."""


class Engine(Protocol):
    """Does the work of one worker; called from one thread."""

    @property
    def device(self) -> str:
        """The device of the model used last, for a person; empty before the first one."""

    @property
    def models(self) -> tuple[str, ...]:
        """Ids of the models in memory."""

    def compute(self, volume: Volume, request: LongRequest, cancelled: Callable[[], bool]) -> Work:
        """Do long work on a volume."""

    def predict(self, volume: Volume, request: Predict) -> SliceMask:
        """Answer one prompt on one slice."""

    def bytes_needed(self, request: EngineRequest, volume: Volume) -> int:
        """Estimate of the memory a request takes beyond what is loaded already."""

    def bytes_available(self, device: str) -> int | None:
        """Memory left on a device; None where it cannot be told."""

    def forget(self, content_hash: str) -> None:
        """Drop everything that was computed from a volume."""


_WORKING_BYTES_PER_PIXEL = {"sam": 3500, "sam2": 1600, "nano": 2000}
"""Peak memory at work by kind of model and pixel of its input, kept features included: measured, rounded up."""
_LOADING_FACTOR = 2
"""While weights are loaded, the file's tensors and the model's own are in memory side by side."""
_SESSIONS_KEPT = 2
"""Tracking sessions whose features are kept per model, so that correcting a slice need not encode the others again."""

_Options = TypeVar("_Options")
_Report = TypeVar("_Report")
_ModelKey = tuple[str, str]  # model id, device


class EngineBackend:
    """The real engine: loads a model when it is first needed and keeps it.

    Args:
        threads: CPU threads to compute with; None = torch's own choice.
        load_tracker: takes a model id and a device; by default `medssl.foundation.load_tracker`.
        load_image_predictor: the same for clicks and boxes.
    """

    def __init__(
        self,
        threads: int | None = None,
        load_tracker: Callable[[str, str], SliceTracker] | None = None,
        load_image_predictor: Callable[[str, str], ImagePredictor] | None = None,
    ) -> None:
        self._threads = threads
        self._load_tracker = load_tracker
        self._load_image_predictor = load_image_predictor
        self._threads_set = False
        self._device = ""
        self._trained = TrainedModels()
        self._trackers: dict[_ModelKey, SessionKeeper] = {}
        self._predictors: dict[_ModelKey, ImageKeeper] = {}

    @property
    def device(self) -> str:
        """The device of the model used last, for a person."""
        return self._device

    @property
    def models(self) -> tuple[str, ...]:
        """Ids of the models in memory."""
        promptable = (model for model, _ in (*self._trackers, *self._predictors))
        return tuple(dict.fromkeys((*promptable, *self._trained.names)))

    def compute(self, volume: Volume, request: LongRequest, cancelled: Callable[[], bool]) -> Work:
        """Do long work on a volume.

        Raises:
            InputError: an option does not exist, or the request does not suit the volume.
            ModelError: the model is unknown, missing or damaged.
            Cancelled: `cancelled` said so.
        """
        match request:
            case Propagate():
                return self._propagate(volume, request, cancelled)
            case Refine():
                return self._refine(volume, request, cancelled)
            case PredictVolume():
                return self._predict_volume(volume, request, cancelled)
            case SegmentVolume():
                return self._segment_volume(volume, request, cancelled)

    def _propagate(self, volume: Volume, request: Propagate, cancelled: Callable[[], bool]) -> Work:
        from ..propagate import PropagateOptions, propagate

        options = _options(PropagateOptions, request.options)
        tracker = self._tracker(self._key(request))
        tracker.working_for = request.volume
        seen = StreamedEvidence(volume, options.axis, request.references)
        for event in propagate(volume, request.references, tracker, options, cancelled):
            seen.add(event)
            yield event
        return {"suggestions": suggestions(seen.evidence())}

    def _refine(self, volume: Volume, request: Refine, cancelled: Callable[[], bool]) -> Work:
        """The summary is the report, the refined mask apart, which was streamed."""
        from ..refine import RefineOptions, refine

        options = _options(RefineOptions, request.options)
        predictor = self._predictor(self._key(request))
        steps = refine(volume, request.coarse_kji, predictor, options, cancelled)
        report = yield from _named(steps, request.segment)
        return {
            "text": report.summary,
            "slices": [asdict(one) for one in report.slices],
            "kept_coarse": list(report.kept_coarse),
            "largest_kji": report.largest_kji,
        }

    def _predict_volume(self, volume: Volume, request: PredictVolume, cancelled: Callable[[], bool]) -> Work:
        self._device = self._place(request.device)
        model = self._trained.get(request.model, request.store, self._device)
        return (yield from predict_volume(volume, request, model, self._device, cancelled))

    def _segment_volume(self, volume: Volume, request: SegmentVolume, cancelled: Callable[[], bool]) -> Work:
        from ..segmenting import SegmentOptions

        options = _options(SegmentOptions, request.options)
        self._device = self._place(request.device)
        model = self._trained.get(request.model, request.store, self._device)
        predictor = OwnImage(self._predictor((request.refiner, self._device)))
        tracker = self._tracker((request.tracker, self._device))
        tracker.working_for = request.volume
        return (yield from segment_volume(volume, request, options, model, predictor, tracker, cancelled))

    def predict(self, volume: Volume, request: Predict) -> SliceMask:
        """Answer one prompt on one slice; the slice is encoded for the first prompt only."""
        window = Window(*request.window_level_width) if request.window_level_width else Window.auto(volume)
        keeper = self._predictor(self._key(request))
        prompt = request.prompt
        keeper.show(volume, prompt.axis, prompt.index, window)
        answer = keeper.predict(prompt)
        return SliceMask(request.segment, prompt.axis, prompt.index, answer.mask, answer.score)

    def bytes_needed(self, request: EngineRequest, volume: Volume) -> int:
        """Estimate of the memory a request takes beyond what is loaded already."""
        match request:
            case PredictVolume():
                return self._trained.bytes_needed(request.model, request.store, volume)
            case SegmentVolume():
                return self._trained.bytes_needed(request.model, request.store, volume) + max(
                    map(self._bytes_of_promptable, (request.refiner, request.tracker))
                )
            case _:
                return self._bytes_of_promptable(request.model)

    def _bytes_of_promptable(self, model: str) -> int:
        entry = find_entry(model)
        working = entry.image_size**2 * _WORKING_BYTES_PER_PIXEL[entry.kind]
        return working if model in self.models else working + _LOADING_FACTOR * entry.size_bytes

    def bytes_available(self, device: str) -> int | None:
        """Memory left on a device; None where it cannot be told."""
        return memory.available_on(self._place(device))

    def forget(self, content_hash: str) -> None:
        """Drop everything that was computed from a volume."""
        for tracker in self._trackers.values():
            tracker.forget(content_hash)
        for predictor in self._predictors.values():
            predictor.forget(content_hash)

    def _key(self, request: Propagate | Refine | Predict) -> _ModelKey:
        self._device = self._place(request.device)
        return request.model, self._device

    def _place(self, device: str) -> str:
        """The device a name stands for; loads torch, and sets its threads the first time."""
        from ..foundation.runtime import pick_device

        if self._threads is not None and not self._threads_set:
            import torch

            torch.set_num_threads(self._threads)
            self._threads_set = True
        return str(pick_device(device))

    def _tracker(self, key: _ModelKey) -> SessionKeeper:
        if key not in self._trackers:
            from ..foundation import load_tracker

            self._trackers[key] = SessionKeeper((self._load_tracker or load_tracker)(*key))
        return self._trackers[key]

    def _predictor(self, key: _ModelKey) -> ImageKeeper:
        if key not in self._predictors:
            from ..foundation import load_image_predictor

            load = self._load_image_predictor or load_image_predictor
            self._predictors[key] = ImageKeeper(load(*key))
        return self._predictors[key]


class ImageKeeper:
    """An image predictor that remembers which slice of which volume it has encoded.

    Args:
        predictor: what encodes and answers.
    """

    def __init__(self, predictor: ImagePredictor) -> None:
        self.encoded = 0
        """How many slices it has encoded; another number says that another slice is shown."""
        self._predictor = predictor
        self._shown: tuple[str, int, int, Window] | None = None

    def show(self, volume: Volume, axis: int, index: int, window: Window) -> None:
        """Have the predictor look at a slice, unless it does already."""
        wanted = (volume.content_hash, axis, index, window)
        if wanted == self._shown:
            return
        slice_hu = take_slice(volume.voxels_kji, axis, index)
        self.set_image(slice_hu, window, volume.slice_spacing_mm(axis))
        self._shown = wanted

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice, of whatever volume."""
        self._shown = None
        self.encoded += 1
        self._predictor.set_image(slice_hu, window, spacing_rc_mm)

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt on the slice encoded last."""
        return self._predictor.predict(prompt)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice encoded last."""
        return self._predictor.predict_boxes(boxes_xyxy_px, hint)

    def forget(self, content_hash: str) -> None:
        """Encode the slices of this volume anew when they are asked for again."""
        if self._shown is not None and self._shown[0] == content_hash:
            self._shown = None


class OwnImage:
    """An image predictor for long work, which finds its slice shown again after a click on another one.

    Args:
        keeper: shared with the clicks.
    """

    def __init__(self, keeper: ImageKeeper) -> None:
        self._keeper = keeper
        self._image: tuple[NDArray[np.generic], Window, tuple[float, float]] | None = None
        self._encoded = 0

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice."""
        self._image = (slice_hu, window, spacing_rc_mm)
        self._keeper.set_image(*self._image)
        self._encoded = self._keeper.encoded

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt on the slice encoded last."""
        self._show_again()
        return self._keeper.predict(prompt)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice encoded last."""
        self._show_again()
        return self._keeper.predict_boxes(boxes_xyxy_px, hint)

    def _show_again(self) -> None:
        if self._image is not None and self._encoded != self._keeper.encoded:
            self.set_image(*self._image)


class SessionKeeper:
    """A tracker whose sessions outlive a request, so that a second one finds the slices encoded already.

    Args:
        tracker: what opens a session the first time.
    """

    def __init__(self, tracker: SliceTracker) -> None:
        self.working_for = ""
        """Content hash of the volume a session is opened for; the session itself may be on a crop of it."""
        self._tracker = tracker
        self._kept: OrderedDict[tuple[str, str, int, Window], _KeptSession] = OrderedDict()

    def open(self, volume: Volume, axis: int, window: Window) -> TrackingSession:
        """The session on this volume, axis and window, without any references; opened if there is none yet."""
        key = (self.working_for, volume.content_hash, axis, window)
        if key in self._kept:
            self._kept.move_to_end(key)
            self._kept[key].clear()
            return self._kept[key]
        while len(self._kept) >= _SESSIONS_KEPT:
            self._kept.popitem(last=False)
        self._kept[key] = _KeptSession(self._tracker.open(volume, axis, window))
        return self._kept[key]

    def forget(self, content_hash: str) -> None:
        """Drop the sessions opened for a volume."""
        for key in [key for key in self._kept if key[0] == content_hash]:
            del self._kept[key]


class _KeptSession:
    """A tracking session that can drop the references of an earlier request."""

    def __init__(self, session: TrackingSession) -> None:
        self._session = session
        self._references: set[tuple[int, int]] = set()

    def clear(self) -> None:
        for object_id, index in self._references:
            self._session.remove_reference(object_id, index)
        self._references.clear()

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        self._references.add((object_id, prompt.index))
        return self._session.add_reference(object_id, prompt)

    def remove_reference(self, object_id: int, index: int) -> None:
        self._references.discard((object_id, index))
        self._session.remove_reference(object_id, index)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        return self._session.run(jobs)

    def drop(self, job: TrackJob) -> None:
        self._session.drop(job)


def _named(
    steps: Generator[SliceMask | Progress, None, _Report], segment: str
) -> Generator[SliceMask | Progress, None, _Report]:
    """Pass on what a refinement yields and returns, its slices under the segment's name."""
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return cast(_Report, end.value)
        yield replace(event, segment=segment) if isinstance(event, SliceMask) else event


def _options(cls: type[_Options], fields: dict[str, Any]) -> _Options:
    try:
        return from_plain(cls, fields, cls.__name__)
    except ProtocolError as error:
        raise InputError(str(error)) from error
