"""The shipped default on one slice: answers clicks, boxes and masks.

Axis letters: B questions, P points, S side of the crop, H, W rows and columns of a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..metrics import dice
from ..prompts import SlicePrompt, box_of_mask
from ..volume import Window
from .correcting import Corrections, chosen, is_corrected
from .nano_boxes import GUESSES, box_guesses, overflow, parts_inside, shortfall
from .nano_crop import CROP_FACTOR, Crop, shown
from .nano_inputs import Appearance, learn_appearance, make_channels
from .nano_model import Decoded, NanoModel, load_prompted
from .nano_prompts import heeded_guess, point_reach, prior_mask
from .protocols import Prediction
from .runtime import one_thread

if TYPE_CHECKING:
    from ..registry import ModelEntry

__all__ = ["NanoImagePredictor", "dice_level"]

_FIRST_CROPS_MM = (70.0, 140.0, 280.0)
"""Sides of the crops tried around a click, which does not tell the object's size, from small to large."""
_QUALITY_SAYS, _AGREEMENT_SAYS = 0.25, 0.4
"""Weights of what the network expects of its mask, and of how the answers in neighbouring crops agree with it, beside
how sure the network is of the pixels. Chosen, as the sides of the crops, on the patients of `development.json`."""
_SURENESS_SAYS, _OVERFLOW_SAYS, _SHORTFALL_SAYS, _ELLIPSE_SAYS = 0.5, -1.0, -2.0, 0.2
"""Of the answers to a box: weights of how sure the network is of the pixels, of what runs over the box or leaves its
sides free, and of having begun with the usual guess; beside the quality that the network expects and the agreement with
the other answers, at 1. Chosen on such patients too, with tight boxes and loose ones."""
_ANSWER_REACH_PX, _ANSWER_LOGIT = 4.0, 6.0
"""How far a correcting point speaks in what is answered, and how much: the network alone passes over most of them.
Chosen on such patients too."""
_NOWHERE = 0.01
"""Probability below which a pixel is not the object's."""
_AT_THE_POINT = 0.9
"""Reach of a point from which on its word is final."""


