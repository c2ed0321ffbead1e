"""What a step teaches the small tracker: to follow an object through a clip, or to answer prompts on one slice.

Axis letters: B clips, T slices, S side of the crop, P points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..foundation.nano_boxes import GUESSES, box_guesses
from ..foundation.nano_inputs import learn_appearance, make_channels, update_appearance
from ..foundation.nano_model import Decoded, NanoModel
from ..foundation.nano_prompts import has_box, heeded_guess, prior_mask
from .prompt_samples import PromptBatch

__all__ = ["coarse_masks", "guessed_in_boxes", "prompt_loss", "tracking_loss"]

_LEAST_COARSE_DICE = 0.3  # of a coarse mask with the truth


def tracking_loss(
    model: NanoModel, image: Tensor, mask: Tensor, valid: Tensor, rng: np.random.Generator
) -> tuple[Tensor, tuple[float, float]]:
    """Follow the object from the reference slice through the clip on the model's own answers."""
    reference = _imperfect(mask[:, 0], rng)
    appearance = learn_appearance(image[:, 0], reference)
    encoded = model.encode(make_channels(appearance, image[:, 0], image[:, 0], reference))
    prompted = model.decode(model.alone(encoded), encoded, mask=reference)
    presence = torch.full((len(image), 1), 10.0, device=image.device)
    memory = model.remember(encoded, reference, presence, prompted.pointer)
    recent: dict[int, dict[str, Any]] = {}
    previous = reference
    losses, dices, hits = [], [], []
    for step in range(1, image.shape[1]):
        channels = make_channels(appearance, image[:, step], image[:, step - 1], previous)
        encoded = model.encode(channels)
        answer = model.decode(model.recall(encoded, step, memory, recent), encoded)
        losses.append(_answer_loss(answer, mask[:, step], valid[:, step]))
        probability = answer.logits.detach().sigmoid() * (answer.presence_logit.detach() > 0)[..., None, None]
        recent[step] = model.remember(encoded, probability, answer.presence_logit, answer.pointer)
        recent.pop(step - model.config.memories, None)
        previous = probability
        appearance = update_appearance(appearance, image[:, step], previous)
        known = valid[:, step]
        dices.append(_dice(probability[known], mask[known, step]) if bool(known.any()) else math.nan)
        hits.append(_presence_accuracy(answer, mask[:, step], valid[:, step]))
    seen = [dice for dice in dices if not math.isnan(dice)]  # none where every object ends at once
    return torch.stack(losses).mean(), (float(np.mean(seen)) if seen else math.nan, float(np.mean(hits)))


def prompt_loss(
    model: NanoModel, batch: PromptBatch, rng: np.random.Generator
) -> tuple[Tensor, tuple[float, float]]:
    """Answer clicks, boxes and coarse masks on single slices; then look again at the answer, half of them with a
    correcting point."""
    image, mask, hinted = batch.image_hu, batch.mask, batch.hinted
    coarse = coarse_masks(mask, rng)
    points = _boxed_in(coarse, (batch.points_xy_px, batch.labels), hinted)
    guess = prior_mask(*points, model.config.image_size)
    guess = torch.where(hinted[:, None, None, None], coarse, guess)
    guess = guessed_in_boxes(guess, image, points, ~hinted & has_box(points[1]), rng)
    valid = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    correcting = torch.zeros_like(valid)
    losses, dices = [], []
    for _ in range(2):
        appearance, guess = heeded_guess(image, guess, points, correcting)
        encoded = model.encode(make_channels(appearance, image, image, guess))
        answer = model.decode(model.alone(encoded), encoded, points=points)
        losses.append(_answer_loss(answer, mask, valid, batch.area))
        found = answer.logits.detach().sigmoid()
        dices.append(_dice(found, mask))
        guess = torch.where(found.amax((1, 2, 3), keepdim=True) > 0.5, (found > 0.5).to(found), guess)
        correcting = torch.from_numpy(rng.random(len(mask)) < 0.5).to(mask.device)
        points = _correct(points, found, mask, correcting)
    return torch.stack(losses).mean(), (dices[0], dices[1])


