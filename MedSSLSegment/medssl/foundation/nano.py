"""The shipped default at work: carries masks from slice to slice. Clicks and boxes are answered in `nano_image`.

Every job works on its own square crop around its object, so the size of the volume costs nothing. Jobs - segments,
directions, stretches - go through the network as the rows of one batch, on one CPU core: at this size a second core
would cost more than it does. Where an object drifts to the edge of its crop the crop follows it.

Axis letters: B rows, S side of the crop, H, W rows and columns of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..prompts import SlicePrompt, box_of_mask
from ..volume import WINDOWS, Volume, Window, as_stack
from .intensity import IntensityOptions, IntensityTrack
from .nano_crop import CROP_FACTOR, Crop, shown
from .nano_fusion import Fusion, FusionState, Settled
from .nano_image import NanoImagePredictor
from .nano_inputs import Appearance, learn_appearance, make_channels, update_appearance
from .nano_model import Decoded, Encoded, NanoModel, load_nano, load_prompted
from .protocols import TrackedSlice, TrackingSession, TrackJob
from .replay import ReplayingSession
from .runtime import one_thread

if TYPE_CHECKING:
    from ..registry import ModelEntry

__all__ = ["NanoSession", "NanoTracker"]

_SOFT_TISSUE = WINDOWS["soft-tissue"]
_EDGE_SHARE = 0.04  # an object nearer to the crop's edge than this has drifted away
_SMALL_SHARE = 0.22  # an object smaller than this share of the crop's side wants a closer crop


class NanoTracker:
    """Carries masks from slice to slice with the small model; a `SliceTracker`."""

    def __init__(
        self,
        model: NanoModel,
        fusion: Fusion | None = None,
        prompted: Callable[[], NanoModel] | None = None,
    ) -> None:
        """
        Args:
            model: carries masks.
            fusion: how its masks are settled with the intensity tracker's.
            prompted: gives what answers clicks and boxes, once there is one; None for the same model.
        """
        self._model = model
        self._fusion = fusion or Fusion()
        self._prompted = prompted or (lambda: model)

    @classmethod
    def from_entry(cls, entry: ModelEntry, device: torch.device) -> NanoTracker:
        """Load the registry's model."""
        from ..registry import verified_path

        path = verified_path(entry)
        return cls(*load_nano(path, device), cache(partial(load_prompted, path, device)))

    def open(self, volume: Volume, axis: int, window: Window) -> TrackingSession:
        """Begin work on a volume; the window is fitted to each object, so the volume-wide one is not needed."""
        return ReplayingSession(NanoSession(self._model, volume, axis, self._fusion, self._prompted))


