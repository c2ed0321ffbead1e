"""The two faces a promptable model shows to the rest of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..prompts import SlicePrompt
from ..volume import Window

if TYPE_CHECKING:
    from ..volume import Volume

__all__ = [
    "EncodedImage",
    "EncodingPredictor",
    "ImagePredictor",
    "Prediction",
    "SliceTracker",
    "TrackJob",
    "TrackedSlice",
    "TrackingSession",
]


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's answer on one slice."""

    mask: NDArray[np.bool_]
    """(H, W) on the slice's own grid."""
    score: float
    """The model's own estimate of the mask's quality, 0 .. 1."""
    logits: NDArray[np.float32]
    """(h, w) mask logits at the model's own resolution (> 0 is inside)."""


class ImagePredictor(Protocol):
    """Set a slice once, ask about it many times."""

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice.

        Args:
            slice_hu: (H, W) raw intensities.
            window: the volume-wide window that maps intensities to what the model sees.
            spacing_rc_mm: pixel size, rows then columns.
        """

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt on the slice that was set."""

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice that was set, in one batch.

        `hint` is a coarse mask (H, W) of what the boxes are around, for models that make use of one.
        """


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What a model worked out about a slice before it was asked anything."""

    state: Any
    """The model's own."""
    nbytes: int
    """Memory it takes."""


@runtime_checkable
class EncodingPredictor(ImagePredictor, Protocol):
    """An image predictor with a costly `set_image`, whose outcome can be kept; the shipped model has none."""

    @property
    def encoder(self) -> Any:
        """The network that `set_image` runs, a torch module."""

    def encoded(self) -> EncodedImage:
        """What the last `set_image` worked out."""

    def show(self, image: EncodedImage) -> None:
        """Go back to a slice that was encoded before; as `set_image`, at once."""


@runtime_checkable
class AnsweringPredictor(ImagePredictor, Protocol):
    """An image predictor whose `predict` is costly: the shipped model's, which runs all of its network for a prompt."""

    @property
    def network(self) -> Any:
        """What `predict` runs, a torch module."""


@dataclass(frozen=True, eq=False)
class TrackedSlice:
    """One object on one slice, as a tracker saw it."""

    object_id: int
    index: int
    mask: NDArray[np.bool_]
    """(H, W) on the slice's own grid; where there is a probability, the pixels above one half."""
    probability: NDArray[np.float32] | None
    """(H, W) foreground probability, for blending between references; None where the tracker has only a mask."""
    score: float
    """Probability that the object is on this slice, 0 .. 1."""
    quality: float | None = None
    """The tracker's own estimate of the mask's IoU if the object is there, 0 .. 1; None where it has none."""


@dataclass(frozen=True)
class TrackJob:
    """Carry one object from one of its reference slices towards another slice."""

    object_id: int
    start: int
    """Index of the reference slice; it is not tracked itself."""
    stop: int
    """Index of the last slice to track; below `start` to go towards lower indices."""

    @property
    def step(self) -> int:
        """+1 towards higher indices, -1 towards lower ones."""
        return 1 if self.stop > self.start else -1


class TrackingSession(Protocol):
    """A tracker at work on one volume, axis and window; what it computed about slices is kept for the next run."""

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        """Tell the tracker what an object is on one slice; a second call for the same slice replaces the first."""

    def remove_reference(self, object_id: int, index: int) -> None:
        """Forget a reference slice."""

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        """Track all jobs side by side, every job one slice further per item, until each has come to its `stop`.

        A job that the caller hands to `drop` in between is no longer computed.
        """

    def drop(self, job: TrackJob) -> None:
        """Stop computing a job of the run under way (its stop rule has fired)."""


class SliceTracker(Protocol):
    """A model that carries masks from slice to slice."""

    def open(self, volume: Volume, axis: int, window: Window) -> TrackingSession:
        """Begin work on a volume; the voxels are only read."""
