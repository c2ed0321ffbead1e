"""The shipped default at work: carries masks from slice to slice, and answers clicks and boxes.

Every job works on its own square crop around its object, so the size of the volume costs nothing. Jobs - segments,
directions, stretches - go through the network as the rows of one batch, on one CPU core: at this size a second core
would cost more than it does. Where an object drifts to the edge of its crop the crop follows it.

Axis letters: B rows, S side of the crop, H, W rows and columns of a slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints import load_into, read_checkpoint
from ..errors import InputError
from ..prompts import SlicePrompt, box_of_mask
from ..volume import WINDOWS, Volume, Window, as_stack
from .intensity import IntensityOptions, IntensityTrack
from .nano_fusion import Fusion, FusionState, Settled
from .nano_inputs import Appearance, learn_appearance, make_channels, update_appearance
from .nano_model import Decoded, Encoded, NanoConfig, NanoModel
from .nano_prompts import prior_mask
from .protocols import Prediction, TrackedSlice, TrackingSession, TrackJob
from .replay import ReplayingSession
from .runtime import one_thread

if TYPE_CHECKING:
    from pathlib import Path

    from ..registry import ModelEntry

__all__ = ["NanoImagePredictor", "NanoSession", "NanoTracker", "load_nano"]

_SOFT_TISSUE = WINDOWS["soft-tissue"]
_CROP_FACTOR = 2.0  # side of the crop over the larger side of the object's box
_MIN_CROP_PX = 24.0
_EDGE_SHARE = 0.04  # an object nearer to the crop's edge than this has drifted away
_SMALL_SHARE = 0.22  # an object smaller than this share of the crop's side wants a closer crop
_FIRST_CROPS_MM = {50.0: 0.0, 100.0: 0.05, 200.0: 0.03, 400.0: 0.01}
"""Sides of the crops tried around a click, which does not tell the object's size, and what the score of an answer in
one gains because few things that are clicked on are very small or very large."""


def load_nano(path: Path, device: torch.device) -> tuple[NanoModel, Fusion]:
    """Read a small model, and how it is settled with the intensity tracker, from its checkpoint.

    Raises:
        ModelError: the file is missing, damaged, or not a model of this kind.
    """
    tensors, meta = read_checkpoint(path)
    model = NanoModel(NanoConfig.from_meta(meta.get("config", {})))
    load_into(model, tensors, min_fraction=1.0)
    return model.to(device).eval(), Fusion.from_meta(meta)


@dataclass(frozen=True)
class _Crop:
    """A rectangle of a slice, square in millimetres; may reach beyond the slice."""

    row: int
    col: int
    height: int
    width: int

    @classmethod
    def around(
        cls,
        box_xyxy_px: NDArray[np.floating[Any]],
        spacing_rc_mm: tuple[float, float],
        factor: float = _CROP_FACTOR,
    ) -> _Crop:
        """The crop for an object that fills a box."""
        x0, y0, x1, y1 = (float(value) for value in box_xyxy_px)
        row_mm, col_mm = spacing_rc_mm
        object_mm = max((y1 - y0 + 1) * row_mm, (x1 - x0 + 1) * col_mm)
        side_mm = max(factor * object_mm, _MIN_CROP_PX * (row_mm + col_mm) / 2)
        height, width = max(round(side_mm / row_mm), 4), max(round(side_mm / col_mm), 4)
        return cls(round((y0 + y1 + 1 - height) / 2), round((x0 + x1 + 1 - width) / 2), height, width)

    def cut(self, slice_hw: NDArray[np.generic]) -> NDArray[np.float32]:
        """The crop's pixels (height, width); beyond the slice its edge is repeated."""
        inside, whole = self.overlap(slice_hw.shape)
        part = slice_hw[whole].astype(np.float32)
        if part.shape == (self.height, self.width):
            return part
        if part.size == 0:  # wholly beyond the slice
            rows = np.clip(np.arange(self.row, self.row + self.height), 0, slice_hw.shape[0] - 1)
            cols = np.clip(np.arange(self.col, self.col + self.width), 0, slice_hw.shape[1] - 1)
            return slice_hw[rows[:, None], cols].astype(np.float32)
        beyond = [
            (span.start, length - span.stop)
            for span, length in zip(inside, (self.height, self.width), strict=True)
        ]
        return np.pad(part, beyond, mode="edge")

    def cut_mask(self, mask_hw: NDArray[np.generic]) -> NDArray[np.float32]:
        """As `cut`, but nothing lies beyond the slice."""
        cut = np.zeros((self.height, self.width), np.float32)
        inside, whole = self.overlap(mask_hw.shape)
        cut[inside] = mask_hw[whole]
        return cut

    def put_back(self, cut: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The inverse of `cut_mask`: (H, W), zero outside the crop."""
        whole_hw = np.zeros(shape, np.float32)
        inside, whole = self.overlap(shape)
        whole_hw[whole] = cut[inside]
        return whole_hw

    def cuts_off(self, mask_hw: NDArray[np.bool_]) -> bool:
        """Whether a mask touches the crop's edge where the slice goes on."""
        _, whole = self.overlap(mask_hw.shape)
        part = mask_hw[whole]
        (rows, cols), (height, width) = whole, mask_hw.shape
        return bool(
            (rows.start > 0 and part[0].any())
            or (rows.stop < height and part[-1].any())
            or (cols.start > 0 and part[:, 0].any())
            or (cols.stop < width and part[:, -1].any())
        )

    def to_crop(self, points_xy_px: NDArray[np.floating[Any]], size: int) -> NDArray[np.float32]:
        """Slice pixels (centres at integers) to crop pixels (edges at integers) of a crop resized to `size`."""
        offset, scale = np.array([self.col, self.row]), np.array([size / self.width, size / self.height])
        moved: NDArray[np.float32] = ((points_xy_px - offset + 0.5) * scale).astype(np.float32)
        return moved

    def overlap(self, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of what a slice of some shape and the crop share: on the crop, and on the slice."""
        inside, whole = [], []
        for start, length, limit in zip((self.row, self.col), (self.height, self.width), shape, strict=True):
            low, high = max(start, 0), max(min(start + length, limit), max(start, 0))
            whole.append(slice(low, high))
            inside.append(slice(low - start, high - start))
        return (inside[0], inside[1]), (whole[0], whole[1])


class NanoTracker:
    """Carries masks from slice to slice with the small model; a `SliceTracker`."""

    def __init__(self, model: NanoModel, fusion: Fusion | None = None) -> None:
        self._model = model
        self._fusion = fusion or Fusion()

    @classmethod
    def from_entry(cls, entry: ModelEntry, device: torch.device) -> NanoTracker:
        """Load the registry's model."""
        from ..registry import verified_path

        return cls(*load_nano(verified_path(entry), device))

    def open(self, volume: Volume, axis: int, window: Window) -> TrackingSession:
        """Begin work on a volume; the window is fitted to each object, so the volume-wide one is not needed."""
        return ReplayingSession(NanoSession(self._model, volume, axis, self._fusion))


class NanoSession:
    """The small tracker at work on one volume and axis."""

    def __init__(self, model: NanoModel, volume: Volume, axis: int, fusion: Fusion) -> None:
        self._model = model
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
            predictor = NanoImagePredictor(self._model)
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
        fusion = FusionState(int(np.count_nonzero(mask)), pixel_mm2, self._step_mm, mask)
        crop = _Crop.around(box, self._spacing)
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
        track.fusion.previous = track.found[window]
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

    def _new_crop(self, track: _Track) -> _Crop | None:
        """A better crop where the object touches the edge of its own or has become small in it; else None."""
        box = box_of_mask(track.found) if track.score > 0.5 else None
        if box is None:
            return None
        better = _Crop.around(box, self._spacing)
        crop, shape = track.crop, track.found.shape
        small = better.height < crop.height * _SMALL_SHARE * _CROP_FACTOR
        edge_rows, edge_cols = crop.height * _EDGE_SHARE, crop.width * _EDGE_SHARE
        leaves = (
            (box[1] < crop.row + edge_rows and crop.row > 0)
            or (box[0] < crop.col + edge_cols and crop.col > 0)
            or (box[3] > crop.row + crop.height - 1 - edge_rows and crop.row + crop.height < shape[0])
            or (box[2] > crop.col + crop.width - 1 - edge_cols and crop.col + crop.width < shape[1])
        )
        return better if (small or leaves) and better != crop else None

    def _images(self, places: Sequence[tuple[int, _Crop]]) -> Tensor:
        """(B, 1, S, S) HU: each slice in its crop."""
        return self._resized([crop.cut(self._slices[index]) for index, crop in places])

    def _latest(self, tracks: Sequence[_Track]) -> Tensor:
        """(B, 1, S, S) 0 .. 1: what was found on the slice tracked last; nothing where the object was not there."""
        there = torch.tensor([track.score > 0.5 for track in tracks]).view(-1, 1, 1, 1)
        masks = self._masks([(track.probability, track.crop) for track in tracks])
        return masks * there.to(masks)

    def _masks(self, places: Sequence[tuple[NDArray[np.generic], _Crop]]) -> Tensor:
        """(B, 1, S, S) 0 .. 1: each mask in its crop."""
        return self._resized([crop.cut_mask(mask) for mask, crop in places])

    def _resized(self, cuts: Sequence[NDArray[np.float32]]) -> Tensor:
        size = self._model.config.image_size
        device = next(self._model.parameters()).device
        return torch.cat([_resize(torch.from_numpy(cut).to(device), size) for cut in cuts])


def _resize(cut: Tensor, size: int) -> Tensor:
    """(1, 1, S, S) from (height, width), smoothed first where it shrinks."""
    shrinks = max(cut.shape) > size
    return F.interpolate(
        cut[None, None], size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks
    )


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
    crop: _Crop
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


class NanoImagePredictor:
    """Answers clicks, boxes and masks on one slice with the small model; an `ImagePredictor`."""

    def __init__(self, model: NanoModel) -> None:
        self._model = model
        self._slice: NDArray[np.generic] | None = None
        self._spacing = (1.0, 1.0)

    @classmethod
    def from_entry(cls, entry: ModelEntry, device: torch.device) -> NanoImagePredictor:
        """Load the registry's model."""
        from ..registry import verified_path

        return cls(load_nano(verified_path(entry), device)[0])

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Choose the slice to ask about. The model fits its own window to each object, so `window` is not used."""
        self._slice, self._spacing = slice_hu, spacing_rc_mm

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt.

        A box says how large the object is. A click does not: crops from small to large are tried, and of the answers
        that lie wholly within their crop the one that the model is surest of is taken. The first answer's own box then
        gives the crop for the second, final one.

        How sure it is, its score, is the mean probability of the pixels found. What the network itself estimates of its
        mask's quality says next to nothing (`bench_prompts.py` prints how the score goes with the Dice).
        """
        if prompt.mask is not None and prompt.box_xyxy_px is None and len(prompt.points_xy_px) == 0:
            box = box_of_mask(prompt.mask)
            if box is None:
                return self._nothing()
            return self._ask([_Crop.around(box, self._spacing)], prompt, prompt.mask)[0]
        if prompt.box_xyxy_px is not None:
            first = self._ask([_Crop.around(prompt.box_xyxy_px, self._spacing)], prompt, prompt.mask)[0]
            return self._again([prompt], [first])[0]
        crops = [self._crop_at(prompt, side_mm) for side_mm in _FIRST_CROPS_MM]
        answers = self._ask(crops, prompt, prompt.mask)
        tries = [
            (crop, answer, answer.score + more)
            for crop, answer, more in zip(crops, answers, _FIRST_CROPS_MM.values(), strict=True)
            if answer.mask.any()
        ]
        if not tries:
            return self._nothing()
        whole = [(answer, score) for crop, answer, score in tries if not crop.cuts_off(answer.mask)]
        best = max(whole, key=lambda each: each[1])[0] if whole else tries[-1][1]
        return self._again([prompt], [best])[0]

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes in one batch; a coarse mask as a hint says what in the boxes is meant."""
        prompts = [SlicePrompt(0, 0, box_xyxy_px=box) for box in boxes_xyxy_px]
        crops = [_Crop.around(box, self._spacing) for box in boxes_xyxy_px]
        if hint is not None and prompts:
            return self._answer(crops, prompts, [_inside(hint, box) for box in boxes_xyxy_px])
        return self._again(prompts, self._answer(crops, prompts, [None] * len(prompts))) if prompts else []

    def _again(self, prompts: list[SlicePrompt], first: list[Prediction]) -> list[Prediction]:
        """Ask once more, closer, with the first answer as a hint; an empty first answer stands."""
        found = [number for number, answer in enumerate(first) if answer.mask.any()]
        if not found:
            return first
        hints = [first[number].mask for number in found]
        boxes = [box for hint in hints if (box := box_of_mask(hint)) is not None]
        crops = [_Crop.around(box, self._spacing) for box in boxes]
        answers = dict(
            zip(found, self._answer(crops, [prompts[number] for number in found], hints), strict=True)
        )
        return [answers.get(number, answer) for number, answer in enumerate(first)]

    def _ask(
        self, crops: list[_Crop], prompt: SlicePrompt, hint: NDArray[np.bool_] | None
    ) -> list[Prediction]:
        return self._answer(crops, [prompt] * len(crops), [hint] * len(crops))

    @one_thread()
    def _answer(
        self, crops: list[_Crop], prompts: list[SlicePrompt], hints: Sequence[NDArray[np.bool_] | None]
    ) -> list[Prediction]:
        slice_hu = self._shown()
        size = self._model.config.image_size
        device = next(self._model.parameters()).device
        image = torch.cat([_resize(torch.from_numpy(crop.cut(slice_hu)), size) for crop in crops]).to(device)
        points = _points(prompts, crops, size, device)
        guess = prior_mask(*points, size)
        for row, hint in enumerate(hints):
            if hint is not None:
                guess[row : row + 1] = _resize(torch.from_numpy(crops[row].cut_mask(hint)), size).to(device)
        appearance = learn_appearance(image, guess)
        encoded = self._model.encode(make_channels(appearance, image, image, guess))
        decoded = self._model.decode(self._model.alone(encoded), encoded, points=points)
        logits = decoded.logits.float().cpu()
        return [self._prediction(logits[row : row + 1], crop) for row, crop in enumerate(crops)]

    def _prediction(self, logits: Tensor, crop: _Crop) -> Prediction:
        cut = F.interpolate(
            logits.sigmoid(), size=(crop.height, crop.width), mode="bilinear", align_corners=False
        )
        probability = crop.put_back(cut[0, 0].numpy(), self._shown().shape)
        mask = probability > 0.5
        score = float(probability[mask].mean()) if mask.any() else 0.0
        return Prediction(mask, score, logits[0, 0].numpy())

    def _crop_at(self, prompt: SlicePrompt, side_mm: float) -> _Crop:
        """A crop of a given size around the positive points."""
        on = prompt.points_xy_px[prompt.point_labels == 1]
        if len(on) == 0:
            raise InputError("A negative point alone says nothing; add a point on the object.")
        centre = on.mean(axis=0)
        reach = np.abs(prompt.points_xy_px - centre).max(axis=0, initial=0.0)
        half = np.maximum(side_mm / (2 * _CROP_FACTOR) / np.array(self._spacing[::-1]), reach / _CROP_FACTOR)
        return _Crop.around(np.concatenate([centre - half, centre + half]), self._spacing)

    def _shown(self) -> NDArray[np.generic]:
        if self._slice is None:
            raise InputError("Set a slice before asking about it.")
        return self._slice

    def _nothing(self) -> Prediction:
        size = self._model.config.image_size
        return Prediction(np.zeros(self._shown().shape, bool), 0.0, np.full((size, size), -10.0, np.float32))


def _points(
    prompts: list[SlicePrompt], crops: list[_Crop], size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B, P, 2) x, y in crop pixels and (B, P) labels, padded with -1 to the longest prompt."""
    rows_xy, rows_labels = [], []
    for prompt, crop in zip(prompts, crops, strict=True):
        xy, labels = prompt.points_xy_px, prompt.point_labels
        if prompt.box_xyxy_px is not None:
            xy = np.concatenate([prompt.box_xyxy_px.reshape(2, 2), xy])
            labels = np.concatenate([[2, 3], labels])
        rows_xy.append(crop.to_crop(xy, size))
        rows_labels.append(labels.astype(np.int32))
    length = max(max(len(labels) for labels in rows_labels), 3)
    xy_px = np.zeros((len(prompts), length, 2), np.float32)
    padded = -np.ones((len(prompts), length), np.int32)
    for row, (xy, labels) in enumerate(zip(rows_xy, rows_labels, strict=True)):
        xy_px[row, : len(xy)], padded[row, : len(labels)] = xy, labels
    return torch.from_numpy(xy_px).to(device), torch.from_numpy(padded).to(device)


def _inside(hint: NDArray[np.bool_], box_xyxy_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W) the part of a mask that lies in a box."""
    x0, y0, x1, y1 = (round(float(corner)) for corner in box_xyxy_px)
    part = np.zeros_like(hint)
    part[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = hint[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1]
    return part
