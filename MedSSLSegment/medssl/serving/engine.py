"""What the worker asks of the engine, and the engine that answers.

The worker knows messages, this file knows models. Nothing here imports torch before a request needs a model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

from .. import memory
from ..errors import InputError, ProtocolError
from ..events import Progress
from ..messages import Expect, Message, Predict, PredictVolume, Propagate, Refine, SegmentVolume, Streamed
from ..prompts import SlicePrompt
from ..registry import find_entry, known_models
from ..results import SliceMask
from ..streamed_evidence import StreamedEvidence, suggestions
from ..volume import Volume, Window
from ..wire.codec import from_plain
from .images import ImageKeeper, OwnImage, Spot, spots_ahead
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
    "LongRequest",
    "SessionKeeper",
    "Work",
]

LongRequest: TypeAlias = Propagate | Refine | PredictVolume | SegmentVolume
EngineRequest: TypeAlias = LongRequest | Predict | Expect
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

    def predict(self, volume: Volume, request: Predict) -> tuple[SliceMask, dict[str, Any]]:
        """Answer one prompt on one slice; the second part goes into `Finished.summary`."""

    def encode_ahead(
        self, volume: Volume, request: Predict | Expect, waiting: Callable[[], Iterable[Message]]
    ) -> Iterator[None]:
        """Get ready for prompts on a slice and those around it; called while nothing is asked.

        Args:
            volume: the request's.
            request: says which slice is being looked at.
            waiting: the requests that have come in meanwhile; they are not kept waiting.
        """

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


@dataclass(frozen=True, eq=False)
class _Foreseen:
    """The answer to a prompt, worked out before it was asked."""

    key: _ModelKey
    spot: Spot
    prompt: SlicePrompt
    answer: Prediction

    def answers(self, key: _ModelKey, spot: Spot, prompt: SlicePrompt) -> bool:
        """Whether it is what a prompt asks for."""
        return (key, spot) == (self.key, self.spot) and prompt.is_like(self.prompt)


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
        self._weights: dict[str, str] = {}
        """SHA-256 of the weights that a model id stood for."""
        self._windows: dict[str, Window] = {}
        self._looked_at: Spot | None = None
        self._step = 1
        """Where the person scrolls to."""
        self._foreseen: _Foreseen | None = None

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
        predictor = OwnImage(self._predictor(self._key_of(request.refiner)))
        tracker = self._tracker(self._key_of(request.tracker))
        tracker.working_for = request.volume
        return (yield from segment_volume(volume, request, options, model, predictor, tracker, cancelled))

    def predict(self, volume: Volume, request: Predict) -> tuple[SliceMask, dict[str, Any]]:
        """Answer one prompt on one slice.

        Returns:
            The answer; and whether the slice was "encoded", and the answer "foreseen", before.
        """
        key = self._key(request)
        keeper = self._predictor(key)
        spot, prompt = self._spot(volume, request), request.prompt
        encoded = keeper.holds(spot)
        foreseen = self._foreseen
        if foreseen is not None and foreseen.answers(key, spot, prompt):
            answer, was_foreseen = foreseen.answer, True
        else:
            keeper.show(volume, spot.axis, spot.index, spot.window)
            answer, was_foreseen = keeper.predict(prompt), False
        mask = SliceMask(request.segment, prompt.axis, prompt.index, answer.mask, answer.score)
        return mask, {"encoded": encoded, "foreseen": was_foreseen}

    def encode_ahead(
        self, volume: Volume, request: Predict | Expect, waiting: Callable[[], Iterable[Message]]
    ) -> Iterator[None]:
        """Encode the slice being looked at, answer what would be asked on it, and encode its neighbours.

        A step for each; ends where memory does.
        """
        if not self._has_room(volume, request):
            return
        spot, keeper = self._spot(volume, request), self._predictor(self._key(request))
        before, self._looked_at = self._looked_at, spot
        if before is not None and before.index != spot.index:
            self._step = -1 if before.index > spot.index else 1
        step = self._step
        for near in spots_ahead(spot, volume.shape_kji[spot.axis], step):
            if not keeper.holds(near):
                if not self._has_room(volume, request):
                    return
                while not keeper.encode_ahead(
                    volume, near, partial(self._is_urgent, waiting, near, request.model)
                ):
                    yield
                yield
            if near == spot and isinstance(request, Expect) and request.prompt is not None:
                while not self._foresee(volume, spot, request, request.prompt, waiting):
                    yield
                yield

    def _foresee(
        self,
        volume: Volume,
        spot: Spot,
        request: Expect,
        prompt: SlicePrompt,
        waiting: Callable[[], Iterable[Message]],
    ) -> bool:
        """Answer a prompt that has not been asked yet; given up, and False, when anything else is."""

        def is_another_asked() -> bool:
            return any(
                not isinstance(asked, Predict)
                or (asked.volume, asked.model) != (request.volume, request.model)
                or not asked.prompt.is_like(prompt)
                for asked in waiting()
            )

        key = self._key(request)
        keeper = self._predictor(key)
        keeper.show(volume, spot.axis, spot.index, spot.window)
        answer = keeper.predict_ahead(prompt, is_another_asked)
        if answer is None:
            return False
        self._foreseen = _Foreseen(key, spot, prompt, answer)
        return True

    def _has_room(self, volume: Volume, request: EngineRequest) -> bool:
        available = self.bytes_available(request.device)
        return available is None or available >= self.bytes_needed(request, volume)

    def _is_urgent(self, waiting: Callable[[], Iterable[Message]], spot: Spot, model: str) -> bool:
        """Whether something waits for anything else than the slice that is being encoded."""
        return any(
            not isinstance(request, Predict | Expect)
            or _slice_of(request) != (spot.axis, spot.index)
            or (request.volume, request.model) != (spot.content_hash, model)
            for request in waiting()
        )

    def _spot(self, volume: Volume, request: Predict | Expect) -> Spot:
        given = request.window_level_width
        window = Window(*given) if given else self._windows.get(request.volume)
        if window is None:
            window = self._windows[request.volume] = Window.auto(volume)
        return Spot(request.volume, *_slice_of(request), window)

    def bytes_needed(self, request: EngineRequest, volume: Volume) -> int:
        """Estimate of the memory a request takes beyond what is loaded already."""
        match request:
            case PredictVolume() | SegmentVolume():
                return self._bytes_of_trained(request, volume)
            case _:
                return self._bytes_of_promptable(request.model)

    def _bytes_of_trained(self, request: PredictVolume | SegmentVolume, volume: Volume) -> int:
        """For the full pipeline, with the promptable model that takes more."""
        on_gpu = self._place(request.device).startswith("cuda")
        stages = isinstance(request, SegmentVolume)
        trained = self._trained.bytes_needed(
            request.model, request.store, volume, stages=stages, on_gpu=on_gpu
        )
        if isinstance(request, PredictVolume):
            return trained
        return trained + max(map(self._bytes_of_promptable, (request.refiner, request.tracker)))

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
        self._windows.pop(content_hash, None)
        if self._foreseen is not None and self._foreseen.spot.content_hash == content_hash:
            self._foreseen = None

    def _key(self, request: Propagate | Refine | Predict | Expect) -> _ModelKey:
        self._device = self._place(request.device)
        return self._key_of(request.model)

    def _key_of(self, model: str) -> _ModelKey:
        """Also forgets what was loaded under the name if other weights have it now."""
        sha256 = next((entry.sha256 for entry in known_models() if entry.id == model), "")
        if self._weights.setdefault(model, sha256) != sha256:
            self._weights[model] = sha256
            self._trackers = {key: kept for key, kept in self._trackers.items() if key[0] != model}
            self._predictors = {key: kept for key, kept in self._predictors.items() if key[0] != model}
            self._foreseen = None
        return model, self._device

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


def _slice_of(request: Predict | Expect) -> tuple[int, int]:
    """Axis and index."""
    place = request.prompt if isinstance(request, Predict) else request
    return place.axis, place.index


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