class NanoImagePredictor:
    """Answers clicks, boxes and masks on one slice with the small model; an `ImagePredictor`."""

    def __init__(self, model: NanoModel) -> None:
        self._model = model
        self._slice: NDArray[np.generic] | None = None
        self._spacing = (1.0, 1.0)
        self._corrections = Corrections()

    @classmethod
    def from_entry(cls, entry: ModelEntry, device: torch.device) -> NanoImagePredictor:
        """Load the registry's model."""
        from ..registry import verified_path

        return cls(load_prompted(verified_path(entry), device))

    @property
    def network(self) -> NanoModel:
        """What `predict` runs."""
        return self._model

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Choose the slice to ask about. The model fits its own window to each object, so `window` is not used."""
        self._slice, self._spacing = slice_hu, spacing_rc_mm
        self._corrections.forget()

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt.

        A box or a mask says how large the object is. What a box holds may be meant as a whole or in part: the slice is
        looked at with each guess (`nano_boxes`), and the answer that agrees with the others and fits the box goes into
        a second look.

        A click does not say how large: crops from small to large are tried, and one of the answers that lie wholly
        within their crop is taken: by how sure the model is of its pixels, by the IoU that it expects, and by how well
        the next smaller and larger crop agree. That answer's own box then gives the crop for the second look. All
        further points correct what the box, the mask or the first click on the object has found: it is looked at once
        more, with all of them. The other answers are what the other guesses, and the other crops, have led to.

        The score of an answer is the mean probability of the pixels found: it goes with the Dice better than what the
        network expects (`bench_prompts.py` prints how it does).
        """
        return self._corrections.answer(prompt, self._answer)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes in one batch; a coarse mask as a hint says what in the boxes is meant."""
        prompts = [SlicePrompt(0, 0, box_xyxy_px=box) for box in boxes_xyxy_px]
        if hint is None:
            return [self._boxed(prompt, box) for prompt, box in zip(prompts, boxes_xyxy_px, strict=True)]
        crops = [Crop.around(box, self._spacing) for box in boxes_xyxy_px]
        hints = [_inside(hint, box) for box in boxes_xyxy_px]
        answers = self._look(crops, prompts, hints) if prompts else []
        return [answer.on_slice(self._shown().shape) for answer in answers]

    def _answer(self, prompt: SlicePrompt, found: Prediction | None) -> Prediction:
        """Answer a prompt, as a correction of what was found before if there is that."""
        mask = prompt.mask if found is None else found.mask
        seen = None if mask is None else box_of_mask(mask)
        if found is not None or seen is not None:
            return self._ask(_around(prompt, seen), prompt, None if seen is None else mask)
        if prompt.box_xyxy_px is not None:
            return self._boxed(prompt, prompt.box_xyxy_px)
        if mask is not None:
            return self._nothing()
        if 1 not in prompt.point_labels:
            raise InputError("A negative point alone says nothing; add a point on the object.")
        return self._clicked(prompt)

    def _boxed(self, prompt: SlicePrompt, box_xyxy_px: NDArray[np.float32]) -> Prediction:
        """What one box finds."""

        def inside(answer: Prediction) -> Prediction:
            return replace(answer, mask=parts_inside(answer.mask, box_xyxy_px))

        answers = self._guessed(prompt, Crop.around(box_xyxy_px, self._spacing))
        first_looks = (inside(answer.on_slice(self._shown().shape)) for answer in answers)
        second_looks = (
            inside(self._ask(box_xyxy_px, prompt, first.mask)) if first.mask.any() else first
            for first in first_looks
        )
        return chosen(second_looks, prompt.choice)

    @one_thread()
    def _guessed(self, prompt: SlicePrompt, crop: Crop) -> list[_Answer]:
        """What each guess of the object in a box leads to, the likeliest first."""
        image = shown([crop.cut(self._shown())], self._model)
        xy_px, labels = _points([prompt], [crop], self._model.config.image_size, image.device)
        guesses = box_guesses(image, xy_px, labels)[0][:, None]
        images, points = image.expand_as(guesses), (xy_px.expand(GUESSES, -1, -1), labels.expand(GUESSES, -1))
        decoded = self._decoded(learn_appearance(images, guesses), images, guesses, points)
        answers = _answers([crop] * GUESSES, decoded)
        box_px = xy_px[0, :2].flatten().numpy(force=True)
        worth = {
            answer: answer.quality
            + agreement
            + _SURENESS_SAYS * answer.sureness
            + _OVERFLOW_SAYS * overflow(answer.mask, box_px)
            + _SHORTFALL_SAYS * shortfall(answer.mask, box_px)
            for answer, agreement in zip(answers, _mean_dice(answers), strict=True)
        }
        worth[answers[0]] += _ELLIPSE_SAYS
        return sorted(answers, key=lambda answer: -worth[answer])

    def _clicked(self, prompt: SlicePrompt) -> Prediction:
        """What one click finds."""
        crops = [self._crop_at(prompt.points_xy_px[0], side_mm) for side_mm in _FIRST_CROPS_MM]
        shape = self._shown().shape
        looks = self._look(crops, [prompt] * len(crops))
        on_slice = {answer: found for answer in looks if (found := answer.on_slice(shape)).mask.any()}
        if not on_slice:  # what was found beyond the slice's border does not count
            return self._nothing()
        answers = list(on_slice)
        worth = {
            answer: answer.sureness + _QUALITY_SAYS * answer.quality + _AGREEMENT_SAYS * agreement
            for answer, agreement in zip(answers, _agreements(answers), strict=True)
        }
        cut_off = [answer for answer in answers if answer.crop.cuts_off(answer.mask, shape)]
        whole = [answer for answer in answers if answer not in cut_off]
        likeliest_first = [*sorted(whole, key=lambda answer: -worth[answer]), *reversed(cut_off)]
        return chosen((self._again(prompt, on_slice[each]) for each in likeliest_first), prompt.choice)

    def _again(self, click: SlicePrompt, first: Prediction) -> Prediction:
        """Ask once more, closer, with the first answer as a hint."""
        box = box_of_mask(first.mask)
        assert box is not None
        (answer,) = self._look([Crop.around(box, self._spacing)], [click], [first.mask])
        return answer.on_slice(self._shown().shape, is_uncertain=True)

    def _ask(
        self, box_xyxy_px: NDArray[np.float32], prompt: SlicePrompt, hint: NDArray[np.bool_] | None
    ) -> Prediction:
        """Ask about an object that fills a box."""
        crop = Crop.around(box_xyxy_px, self._spacing)
        (answer,) = self._look([crop], [prompt], None if hint is None else [hint])
        return answer.on_slice(self._shown().shape)

    @one_thread()
    def _look(
        self,
        crops: Sequence[Crop],
        prompts: Sequence[SlicePrompt],
        hints: Sequence[NDArray[np.bool_]] | None = None,
    ) -> list[_Answer]:
        """Answer prompts, each in its crop, in one batch."""
        image = shown([crop.cut(self._shown()) for crop in crops], self._model)
        points = _points(prompts, crops, self._model.config.image_size, image.device)
        guess = prior_mask(*points, self._model.config.image_size)
        if hints is not None:
            cuts = [crop.cut_mask(hint) for crop, hint in zip(crops, hints, strict=True)]
            guess = shown(cuts, self._model)
        corrects = [is_corrected(prompt) for prompt in prompts]
        correcting = torch.tensor(corrects, device=image.device)
        appearance, guess = heeded_guess(image, guess, points, correcting)
        decoded = self._decoded(appearance, image, guess, points)
        if any(corrects):
            on, off = point_reach(appearance.scaled(image), *points, _ANSWER_REACH_PX)
            heeded = _heeded(decoded.logits, on, off)
            logits = torch.where(correcting[:, None, None, None], heeded, decoded.logits)
            decoded = replace(decoded, logits=logits)
        return _answers(crops, decoded)

    def _decoded(
        self, appearance: Appearance, image: Tensor, guess: Tensor, points: tuple[Tensor, Tensor]
    ) -> Decoded:
        """What the network says of (B, 1, S, S) crops, shown first guesses of the objects and the points."""
        encoded = self._model.encode(make_channels(appearance, image, image, guess))
        return self._model.decode(self._model.alone(encoded), encoded, points=points)

    def _crop_at(self, point_xy_px: NDArray[np.float32], side_mm: float) -> Crop:
        """A crop of a given size around a point."""
        half = side_mm / (2 * CROP_FACTOR) / np.array(self._spacing[::-1])
        return Crop.around(np.concatenate([point_xy_px - half, point_xy_px + half]), self._spacing)

    def _shown(self) -> NDArray[np.generic]:
        if self._slice is None:
            raise InputError("Set a slice before asking about it.")
        return self._slice

    def _nothing(self) -> Prediction:
        size = self._model.config.image_size
        return Prediction(np.zeros(self._shown().shape, bool), 0.0, np.full((size, size), -10.0, np.float32))


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the network says in one crop."""

    crop: Crop
    logits: Tensor
    """(1, 1, S, S)."""
    quality: float
    """IoU with the whole object that it expects, 0 .. 1."""

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(S, S) on the crop."""
        mask: NDArray[np.bool_] = (self.logits[0, 0] > 0.0).numpy()
        return mask

    @property
    def sureness(self) -> float:
        """Mean probability of what was found, above one half; 0 where nothing was."""
        found = self.logits[self.logits > 0.0]
        return float(found.sigmoid().mean()) if len(found) else 0.0

    @one_thread()
    def on_slice(self, shape: tuple[int, ...], is_uncertain: bool = False) -> Prediction:
        """The answer on a slice of some shape; one that may well be wrong takes the pixels that its Dice gains from."""
        size = (self.crop.height, self.crop.width)
        cut = F.interpolate(self.logits.sigmoid(), size=size, mode="bilinear", align_corners=False)
        probability = self.crop.put_back(cut[0, 0].numpy(), shape)
        mask = probability > (dice_level(probability) if is_uncertain else 0.5)
        score = float(probability[mask].mean()) if mask.any() else 0.0
        return Prediction(mask, score, self.logits[0, 0].numpy())


def _answers(crops: Sequence[Crop], decoded: Decoded) -> list[_Answer]:
    """The rows of what the network says, each with its crop."""
    rows, quality = torch.split(decoded.logits.float().cpu(), 1), decoded.quality.float()[:, 0].tolist()
    return [_Answer(*parts) for parts in zip(crops, rows, quality, strict=True)]


def _mean_dice(answers: Sequence[_Answer]) -> list[float]:
    """Of each answer in one crop, its mean Dice with the others."""
    pairs = np.array([[dice(one.mask, other.mask) for other in answers] for one in answers])
    means: list[float] = ((pairs.sum(axis=1) - 1.0) / (len(answers) - 1)).tolist()
    return means


def _agreements(answers: Sequence[_Answer]) -> list[float]:
    """Of each answer, its mean Dice with those in the next smaller and the next larger crop."""
    pairs = [
        dice(smaller.crop.shown_in(larger.crop, smaller.mask), larger.mask)
        for smaller, larger in pairwise(answers)
    ]
    return [float(np.mean(pairs[max(n - 1, 0) : n + 1] or [0.0])) for n in range(len(answers))]


def dice_level(probability: NDArray[np.float32]) -> float:
    """The probability from which on pixels are taken, at most one half, so that the expected Dice is greatest.

    Of the n surest pixels it is 2 sum(p of those) / (n + sum(p of all)), the quotient of the expectations; see Lipton,
    Elkan and Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", 2014. The less sure a model
    is of an object, the lower the level: half of the Dice that can be expected.

    Args:
        probability: (H, W) of being the object.
    """
    surest_first = np.sort(probability[probability > _NOWHERE], axis=None)[::-1]
    if len(surest_first) == 0:
        return 0.5
    found = np.cumsum(surest_first, dtype=np.float64)
    expected = 2.0 * found / (np.arange(1, len(found) + 1) + found[-1])
    return float(min(expected.max() / 2.0, 0.5))


def _points(
    prompts: Sequence[SlicePrompt], crops: Sequence[Crop], size: int, device: torch.device
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


def _around(prompt: SlicePrompt, seen_xyxy_px: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(4,) the box around what is known of an object: its box, its points, and what was seen of it before."""
    boxes = [box.reshape(2, 2) for box in (prompt.box_xyxy_px, seen_xyxy_px) if box is not None]
    corners = np.concatenate([*boxes, prompt.points_xy_px[prompt.point_labels == 1]])
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def _inside(hint: NDArray[np.bool_], box_xyxy_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W) the part of a mask that lies in a box."""
    x0, y0, x1, y1 = (round(float(corner)) for corner in box_xyxy_px)
    part = np.zeros_like(hint)
    part[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = hint[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1]
    return part