class NanoSession:
    """The small tracker at work on one volume and axis."""

    def __init__(
        self, model: NanoModel, volume: Volume, axis: int, fusion: Fusion, prompted: Callable[[], NanoModel]
    ) -> None:
        self._model = model
        self._prompted = prompted
        self._axis = axis
        self._slices = as_stack(volume.voxels_kji, axis)
        self._spacing = volume.slice_spacing_mm(axis)
        self._step_mm = volume.step_mm(axis)
        self._fusion = fusion
        self._references: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._dropped: set[TrackJob] = set()

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        """Learn what an object is from a mask, a box or points on one slice.

        Raises:
            InputError: nothing was found at the points or in the box.
        """
        if prompt.mask is not None:
            mask, score = prompt.mask, 1.0
        else:
            predictor = NanoImagePredictor(self._prompted())
            predictor.set_image(self._slices[prompt.index], _SOFT_TISSUE, self._spacing)
            answer = predictor.predict(prompt)
            mask, score = answer.mask, answer.score
            if not mask.any():
                raise InputError(
                    f"Nothing was found at the prompt on slice {prompt.index}; add a point or draw a box."
                )
        self._references[object_id, prompt.index] = mask
        return TrackedSlice(object_id, prompt.index, mask, None, score)

    def remove_reference(self, object_id: int, index: int) -> None:
        """Forget a reference slice."""
        self._references.pop((object_id, index), None)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        """Track all jobs side by side, every job one slice further per item."""
        self._dropped.clear()
        tracks = [self._begin(job) for job in jobs if job.start != job.stop]
        batches = [self._first_batch(tracks)] if tracks else []
        while batches:
            yield [answer for batch in batches for answer in self._advance(batch)]
            batches = self._joined([part for batch in batches for part in self._regroup(batch)])

    def drop(self, job: TrackJob) -> None:
        """Stop computing a job of the run under way."""
        self._dropped.add(job)

    # A track is one row; a batch is rows that remember equally many slices.

    def _begin(self, job: TrackJob) -> _Track:
        mask = self._references.get((job.object_id, job.start))
        if mask is None:
            raise InputError(
                f"Slice {job.start} is no reference slice of object {job.object_id}; add it first."
            )
        box = box_of_mask(mask)
        if box is None:
            raise InputError(f"The mask on slice {job.start} is empty; paint the object first.")
        mask = mask.astype(bool)
        classical = IntensityTrack(
            self._slices, self._spacing, self._step_mm, _SOFT_TISSUE, IntensityOptions(), job, mask
        )
        pixel_mm2 = self._spacing[0] * self._spacing[1]
        fusion = FusionState.begin(self._slices[job.start], mask, pixel_mm2, self._step_mm)
        crop = Crop.around(box, self._spacing)
        return _Track(job, job.start, mask.astype(np.float32), mask, mask, crop, classical, fusion)

    @one_thread()
    def _first_batch(self, tracks: list[_Track]) -> _Batch:
        """Put all jobs into one batch; those of one object on one reference slice learn it together."""
        places = [(track.job.object_id, track.job.start) for track in tracks]
        distinct = list(dict.fromkeys(places))
        appearance, memory = self._learn([tracks[places.index(place)] for place in distinct])
        rows = torch.tensor([distinct.index(place) for place in places], device=memory["obj_ptr"].device)
        return self._batch(tracks, appearance.rows(rows), _memory_rows(memory, rows))

    def _batch(self, tracks: list[_Track], appearance: Appearance, memory: dict[str, Any]) -> _Batch:
        image = self._images([(track.index, track.crop) for track in tracks])
        return _Batch(tracks, appearance, memory, image, self._latest(tracks))

    def _learn(
        self, tracks: list[_Track], appearance: Appearance | None = None
    ) -> tuple[Appearance, dict[str, Any]]:
        """Show the network what each object is: its reference slice, or the latest one once it has drifted away.

        Returns:
            What the objects look like, learned here unless it is given, and their memories.
        """
        anchors = [track.anchor() for track in tracks]
        reference_hu = self._images(
            [(index, track.crop) for (index, _), track in zip(anchors, tracks, strict=True)]
        )
        reference = self._masks(
            [(mask, track.crop) for (_, mask), track in zip(anchors, tracks, strict=True)]
        )
        appearance = appearance or learn_appearance(reference_hu, reference)
        encoded = self._model.encode(make_channels(appearance, reference_hu, reference_hu, reference))
        decoded = self._model.decode(self._model.alone(encoded), encoded, mask=reference)
        there = torch.full((len(tracks), 1), 10.0, device=reference.device)
        return appearance, self._model.remember(encoded, reference, there, decoded.pointer)

    @one_thread()
    def _advance(self, batch: _Batch) -> list[tuple[TrackJob, TrackedSlice]]:
        """Take every row of a batch one slice further."""
        for track in batch.tracks:
            track.index += track.job.step
        batch.step += 1
        image = self._images([(track.index, track.crop) for track in batch.tracks])
        encoded = self._model.encode(make_channels(batch.appearance, image, batch.image, batch.mask))
        decoded = self._model.decode(
            self._model.recall(encoded, batch.step, batch.reference, batch.recent), encoded
        )
        answers = self._answers(batch, decoded)
        if not all(map(self._finished, batch.tracks)):
            self._remember(batch, image, encoded, decoded.pointer)
        return answers

    def _remember(self, batch: _Batch, image: Tensor, encoded: Encoded, pointer: Tensor) -> None:
        """Let the next slice build on this one."""
        batch.image, batch.mask = image, self._latest(batch.tracks)
        presence = torch.tensor([[track.score] for track in batch.tracks], device=image.device).logit(1e-4)
        batch.recent[batch.step] = self._model.remember(encoded, batch.mask, presence, pointer)
        batch.recent.pop(batch.step - self._model.config.memories, None)
        batch.appearance = update_appearance(batch.appearance, image, batch.mask)

    def _answers(self, batch: _Batch, decoded: Decoded) -> list[tuple[TrackJob, TrackedSlice]]:
        """Bring the network's answers back to the slice, and settle them with the intensity tracker's."""
        foreground = decoded.logits.float().sigmoid()
        presence = decoded.presence_logit.float().sigmoid()[:, 0].tolist()
        answers = []
        for row, track in enumerate(batch.tracks):
            size = (track.crop.height, track.crop.width)
            cut = F.interpolate(foreground[row : row + 1], size=size, mode="bilinear", align_corners=False)
            settled = self._settle(track, cut[0, 0].cpu().numpy(), presence[row])
            answer = TrackedSlice(
                track.job.object_id,
                track.index,
                track.found.copy(),
                track.probability,
                settled.score,
                settled.quality,
            )
            answers.append((track.job, answer))
        return answers

    def _settle(self, track: _Track, cut: NDArray[np.float32], presence: float) -> Settled:
        """One answer from two kinds of evidence; both trackers go on from it.

        Neither tracker says anything beyond its own part of the slice, so only the rectangle round both is looked at.
        """
        other = track.classical.step()
        inside, whole = track.crop.overlap(self._slices.shape[1:])
        window = _hull(whole, (other.rows, other.cols))
        probability = np.zeros([span.stop - span.start for span in window], np.float32)
        probability[_within(window, whole)] = cut[inside]
        classical = np.zeros_like(probability)
        classical[_within(window, (other.rows, other.cols))] = other.probability
        seen = TrackedSlice(track.job.object_id, track.index, classical > 0.5, classical, other.score)
        track.fusion.previous, track.fusion.window = track.found[window], window
        track.fusion.image = self._slices[track.index][window]
        track.fusion.image_before = self._slices[track.index - track.job.step][window]
        settled = self._fusion.settle(probability, presence, seen, track.fusion)

        track.found, track.probability = np.zeros_like(track.found), np.zeros_like(track.probability)
        track.found[window], track.probability[window] = settled.probability > 0.5, settled.probability
        track.score = settled.score
        track.classical.correct(track.found)
        return settled

    @one_thread()
    def _regroup(self, batch: _Batch) -> list[_Batch]:
        """Drop finished rows; give rows whose object has left its crop a new crop, in a batch of their own."""
        going = [row for row, track in enumerate(batch.tracks) if not self._finished(track)]
        crops = {row: self._new_crop(batch.tracks[row]) for row in going}
        staying = [row for row in going if crops[row] is None]
        moving = [row for row in going if crops[row] is not None]
        kept = [batch] if len(staying) == len(batch.tracks) else [batch.rows(staying)] if staying else []
        if moving:
            for row in moving:
                batch.tracks[row].crop = crops[row] or batch.tracks[row].crop
            rows = torch.tensor(moving, device=batch.mask.device)
            tracks = [batch.tracks[row] for row in moving]
            kept.append(self._batch(tracks, *self._learn(tracks, batch.appearance.rows(rows))))
        return kept

    @one_thread()
    def _joined(self, batches: list[_Batch]) -> list[_Batch]:
        """Put batches together whose rows remember equally many slices, whenever they were begun."""
        alike: dict[int, list[_Batch]] = {}
        for batch in batches:
            alike.setdefault(min(batch.step, self._model.config.memories), []).append(batch)
        return [each[0] if len(each) == 1 else _Batch.joined(each) for each in alike.values()]

    def _finished(self, track: _Track) -> bool:
        return track.index == track.job.stop or track.job in self._dropped

    def _new_crop(self, track: _Track) -> Crop | None:
        """A better crop where the object touches the edge of its own or has become small in it; else None."""
        box = box_of_mask(track.found) if track.score > 0.5 else None
        if box is None:
            return None
        better = Crop.around(box, self._spacing)
        crop, shape = track.crop, track.found.shape
        small = better.height < crop.height * _SMALL_SHARE * CROP_FACTOR
        edge_rows, edge_cols = crop.height * _EDGE_SHARE, crop.width * _EDGE_SHARE
        leaves = (
            (box[1] < crop.row + edge_rows and crop.row > 0)
            or (box[0] < crop.col + edge_cols and crop.col > 0)
            or (box[3] > crop.row + crop.height - 1 - edge_rows and crop.row + crop.height < shape[0])
            or (box[2] > crop.col + crop.width - 1 - edge_cols and crop.col + crop.width < shape[1])
        )
        return better if (small or leaves) and better != crop else None

    def _images(self, places: Sequence[tuple[int, Crop]]) -> Tensor:
        """(B, 1, S, S) HU: each slice in its crop."""
        return shown([crop.cut(self._slices[index]) for index, crop in places], self._model)

    def _latest(self, tracks: Sequence[_Track]) -> Tensor:
        """(B, 1, S, S) 0 .. 1: what was found on the slice tracked last; nothing where the object was not there."""
        there = torch.tensor([track.score > 0.5 for track in tracks]).view(-1, 1, 1, 1)
        masks = self._masks([(track.probability, track.crop) for track in tracks])
        return masks * there.to(masks)

    def _masks(self, places: Sequence[tuple[NDArray[np.generic], Crop]]) -> Tensor:
        """(B, 1, S, S) 0 .. 1: each mask in its crop."""
        return shown([crop.cut_mask(mask) for mask, crop in places], self._model)


