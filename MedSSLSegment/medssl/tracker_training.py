"""Trains the small default tracker on labelled, unlabelled and drawn CT; resumable, on the CPU or a GPU.

The tracker runs on its own answers during training, as it will in use: each slice sees the mask it found on the slice
before. A share of the steps teaches prompts on one slice instead: clicks, boxes, and coarse masks to be sharpened. Read
`train_tracker` first.

Axis letters: B clips, T slices, S side of the crop, P points.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpoints import load_into, read_weights, write_checkpoint
from .errors import Cancelled, InputError, ModelError
from .events import Eta, Log, Progress
from .foundation.nano_inputs import learn_appearance, make_channels, update_appearance
from .foundation.nano_model import Decoded, NanoConfig, NanoModel
from .foundation.nano_prompts import prior_mask
from .foundation.runtime import pick_device
from .segmentation import read_segmentation
from .storage import atomic_path
from .tracker_clips import ClipSampler, LabelledVolume, synthesise_ct
from .volume import read_volume

__all__ = ["Metric", "TrackerTrainConfig", "train_tracker"]

_COARSE_SHARE = 0.5  # of the prompts: a coarse mask and its box
_LEAST_COARSE_DICE = 0.3  # of a coarse mask with the truth
_LEAST = {"steps": 1, "batch": 1, "slices": 2, "save_every": 1, "phantoms": 0}


@dataclass(frozen=True, kw_only=True)
class TrackerTrainConfig:
    """How to train the default tracker.

    Raises:
        InputError: a number is out of its range.
    """

    data: Path
    """Folder of cases: each a folder with ct.nii.gz, and label.nii.gz where there are labels."""
    out: Path
    """Run folder: checkpoint.safetensors, resume.pt, events.jsonl, run.json."""
    steps: int = 4000
    """Optimiser steps in all; the learning rate falls over the last quarter."""
    batch: int = 16
    """Clips a step."""
    slices: int = 5
    """Slices of a clip, the reference slice included; 1.6 times as many in the last third."""
    learning_rate: float = 8e-4
    """Peak of AdamW's learning rate."""
    seed: int = 0
    """Seed of everything random."""
    exclude: tuple[str, ...] = ()
    """Case folders never to be read, e.g. held-out patients."""
    pseudo_share: float = 0.25
    """Share of label-free pseudo-objects among the clips, 0 .. 1."""
    prompt_share: float = 0.2
    """Share of the steps that teach prompts on one slice, 0 .. 1; 1 for weights that only answer prompts."""
    phantoms: int = 6
    """Phantoms to add."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    start_from: Path | None = None
    """Weights of a tracker of the same size to adapt, e.g. to a clinic's own cases."""
    save_every: int = 100
    """Steps between two checkpoints."""
    stop_at: int | None = None
    """Stop after this step and leave the run to be resumed; None goes on to the end."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"Training needs {name} of at least {least}, not {getattr(self, name)}.")
        for share in (self.pseudo_share, self.prompt_share):
            if not 0.0 <= share <= 1.0:
                raise InputError(f"A share of pseudo-objects or prompts must lie in 0 .. 1, not {share:g}.")


@dataclass(frozen=True)
class Metric:
    """Loss and Dice on the training clips, averaged since the last report."""

    step: int
    loss: float
    dice: float
    presence_accuracy: float


def train_tracker(
    config: TrackerTrainConfig,
    cancelled: Callable[[], bool] = lambda: False,
    model_config: NanoConfig | None = None,
) -> Iterator[Progress | Metric | Log]:
    """Train, or go on where a run in `config.out` was left.

    Args:
        config: data, run folder and recipe.
        cancelled: asked before each step.
        model_config: size of the model; None for the size that is shipped.

    Yields:
        Log, Progress and Metric as they come.

    Raises:
        InputError: the folder holds no usable case.
        ModelError: the run folder's state or the weights to start from are damaged or of another model.
        Cancelled: `cancelled` said so; the run can be resumed.
    """
    device = pick_device(config.device)
    torch.set_flush_denormal(True)
    config.out.mkdir(parents=True, exist_ok=True)
    data = _read_data(config)
    yield Log(data.description)

    torch.manual_seed(config.seed)
    model = _new_model(model_config or NanoConfig(), config.start_from).to(device)
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(_parameter_groups(model), lr=config.learning_rate, betas=(0.9, 0.98))
    sampler = data.sampler(config.pseudo_share, model.config.image_size)
    first = _resume(config.out, model, average, optimiser)
    _write_run(config, data.description)

    last = config.steps if config.stop_at is None else min(config.steps, config.stop_at)
    eta = Eta(last - first)
    sums: list[tuple[float, float, float]] = []
    for step in range(first, last):
        if cancelled():
            _save(config, model, average, optimiser, step)
            raise Cancelled(f"Training stopped at step {step}; run the same command to go on.")
        rng = np.random.default_rng([config.seed, step])
        torch.manual_seed(config.seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        batch, slices = _clips_at(step, config)
        image, mask, valid = (part.to(device) for part in sampler.batch(rng, batch, slices))
        model.train()
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            if rng.random() < config.prompt_share:
                loss, scores = _prompt_loss(model, image, mask, rng)
            else:
                loss, scores = _tracking_loss(model, image, mask, valid, rng)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        _follow(average, model, min(0.998, (1 + step) / (10 + step)))

        sums.append((float(loss.detach()), *scores))
        done = step + 1
        if done % 25 == 0 or done == last:
            metric = Metric(done, *(float(np.mean(part)) for part in zip(*sums, strict=True)))
            sums.clear()
            _append_event(config.out, metric)
            yield metric
            yield eta.step(done - first, "training the tracker")
        if done % config.save_every == 0 or done == last:
            _save(config, model, average, optimiser, done)


def _new_model(size: NanoConfig, start_from: Path | None) -> NanoModel:
    """Random weights that begin by believing that the object is there, or weights to adapt."""
    model = NanoModel(size)
    nn.init.constant_(model.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 1.0)
    if start_from is not None:
        load_into(model, read_weights(start_from), min_fraction=1.0)
    return model


def _clips_at(step: int, config: TrackerTrainConfig) -> tuple[int, int]:
    """Clips and slices of a step: in the last third fewer and longer clips, about the same number of slices."""
    if step < 0.67 * config.steps:
        return config.batch, config.slices
    slices = round(1.6 * config.slices)
    return max(config.batch * config.slices // slices, 4), slices


# ---------------------------------------------------------------------------------------------------------- losses


def _tracking_loss(
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


def _prompt_loss(
    model: NanoModel, image: Tensor, mask: Tensor, rng: np.random.Generator
) -> tuple[Tensor, tuple[float, float]]:
    """Answer clicks, boxes and coarse masks on single slices, then a correcting click on the answer."""
    image, mask = image.flatten(0, 1), mask.flatten(0, 1)
    there = mask.sum((1, 2, 3)) > 12.0
    image, mask = image[there], mask[there]
    hinted = torch.from_numpy(rng.random(len(mask)) < _COARSE_SHARE).to(mask.device)
    coarse = torch.where(hinted[:, None, None, None], _coarse(mask, rng), mask)
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


def _coarse(mask: Tensor, rng: np.random.Generator) -> Tensor:
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


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True, eq=False)
class _Data:
    """All volumes of a run, in memory."""

    coarse: list[LabelledVolume] = field(default_factory=list)
    """Labelled, of few pixels a slice: many small cases."""
    fine: list[LabelledVolume] = field(default_factory=list)
    """Labelled, of full size: few large cases."""
    unlabelled: list[LabelledVolume] = field(default_factory=list)
    drawn: list[LabelledVolume] = field(default_factory=list)
    """Images drawn for real or phantom labels."""

    @property
    def description(self) -> str:
        """One line for a person."""
        return (
            f"{len(self.coarse) + len(self.fine)} labelled and {len(self.unlabelled)} unlabelled CTs,"
            f" {len(self.drawn)} drawn volumes."
        )

    def sampler(self, pseudo_share: float, size: int) -> ClipSampler:
        """Draws clips from all of them; pseudo-objects from real CT where there is any."""
        groups = [(0.6, self.coarse), (0.12, self.fine), (0.28, self.drawn)]
        real = self.coarse + self.fine + self.unlabelled
        return ClipSampler(groups, real or self.drawn, pseudo_share, size)


def _read_data(config: TrackerTrainConfig) -> _Data:
    if not config.data.is_dir():
        raise InputError(
            f"The data folder {config.data} does not exist; give the folder that holds one folder per case."
        )
    data = _Data()
    rng = np.random.default_rng(config.seed)
    for case in sorted(config.data.iterdir()):
        if case.is_dir() and case.name not in config.exclude:
            try:
                _read_case(case, data, rng)
            except InputError as error:
                raise InputError(f"Case {case.name} cannot be used: {error}") from error
    if not (data.coarse or data.fine or data.unlabelled or data.drawn):
        raise InputError(
            f"No case in {config.data}: a case is a folder with ct.nii.gz, and label.nii.gz where labels exist."
        )
    data.drawn.extend(_phantoms(config))
    return data


def _read_case(case: Path, data: _Data, rng: np.random.Generator) -> None:
    image, label = case / "ct.nii.gz", _label_file(case)
    if image.exists():
        volume = _real(image, label)
        kind = data.unlabelled if label is None else data.coarse if _is_coarse(volume) else data.fine
        kind.append(volume)
    elif label is not None and not (case / "mr.nii.gz").exists():
        data.drawn.extend(_drawn(label, rng) for _ in range(4))


def _is_coarse(volume: LabelledVolume) -> bool:
    _, rows, cols = volume.image.shape
    return bool(rows * cols < 12_000)


def _label_file(case: Path) -> Path | None:
    candidates = (case / "label.nii.gz", case / "auto_lung.nii.gz")
    return next((path for path in candidates if path.exists()), None)


def _real(image: Path, label: Path | None) -> LabelledVolume:
    volume = read_volume(image)
    labels = None if label is None else read_segmentation(label, like=volume).labels_kji
    return LabelledVolume(volume.voxels_kji, labels, volume.spacing_kji_mm)


def _drawn(label: Path, rng: np.random.Generator) -> LabelledVolume:
    truth = read_segmentation(label)
    image = synthesise_ct(truth.labels_kji, truth.spacing_kji_mm, rng)
    return LabelledVolume(image, truth.labels_kji, truth.spacing_kji_mm)


def _phantoms(config: TrackerTrainConfig) -> Iterator[LabelledVolume]:
    from .phantom import phantom_ct

    for number in range(config.phantoms):
        phantom = phantom_ct(seed=1000 + number)
        yield LabelledVolume(
            phantom.volume.voxels_kji, phantom.segmentation.labels_kji, phantom.volume.spacing_kji_mm
        )


# ----------------------------------------------------------------------------------------------- schedule and files


def _schedule(step: int, steps: int) -> float:
    """Warm up over 100 steps, stay, fall to 2 % over the last quarter."""
    warm = min(1.0, (step + 1) / 100)
    fall = min(1.0, max((steps - step) / max(0.25 * steps, 1.0), 0.0))
    return warm * (0.02 + 0.98 * fall)


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)


def _resume(out: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    path = out / "resume.pt"
    if not path.exists():
        return 0
    try:
        state: Mapping[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except Exception as error:  # a damaged archive can raise anything
        raise ModelError(
            f"The training state {path} is damaged or of another model;"
            " delete it to start again, or choose another run folder."
        ) from error


def _save(
    config: TrackerTrainConfig,
    model: NanoModel,
    average: NanoModel,
    optimiser: torch.optim.Optimizer,
    step: int,
) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    with atomic_path(config.out / "resume.pt") as path:
        torch.save(state, path)
    meta = {
        "kind": "nano",
        "config": average.config.to_meta(),
        "step": step,
        "recipe": _recipe(config),
        "excluded": sorted(config.exclude),
    }
    write_checkpoint(config.out / "checkpoint.safetensors", average.state_dict(), meta)


def _recipe(config: TrackerTrainConfig) -> dict[str, Any]:
    """The settings that shape the weights; no paths."""
    local = {"data", "out", "start_from", "exclude", "device", "save_every", "stop_at"}
    return {key: value for key, value in asdict(config).items() if key not in local}


def _write_run(config: TrackerTrainConfig, description: str) -> None:
    run = {"recipe": _recipe(config), "excluded": sorted(config.exclude), "data": description}
    with atomic_path(config.out / "run.json") as path:
        path.write_text(json.dumps(run, indent=1), encoding="utf-8")


def _append_event(out: Path, metric: Metric) -> None:
    with open(out / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(metric)) + "\n")
