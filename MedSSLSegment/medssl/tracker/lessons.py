"""What a step teaches the small tracker: to follow an object through a clip, or to answer prompts on one slice.

Axis letters: B clips, T slices, S side of the crop, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..foundation.nano_inputs import learn_appearance, make_channels, update_appearance
from ..foundation.nano_model import Decoded, NanoModel
from ..foundation.nano_prompts import prior_mask

__all__ = ["coarse_masks", "prompt_loss", "tracking_loss"]

_COARSE_SHARE = 0.5  # of the prompts: a coarse mask and its box
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
        dices.append(_dice(probability, mask[:, step]))
        hits.append(_presence_accuracy(answer, mask[:, step], valid[:, step]))
    return torch.stack(losses).mean(), (float(np.nanmean(dices)), float(np.mean(hits)))


def prompt_loss(
    model: NanoModel, image: Tensor, mask: Tensor, rng: np.random.Generator
) -> tuple[Tensor, tuple[float, float]]:
    """Answer clicks, boxes and coarse masks on single slices, then a correcting click on the answer."""
    image, mask = image.flatten(0, 1), mask.flatten(0, 1)
    there = mask.sum((1, 2, 3)) > 12.0
    image, mask = image[there], mask[there]
    hinted = torch.from_numpy(rng.random(len(mask)) < _COARSE_SHARE).to(mask.device)
    coarse = torch.where(hinted[:, None, None, None], coarse_masks(mask, rng), mask)
    points = _draw_points(coarse, hinted.tolist(), rng)
    guess = prior_mask(*points, model.config.image_size)
    guess = torch.where(hinted[:, None, None, None], coarse, guess)
    losses, dices = [], []
    for _ in range(2):
        appearance = learn_appearance(image, guess)
        encoded = model.encode(make_channels(appearance, image, image, guess))
        answer = model.decode(model.alone(encoded), encoded, points=points)
        losses.append(_answer_loss(answer, mask, torch.ones(len(mask), dtype=torch.bool, device=mask.device)))
        guess = answer.logits.detach().sigmoid()
        points = _correct(points, guess, mask, rng)
        dices.append(_dice(guess, mask))
    return torch.stack(losses).mean(), (float(np.nanmean(dices)), 1.0)


def _answer_loss(answer: Decoded, mask: Tensor, valid: Tensor) -> Tensor:
    """Focal + Dice on both resolutions, cross-entropy on presence, squared error on the quality estimate."""
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
    quality = (answer.quality.float()[:, 0] - both / either.clamp(min=1.0)).square() * present
    total = fine_loss + 0.4 * coarse_loss + 0.5 * presence + 0.2 * quality
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


def _draw_points(mask: Tensor, box_only: Sequence[bool], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(B, 3, 2) x, y and (B, 3) labels: a box, a click inside, or both, sometimes a click outside."""
    count, size = len(mask), mask.shape[-1]
    points = np.zeros((count, 3, 2), np.float32)
    labels = -np.ones((count, 3), np.int32)
    solid = (mask[:, 0] > 0.5).cpu().numpy()
    deep = F.avg_pool2d(mask, 9, 1, 4)[:, 0].cpu().numpy()
    for row in range(count):
        inside = solid[row] if solid[row].any() else deep[row] >= deep[row].max()
        slot = 0
        if box_only[row] or rng.random() < 0.55:
            points[row, :2], labels[row, :2], slot = _loose_box(inside, rng), (2, 3), 2
        if box_only[row]:
            continue
        if slot == 0 or rng.random() < 0.3:
            depth = np.where(inside, deep[row] + rng.uniform(0.0, 0.5, inside.shape), -1.0)
            points[row, slot], labels[row, slot] = np.unravel_index(depth.argmax(), depth.shape)[::-1], 1
            slot += 1
        if slot < 3 and rng.random() < 0.3:
            outside = np.argwhere(~inside)
            points[row, slot], labels[row, slot] = outside[rng.integers(len(outside))][::-1], 0
    xy = torch.from_numpy(points + 0.5).clamp(0, size)
    return xy.to(mask.device), torch.from_numpy(labels).to(mask.device)


def _loose_box(inside: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    corners = np.array([[cols[0], rows[0]], [cols[-1], rows[-1]]], np.float64)
    side = corners[1] - corners[0] + 1.0
    slack = np.abs(rng.normal(0.02, 0.06, (2, 2))) * side
    loose: NDArray[np.float64] = corners + np.array([[-1.0], [1.0]]) * slack
    return loose


def _correct(
    points: tuple[Tensor, Tensor], guess: Tensor, mask: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Put a click where the answer is most wrong, in place of the last point."""
    wrong = F.avg_pool2d(mask - guess, 9, 1, 4)[:, 0].flatten(1)
    place = wrong.abs().argmax(1)
    size = mask.shape[-1]
    xy, labels = points[0].clone(), points[1].clone()
    xy[:, 2, 0], xy[:, 2, 1] = (place % size).float() + 0.5, (place // size).float() + 0.5
    labels[:, 2] = (wrong.gather(1, place[:, None])[:, 0] > 0).int()
    return xy, labels
