"""The shipped default on one slice: answers clicks, boxes and masks.

Axis letters: B questions, P points, S side of the crop, H, W rows and columns of a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..prompts import SlicePrompt, box_of_mask
from ..volume import Window
from .nano_crop import CROP_FACTOR, Crop, shown
from .nano_inputs import learn_appearance, make_channels
from .nano_model import NanoModel, load_nano
from .nano_prompts import point_reach, prior_mask
from .protocols import Prediction
from .runtime import one_thread

if TYPE_CHECKING:
    from ..registry import ModelEntry

__all__ = ["NanoImagePredictor"]

_FIRST_CROPS_MM = {50.0: 0.0, 100.0: 0.05, 200.0: 0.03, 400.0: 0.01}
"""Sides of the crops tried around a click, which does not tell the object's size, and what the score of an answer in
one gains because few things that are clicked on are very small or very large."""
_GUESS_REACH_PX, _ANSWER_REACH_PX, _ANSWER_LOGIT = 12.0, 4.0, 6.0
"""How far a correcting point speaks in what the network is shown, how far in what it answers, and how much there: the
network alone passes over most of them. Chosen on patients that `bench_prompts.py` does not score."""
_AT_THE_POINT = 0.9
"""Reach of a point from which on its word is final."""


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
        that lie wholly within their crop the one that the model is surest of is taken. That answer's own box then gives
        the crop for the final one.

        How sure it is, its score, is the mean probability of the pixels found. What the network itself estimates of its
        mask's quality says next to nothing (`bench_prompts.py` prints how the score goes with the Dice).
        """
        if prompt.mask is not None and prompt.box_xyxy_px is None and len(prompt.points_xy_px) == 0:
            box = box_of_mask(prompt.mask)
            if box is None:
                return self._nothing()
            return self._ask([Crop.around(box, self._spacing)], prompt, prompt.mask)[0]
        if prompt.box_xyxy_px is not None:
            return self._ask([Crop.around(prompt.box_xyxy_px, self._spacing)], prompt, prompt.mask)[0]
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
        return self._again(prompt, best)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes in one batch; a coarse mask as a hint says what in the boxes is meant."""
        prompts = [SlicePrompt(0, 0, box_xyxy_px=box) for box in boxes_xyxy_px]
        crops = [Crop.around(box, self._spacing) for box in boxes_xyxy_px]
        hints = [None if hint is None else _inside(hint, box) for box in boxes_xyxy_px]
        return self._answer(crops, prompts, hints) if prompts else []

    def _again(self, prompt: SlicePrompt, first: Prediction) -> Prediction:
        """Ask once more, closer, with the first answer as a hint."""
        box = box_of_mask(first.mask)
        return first if box is None else self._ask([Crop.around(box, self._spacing)], prompt, first.mask)[0]

    def _ask(
        self, crops: list[Crop], prompt: SlicePrompt, hint: NDArray[np.bool_] | None
    ) -> list[Prediction]:
        return self._answer(crops, [prompt] * len(crops), [hint] * len(crops))

    @one_thread()
    def _answer(
        self, crops: list[Crop], prompts: list[SlicePrompt], hints: Sequence[NDArray[np.bool_] | None]
    ) -> list[Prediction]:
        image = shown([crop.cut(self._shown()) for crop in crops], self._model)
        points = _points(prompts, crops, self._model.config.image_size, image.device)
        guess = prior_mask(*points, self._model.config.image_size)
        for row, hint in enumerate(hints):
            if hint is not None:
                guess[row : row + 1] = shown([crops[row].cut_mask(hint)], self._model)
        appearance = learn_appearance(image, guess)
        corrects = [_corrects(prompt) for prompt in prompts]
        correcting = torch.tensor(corrects, device=image.device).view(-1, 1, 1, 1)
        if any(corrects):
            on, off = point_reach(appearance.scaled(image), *points, _GUESS_REACH_PX)
            guess = torch.where(correcting, (guess + on).clamp(max=1.0) * (1.0 - off), guess)
            appearance = learn_appearance(image, guess)
        encoded = self._model.encode(make_channels(appearance, image, image, guess))
        logits = self._model.decode(self._model.alone(encoded), encoded, points=points).logits.float()
        if any(corrects):
            on, off = point_reach(appearance.scaled(image), *points, _ANSWER_REACH_PX)
            logits = torch.where(correcting, _heeded(logits, on, off), logits)
        logits = logits.cpu()
        return [self._prediction(logits[row : row + 1], crop) for row, crop in enumerate(crops)]

    def _prediction(self, logits: Tensor, crop: Crop) -> Prediction:
        cut = F.interpolate(
            logits.sigmoid(), size=(crop.height, crop.width), mode="bilinear", align_corners=False
        )
        probability = crop.put_back(cut[0, 0].numpy(), self._shown().shape)
        mask = probability > 0.5
        score = float(probability[mask].mean()) if mask.any() else 0.0
        return Prediction(mask, score, logits[0, 0].numpy())

    def _crop_at(self, prompt: SlicePrompt, side_mm: float) -> Crop:
        """A crop of a given size around the positive points."""
        on = prompt.points_xy_px[prompt.point_labels == 1]
        if len(on) == 0:
            raise InputError("A negative point alone says nothing; add a point on the object.")
        centre = on.mean(axis=0)
        reach = np.abs(prompt.points_xy_px - centre).max(axis=0, initial=0.0)
        half = np.maximum(side_mm / (2 * CROP_FACTOR) / np.array(self._spacing[::-1]), reach / CROP_FACTOR)
        return Crop.around(np.concatenate([centre - half, centre + half]), self._spacing)

    def _shown(self) -> NDArray[np.generic]:
        if self._slice is None:
            raise InputError("Set a slice before asking about it.")
        return self._slice

    def _nothing(self) -> Prediction:
        size = self._model.config.image_size
        return Prediction(np.zeros(self._shown().shape, bool), 0.0, np.full((size, size), -10.0, np.float32))


def _points(
    prompts: list[SlicePrompt], crops: list[Crop], size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B, P, 2) x, y in crop pixels and (B, P) labels, padded with -1 to the longest prompt."""
    rows_xy, rows_labels = [], []
    for prompt, crop in zip(prompts, crops, strict=True):
        xy, labels = prompt.points_xy_px, prompt.point_labels
        if prompt.box_xyxy_px is not None:
            # From the centres of the corner pixels to their outer edges.
            corners = prompt.box_xyxy_px.reshape(2, 2) + np.array([[-0.5], [0.5]])
            xy = np.concatenate([corners, xy])
            labels = np.concatenate([[2, 3], labels])
        rows_xy.append(crop.to_crop(xy, size))
        rows_labels.append(labels.astype(np.int32))
    length = max(max(len(labels) for labels in rows_labels), 3)
    xy_px = np.zeros((len(prompts), length, 2), np.float32)
    padded = -np.ones((len(prompts), length), np.int32)
    for row, (xy, labels) in enumerate(zip(rows_xy, rows_labels, strict=True)):
        xy_px[row, : len(xy)], padded[row, : len(labels)] = xy, labels
    return torch.from_numpy(xy_px).to(device), torch.from_numpy(padded).to(device)


def _heeded(logits: Tensor, on: Tensor, off: Tensor) -> Tensor:
    """(B, 1, S, S) logits once points have spoken (`point_reach`); at a point itself they agree with it in any case."""
    spoken = logits + _ANSWER_LOGIT * (on - off)
    spoken = torch.where(on > _AT_THE_POINT, spoken.clamp(min=1.0), spoken)
    return torch.where(off > _AT_THE_POINT, spoken.clamp(max=-1.0), spoken)


def _corrects(prompt: SlicePrompt) -> bool:
    """Whether points say more than where the object is: it is known from a box, a mask or the first click."""
    is_known = prompt.box_xyxy_px is not None or prompt.mask is not None
    return len(prompt.points_xy_px) > (0 if is_known else 1)


def _inside(hint: NDArray[np.bool_], box_xyxy_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W) the part of a mask that lies in a box."""
    x0, y0, x1, y1 = (round(float(corner)) for corner in box_xyxy_px)
    part = np.zeros_like(hint)
    part[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = hint[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1]
    return part
