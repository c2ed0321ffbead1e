"""SAM 2 over the slices of a volume: frames from memory, one encoding of each slice for everyone.

The package's video predictor wants a folder of JPEG files, encodes a slice again for every pass and object, and keeps
every answer for ever. Here slices come from the volume as they are needed, their features are kept within a byte budget
and serve both directions and every segment, objects that were annotated on the same slices go through the network
together, and only the memories that attention can still reach are kept. The answers are the package's own.

Axis letters: B objects, S side of the square the model sees, H, W rows and columns of a slice.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints import read_weights
from ..errors import InputError
from ..prompts import SlicePrompt
from ..volume import Volume, Window, as_stack
from .protocols import TrackedSlice, TrackJob
from .sam2_build import build_sam2_model

if TYPE_CHECKING:
    from ..registry import ModelEntry

__all__ = ["Sam2Session", "Sam2SliceTracker"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FEATURE_BUDGET_BYTES = 768 * 2**20
_GPU_ENCODE_BATCH = 8
_Output = dict[str, Any]  # what SAM 2 remembers of one slice


class Sam2SliceTracker:
    """Carries masks from slice to slice with a SAM 2 model; a `SliceTracker`.

    Args:
        model: a ``SAM2VideoPredictor`` in eval mode, from `build_sam2_model`.
        feature_budget_bytes: memory for the features of slices that were encoded already.
    """

    def __init__(self, model: Any, feature_budget_bytes: int = _FEATURE_BUDGET_BYTES) -> None:
        self._model = model
        self._budget = feature_budget_bytes

    @classmethod
    def from_entry(cls, entry: ModelEntry, device: torch.device) -> Sam2SliceTracker:
        """Load a model of the registry."""
        from ..registry import verified_path

        weights = read_weights(verified_path(entry))
        return cls(build_sam2_model(entry.config, entry.image_size, weights, device=device))

    def open(self, volume: Volume, axis: int, window: Window) -> Sam2Session:
        """Begin work on a volume; one window for all its slices, so that nothing flickers."""
        return Sam2Session(self._model, volume, axis, window, self._budget)


class Sam2Session:
    """SAM 2 at work on one volume, axis and window."""

    def __init__(
        self, model: Any, volume: Volume, axis: int, window: Window, feature_budget_bytes: int
    ) -> None:
        self._model = model
        self._axis = axis
        self._slices = as_stack(volume.voxels_kji, axis)
        self._window = window
        self._features = _FeatureCache(feature_budget_bytes)
        self._positions: list[Tensor] = []
        self._references: dict[int, dict[int, _Output]] = {}
        self._dropped: set[TrackJob] = set()

    @torch.inference_mode()
    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        """Tell SAM 2 what an object is on one slice: a mask, or points and a box."""
        if not 0 <= prompt.index < len(self._slices):
            raise InputError(
                f"Slice {prompt.index} does not exist; slices run from 0 to {len(self._slices) - 1}."
            )
        with self._precision():
            features = self._expanded(prompt.index, 1)
            output = self._model.track_step(
                frame_idx=prompt.index,
                is_init_cond_frame=True,
                **features,
                point_inputs=None if prompt.mask is not None else self._point_inputs(prompt),
                mask_inputs=None if prompt.mask is None else self._mask_input(prompt.mask),
                output_dict={"cond_frame_outputs": {}, "non_cond_frame_outputs": {}},
                num_frames=len(self._slices),
                run_mem_encoder=False,
            )
            size = self._model.image_size
            whole = F.interpolate(
                output["pred_masks"].float(), size=(size, size), mode="bilinear", align_corners=False
            )
            memory, _ = self._model._encode_new_memory(
                current_vision_feats=features["current_vision_feats"],
                feat_sizes=features["feat_sizes"],
                pred_masks_high_res=whole,
                object_score_logits=output["object_score_logits"],
                is_mask_from_pts=True,
            )
        output["maskmem_features"] = memory
        self._references.setdefault(object_id, {})[prompt.index] = self._kept(output)
        return self._answer(object_id, prompt.index, output["pred_masks"], output["object_score_logits"])

    def remove_reference(self, object_id: int, index: int) -> None:
        """Forget a reference slice."""
        self._references.get(object_id, {}).pop(index, None)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        """Track all jobs in one sweep upwards and one downwards, taking turns.

        A job joins its sweep where the sweep reaches its reference slice, so that each slice is encoded once.
        """
        self._dropped.clear()
        sweeps = [
            self._sweep([job for job in jobs if job.step == step and job.start != job.stop])
            for step in (1, -1)
        ]
        while sweeps:
            answers: list[tuple[TrackJob, TrackedSlice]] = []
            for sweep in list(sweeps):
                try:
                    answers += next(sweep)
                except StopIteration:
                    sweeps.remove(sweep)
            if answers:
                yield answers

    def drop(self, job: TrackJob) -> None:
        """Stop computing a job of the run under way."""
        self._dropped.add(job)

    # ------------------------------------------------------------------------------------------------------- sweeps

    def _sweep(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        groups = self._groups(jobs)
        if not groups:
            return
        step = jobs[0].step
        first = min(step * group.start for group in groups) + 1
        last = max(step * job.stop for job in jobs)
        for place in range(first, last + 1):
            index = step * place
            going = [group for group in groups if self._is_going(group, index, step)]
            if going:
                yield [answer for group in going for answer in self._track(group, index, step)]

    def _groups(self, jobs: Sequence[TrackJob]) -> list[_Group]:
        """Jobs that start on the same slice with the same reference slices share every step."""
        grouped: dict[tuple[int, ...], list[TrackJob]] = {}
        for job in jobs:
            references = self._references.get(job.object_id, {})
            if job.start not in references:
                raise InputError(
                    f"Slice {job.start} is no reference slice of object {job.object_id}; add it first."
                )
            grouped.setdefault((job.start, *sorted(references)), []).append(job)
        return [self._group(key[0], key[1:], members) for key, members in grouped.items()]

    def _group(self, start: int, indices: Sequence[int], jobs: list[TrackJob]) -> _Group:
        references = {
            index: _stacked([self._references[job.object_id][index] for job in jobs]) for index in indices
        }
        return _Group(start, jobs, references)

    def _is_going(self, group: _Group, index: int, step: int) -> bool:
        rows = [
            row
            for row, job in enumerate(group.jobs)
            if job not in self._dropped and step * job.start < step * index <= step * job.stop
        ]
        if rows and len(rows) < len(group.jobs):
            group.keep(rows)
        return bool(rows)

    @torch.inference_mode()
    def _track(self, group: _Group, index: int, step: int) -> list[tuple[TrackJob, TrackedSlice]]:
        with self._precision():
            output = self._model.track_step(
                frame_idx=index,
                is_init_cond_frame=False,
                **self._expanded(index, len(group.jobs), step),
                point_inputs=None,
                mask_inputs=None,
                output_dict={"cond_frame_outputs": group.references, "non_cond_frame_outputs": group.recent},
                num_frames=len(self._slices),
                track_in_reverse=step < 0,
            )
        group.recent[index] = self._kept(output)
        group.forget_before(index, step, self._model.num_maskmem, self._model.max_obj_ptrs_in_encoder)
        masks, scores = output["pred_masks"], output["object_score_logits"]
        return [
            (job, self._answer(job.object_id, index, masks[row : row + 1], scores[row : row + 1]))
            for row, job in enumerate(group.jobs)
        ]

    def _kept(self, output: _Output) -> _Output:
        """What later slices need; in bfloat16, as the package keeps it."""
        memory = output["maskmem_features"]
        position = self._model.memory_encoder.position_encoding(memory[:1]).to(memory.dtype)
        return {
            "maskmem_features": memory.to(torch.bfloat16),
            "maskmem_pos_enc": [position.expand(len(memory), -1, -1, -1)],
            "obj_ptr": output["obj_ptr"],
        }

    def _answer(self, object_id: int, index: int, logits: Tensor, score: Tensor) -> TrackedSlice:
        shape = self._slices.shape[1:]
        whole = F.interpolate(logits.float(), size=shape, mode="bilinear", align_corners=False)[0, 0]
        probability = whole.sigmoid().cpu().numpy()
        return TrackedSlice(object_id, index, probability > 0.5, probability, float(score.float().sigmoid()))

    # ----------------------------------------------------------------------------------------------------- features

    def _expanded(self, index: int, count: int, step: int = 1) -> dict[str, Any]:
        """A slice's features for `count` objects, as `track_step` wants them."""
        levels = self._features.get(index)
        if levels is None:
            levels = self._encode(index, step)
        backbone = {
            "backbone_fpn": [level.to(self._device).expand(count, -1, -1, -1) for level in levels],
            "vision_pos_enc": [position.expand(count, -1, -1, -1) for position in self._positions],
        }
        _, features, positions, sizes = self._model._prepare_backbone_features(backbone)
        return {"current_vision_feats": features, "current_vision_pos_embeds": positions, "feat_sizes": sizes}

    def _encode(self, index: int, step: int) -> list[Tensor]:
        """Encode a slice, on a GPU together with the next ones of the sweep."""
        count = _GPU_ENCODE_BATCH if self._device.type == "cuda" else 1
        ahead = [index + step * offset for offset in range(count)]
        wanted = [i for i in ahead if 0 <= i < len(self._slices) and i not in self._features]
        backbone = self._model.forward_image(torch.cat([self._frame(i) for i in wanted]))
        self._positions = [position[:1] for position in backbone["vision_pos_enc"]]
        for row, i in enumerate(wanted):
            self._features.put(i, [level[row : row + 1].clone() for level in backbone["backbone_fpn"]])
        return [level[:1] for level in backbone["backbone_fpn"]]

    def _frame(self, index: int) -> Tensor:
        """(1, 3, S, S) a slice as the model wants it."""
        size = self._model.image_size
        grey = torch.from_numpy(self._window.apply(self._slices[index])).to(self._device)[None, None]
        shrinks = max(grey.shape[-2:]) > size
        grey = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        mean = torch.tensor(_MEAN, device=self._device).view(1, 3, 1, 1)
        std = torch.tensor(_STD, device=self._device).view(1, 3, 1, 1)
        return (grey.expand(-1, 3, -1, -1) - mean) / std

    def _mask_input(self, mask: NDArray[np.bool_]) -> Tensor:
        """(1, 1, S, S) 0 or 1."""
        size = self._model.image_size
        whole = torch.from_numpy(np.ascontiguousarray(mask)).to(self._device)[None, None].float()
        if whole.shape[-2:] == (size, size):
            return whole
        resized = F.interpolate(
            whole, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        return (resized >= 0.5).float()

    def _point_inputs(self, prompt: SlicePrompt) -> dict[str, Tensor]:
        """Points and box corners (labels 2 and 3, box first) in pixels of the square the model sees."""
        xy, labels = prompt.points_xy_px, prompt.point_labels
        if prompt.box_xyxy_px is not None:
            xy = np.concatenate([prompt.box_xyxy_px.reshape(2, 2), xy])
            labels = np.concatenate([[2, 3], labels])
        height, width = self._slices.shape[1:]
        scaled = xy.astype(np.float32) / np.array([width, height], np.float32) * self._model.image_size
        return {
            "point_coords": torch.from_numpy(scaled)[None].to(self._device),
            "point_labels": torch.from_numpy(labels.astype(np.int32))[None].to(self._device),
        }

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 on a GPU, full precision elsewhere."""
        if self._device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()


@dataclass
class _Group:
    """Jobs that share every step: same start, same reference slices."""

    start: int
    jobs: list[TrackJob]
    references: dict[int, _Output]
    """By slice; tensors hold one row per job."""
    recent: dict[int, _Output] = field(default_factory=dict)
    """The latest slices, likewise."""

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the jobs."""
        self.jobs = [self.jobs[row] for row in rows]
        self.references = {index: _rows(output, rows) for index, output in self.references.items()}
        self.recent = {index: _rows(output, rows) for index, output in self.recent.items()}

    def forget_before(self, index: int, step: int, memories: int, pointers: int) -> None:
        """Drop what attention will not reach again from the next slice on."""
        for other in list(self.recent):
            age = step * (index - other)
            if age >= max(memories, pointers):
                del self.recent[other]
            elif age >= memories:
                self.recent[other] = {**self.recent[other], "maskmem_features": None, "maskmem_pos_enc": None}


def _stacked(outputs: list[_Output]) -> _Output:
    return {
        "maskmem_features": torch.cat([output["maskmem_features"] for output in outputs]),
        "maskmem_pos_enc": [torch.cat([output["maskmem_pos_enc"][0] for output in outputs])],
        "obj_ptr": torch.cat([output["obj_ptr"] for output in outputs]),
    }


def _rows(output: _Output, rows: list[int]) -> _Output:
    memory, position = output["maskmem_features"], output["maskmem_pos_enc"]
    return {
        "maskmem_features": None if memory is None else memory[rows],
        "maskmem_pos_enc": None if position is None else [position[0][rows]],
        "obj_ptr": output["obj_ptr"][rows],
    }


class _FeatureCache:
    """Features of encoded slices, the least recently used dropped beyond a byte budget."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._used = 0
        self._levels: OrderedDict[int, list[Tensor]] = OrderedDict()

    def __contains__(self, index: int) -> bool:
        return index in self._levels

    def get(self, index: int) -> list[Tensor] | None:
        levels = self._levels.get(index)
        if levels is not None:
            self._levels.move_to_end(index)
        return levels

    def put(self, index: int, levels: list[Tensor]) -> None:
        size = sum(level.nbytes for level in levels)
        while self._levels and self._used + size > self._budget:
            _, dropped = self._levels.popitem(last=False)
            self._used -= sum(level.nbytes for level in dropped)
        if size <= self._budget:
            self._levels[index] = levels
            self._used += size