@dataclass(eq=False)
class _Track:
    """One object on its way in one direction."""

    job: TrackJob
    index: int
    probability: NDArray[np.float32]
    """(H, W) of the object on slice `index`, whether or not it is there."""
    found: NDArray[np.bool_]
    """(H, W) where that lies above one half."""
    reference: NDArray[np.bool_]
    """(H, W) mask on the reference slice."""
    crop: Crop
    classical: IntensityTrack
    """The intensity tracker on the same way."""
    fusion: FusionState
    """What the settlement of the two remembers."""
    score: float = 1.0
    """Object score on slice `index`."""

    def anchor(self) -> tuple[int, NDArray[np.generic]]:
        """The slice and mask that say what the object is: the reference slice's while most of it lies in the crop."""
        if 2 * int(self.crop.cut_mask(self.reference).sum()) >= int(self.reference.sum()):
            return self.job.start, self.reference
        return self.index, self.probability if self.score > 0.5 else np.zeros_like(self.probability)


@dataclass(eq=False)
class _Batch:
    """Rows that go through the network together."""

    tracks: list[_Track]
    appearance: Appearance
    reference: dict[str, Any]
    """Memory of each row's reference slice."""
    image: Tensor
    """(B, 1, S, S) the slice tracked last."""
    mask: Tensor
    """(B, 1, S, S) its mask."""
    step: int = 0
    recent: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Memories of the latest slices by step."""

    def rows(self, rows: list[int]) -> _Batch:
        """Some of the rows."""
        index = torch.tensor(rows, device=self.mask.device)
        return _Batch(
            [self.tracks[row] for row in rows],
            self.appearance.rows(index),
            _memory_rows(self.reference, index),
            self.image[index],
            self.mask[index],
            self.step,
            {step: _memory_rows(memory, index) for step, memory in self.recent.items()},
        )

    @classmethod
    def joined(cls, batches: Sequence[_Batch]) -> _Batch:
        """All rows of batches that remember equally many slices, numbered as those of the first."""
        step = batches[0].step
        recent = [
            {at - batch.step + step: memory for at, memory in batch.recent.items()} for batch in batches
        ]
        return cls(
            [track for batch in batches for track in batch.tracks],
            Appearance.joined([batch.appearance for batch in batches]),
            _joined_memory([batch.reference for batch in batches]),
            torch.cat([batch.image for batch in batches]),
            torch.cat([batch.mask for batch in batches]),
            step,
            {at: _joined_memory([memories[at] for memories in recent]) for at in recent[0]},
        )


def _hull(first: tuple[slice, slice], second: tuple[slice, slice]) -> tuple[slice, slice]:
    """The smallest rectangle round two; an empty one does not count."""
    if not all(span.stop > span.start for span in second):
        return first
    rows, cols = (
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True)
    )
    return rows, cols


def _within(window: tuple[slice, slice], part: tuple[slice, slice]) -> tuple[slice, slice]:
    """A part of a slice as seen from a window; empty stays empty."""
    rows, cols = (
        slice(max(b.start - a.start, 0), max(b.stop - a.start, 0)) for a, b in zip(window, part, strict=True)
    )
    return rows, cols


def _memory_rows(memory: dict[str, Any], index: Tensor) -> dict[str, Any]:
    return {
        "maskmem_features": memory["maskmem_features"][index],
        "maskmem_pos_enc": [position[index] for position in memory["maskmem_pos_enc"]],
        "obj_ptr": memory["obj_ptr"][index],
    }


def _joined_memory(memories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    positions = zip(*(memory["maskmem_pos_enc"] for memory in memories), strict=True)
    return {
        "maskmem_features": torch.cat([memory["maskmem_features"] for memory in memories]),
        "maskmem_pos_enc": [torch.cat(position) for position in positions],
        "obj_ptr": torch.cat([memory["obj_ptr"] for memory in memories]),
    }