def _answer_loss(answer: Decoded, mask: Tensor, valid: Tensor, area: Tensor | None = None) -> Tensor:
    """Focal + Dice on both resolutions, cross-entropy on presence, squared error on the quality estimate.

    With the (B,) pixels that whole objects fill, the quality is the IoU with the whole, not with what is seen of it.
    """
    present = mask.sum((1, 2, 3)) > 8.0
    weight = valid.to(mask.dtype)
    coarse = F.interpolate(mask, size=answer.coarse_logits.shape[-2:], mode="area")
    fine_loss = _mask_loss(answer.logits, mask, present)
    coarse_loss = _mask_loss(answer.coarse_logits.float(), coarse, present)
    presence = F.binary_cross_entropy_with_logits(
        answer.presence_logit.float()[:, 0], present.to(mask.dtype), reduction="none"
    )
    with torch.no_grad():
        both = ((answer.logits > 0) & (mask > 0.5)).sum((1, 2, 3)).float()
        either = ((answer.logits > 0) | (mask > 0.5)).sum((1, 2, 3)).float()
        if area is not None:
            either = either + (area - (mask > 0.5).sum((1, 2, 3))).clamp(min=0.0)
    quality = (answer.quality.float()[:, 0] - both / either.clamp(min=1.0)).square() * present
    total = fine_loss + 0.4 * coarse_loss + 0.5 * presence + (0.2 if area is None else 1.0) * quality
    return (total * weight).sum() / weight.sum().clamp(min=1.0)


def _mask_loss(logits: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """(B,) 8 x focal (gamma 1, soft targets) + soft Dice; an absent object weighs a quarter and has no Dice."""
    probability = logits.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = ((probability - target).abs() * cross).mean((1, 2, 3))
    overlap = 2.0 * (probability * target).sum((1, 2, 3)) + 1.0
    dice = 1.0 - overlap / (probability.square().sum((1, 2, 3)) + target.square().sum((1, 2, 3)) + 1.0)
    return torch.where(present, 8.0 * focal + dice, 2.0 * focal)


def _imperfect(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A person's outline: sometimes a little too large, too small or too smooth."""
    if rng.random() < 0.6:
        return mask
    blurred = F.avg_pool2d(mask, 7, 1, 3, count_include_pad=False)
    drawn = (blurred > float(rng.uniform(0.35, 0.65))).to(mask.dtype)
    usable = drawn.sum((1, 2, 3), keepdim=True) > 12.0
    return torch.where(usable, drawn, mask)


def coarse_masks(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """(B, 1, S, S) 0 or 1: masks as a network taught by a few labels finds them, with leaks, gaps and rough outlines.

    The blurred mask is pushed up and down by smooth noise and cut at one half; some lose a side. A mask that little of
    its object is left in stays as it is.
    """
    count, size = len(mask), mask.shape[-1]
    radius = int(rng.choice([size // 28, size // 14, size // 8]))
    soft = _over_window(F.avg_pool2d, mask, radius)
    grain = int(rng.choice([4, 7, 12]))
    noise = torch.from_numpy(rng.standard_normal((count, 1, grain, grain), np.float32))
    noise = F.interpolate(noise, size=(size, size), mode="bicubic")
    strength, bias = rng.uniform(0.05, 0.4, count), rng.normal(0.0, 0.12, count)
    push = _column(strength) * noise + _column(bias)
    angle, cut = rng.uniform(-np.pi, np.pi, count), rng.uniform(-0.1, 0.35, count)
    cut[rng.random(count) < 0.75] = 1.0
    place = (torch.arange(size) + 0.5) / size - 0.5
    across = _column(np.cos(angle)) * place + _column(np.sin(angle)) * place[:, None]
    near = _over_window(F.max_pool2d, mask, 2 * radius) > 0.5
    coarse = (near & (soft + push.to(mask) > 0.5) & (across < _column(cut)).to(mask.device)).to(mask.dtype)
    left = (coarse * mask).sum((1, 2, 3), keepdim=True)
    sizes = coarse.sum((1, 2, 3), keepdim=True) + mask.sum((1, 2, 3), keepdim=True)
    usable = (2.0 * left > _LEAST_COARSE_DICE * sizes) & (left > 12.0)
    return torch.where(usable, coarse, mask)


def _over_window(pool: Callable[..., Tensor], mask: Tensor, radius: int) -> Tensor:
    """Pool over squares of 2 radius + 1 pixels, rows first: a square is as wide as it is high."""
    rows: Tensor = pool(mask, (2 * radius + 1, 1), 1, (radius, 0))
    return pool(rows, (1, 2 * radius + 1), 1, (0, radius))


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]


def _dice(probability: Tensor, target: Tensor) -> float:
    found, true = probability > 0.5, target > 0.5
    size = (found.sum((1, 2, 3)) + true.sum((1, 2, 3))).float()
    dice = 2.0 * (found & true).sum((1, 2, 3)) / size.clamp(min=1.0)
    there = true.sum((1, 2, 3)) > 8
    return float(dice[there].mean()) if bool(there.any()) else float("nan")


def _presence_accuracy(answer: Decoded, mask: Tensor, valid: Tensor) -> float:
    present = mask.sum((1, 2, 3)) > 8.0
    right = (answer.presence_logit[:, 0] > 0) == present
    return float((right & valid).sum() / valid.sum().clamp(min=1))


# --------------------------------------------------------------------------------------------------------- prompts


def _boxed_in(coarse: Tensor, points: tuple[Tensor, Tensor], hinted: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts, those of coarse masks with a box as the box of the coarse mask."""
    xy, labels = points[0].clone(), points[1]
    for row in torch.nonzero(hinted & (labels[:, 0] == 2))[:, 0].tolist():
        across, down = (torch.nonzero((coarse[row, 0] > 0.5).any(axis))[:, 0] for axis in (0, 1))
        xy[row, 0] = torch.stack([across[0], down[0]])
        xy[row, 1] = torch.stack([across[-1], down[-1]]) + 1
    return xy, labels


def guessed_in_boxes(
    guess: Tensor, image: Tensor, points: tuple[Tensor, Tensor], boxed: Tensor, rng: np.random.Generator
) -> Tensor:
    """The guesses, those of boxes drawn from all that are tried at work: the ellipse in half of them."""
    rows = torch.nonzero(boxed)[:, 0]
    if len(rows) == 0:
        return guess
    chosen = torch.from_numpy(np.where(rng.random(len(rows)) < 0.5, 0, rng.integers(1, GUESSES, len(rows))))
    tried = box_guesses(image[rows], points[0][rows], points[1][rows])
    guess = guess.clone()
    guess[rows, 0] = tried[torch.arange(len(rows)), chosen.to(tried.device)]
    return guess


def _correct(
    points: tuple[Tensor, Tensor], found: Tensor, mask: Tensor, correcting: Tensor
) -> tuple[Tensor, Tensor]:
    """Put a click where the answer is most wrong, in place of the last point, on the rows to be corrected."""
    wrong = F.avg_pool2d(mask - found, 9, 1, 4)[:, 0].flatten(1)
    place = wrong.abs().argmax(1)
    size = mask.shape[-1]
    xy, labels = points[0].clone(), points[1].clone()
    here = torch.stack([place % size, place // size], 1).to(xy) + 0.5
    on = (wrong.gather(1, place[:, None])[:, 0] > 0).to(labels)
    xy[:, 2] = torch.where(correcting[:, None], here, xy[:, 2])
    labels[:, 2] = torch.where(correcting, on, labels[:, 2])
    return xy, labels
