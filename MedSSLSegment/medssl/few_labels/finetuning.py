"""Fine-tuning: from a few annotated slices to a network that finds the segments. Read `fit` first.

Everything random derives from (seed, step), so a run that was stopped goes on exactly as if it never had been.

Axis letters: B samples, C channels, N classes (0 is the background), S the spatial axes.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backbones.cpu import LeakyInstanceNorm
from ..datasets.data import IGNORE
from ..datasets.input_contract import InputContract
from ..errors import Cancelled, InputError, ModelError
from ..events import Eta, Progress, never
from ..learning.recipe import Recipe, require_seed
from .annotated_samples import AnnotatedCase, AnnotatedSamples, by_scan, vouched_slices
from .augmentation import Augmentation
from .segmentation_loss import segmentation_loss
from .segmenter import Segmenter
from .sides import is_lateral
from .tiling import ScanPredictor

__all__ = [
    "FinetuneMetric",
    "FinetuneSettings",
    "Fitted",
    "Preview",
    "automatic",
    "fit",
    "measure",
    "predictor_of",
]

_STEPS_OF_ONE_CASE = 250
_RATE = {"convolutions": 1e-3, "transformer": 5e-4}
_BATCH = {2: 12, 3: 2}
_WARMUP = 0.08
_LAYER_DECAY = 0.75
_HEAD_FACTOR = 10.0
"""On the learning rate of the head: what it reads is normalised, so only its own weights can make it sure, and they
have far to go in a short run."""
_CLOSING_FACTOR = 0.3
"""On the learning rate when at last what was held out teaches too."""
_CLIP_NORM = 5.0
_VALIDATIONS = 8
_ENOUGH_SLICES = 5
"""Held out, for their Dice to choose among networks; of fewer it is told, but the last network is kept: chance would
choose."""
_SIZE_MATTERS = (nn.InstanceNorm2d, nn.InstanceNorm3d, LeakyInstanceNorm)
"""These normalise by what is in view: a whole slice with shoulders is another input than the sample around an organ
that the network has learnt from (Dice 0.49 by slices and 0.69 by tiles on such a patient)."""
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How to fine-tune. What is None is set from the number of cases and the network.

    Raises:
        InputError: a number is out of its range.
    """

    steps: int | None = None
    """Optimiser steps; automatic: 250 for one case, 400 for 3, 500 for 5, 1000 for 20, or what `minutes` allow."""
    minutes: float | None = None
    """Budget for the whole run: the number of steps is what is left for them, from a measured step."""
    batch: int | None = None
    """Samples a step; automatic: 12 slices or 2 blocks."""
    loss: Literal["dice", "dice+ce"] = "dice+ce"
    """Dice, or Dice and cross-entropy."""
    learning_rate: float | None = None
    """Peak of AdamW's; automatic: 0.001, for transformers 0.0005."""
    weight_decay: float = 0.01
    """Not applied to biases and norms."""
    layer_decay: float | None = None
    """Factor on the learning rate per block of a transformer, from the last to the first; automatic: 0.75 when it
    was pre-trained, else 1."""
    augmentation: float | None = None
    """Strength, 0 for none; automatic: 1 for few cases, 0.6 for 20."""
    organ_share: float = 0.6
    """Share of the samples drawn around a segment, 0 .. 1."""
    validations: int = _VALIDATIONS
    """How often to measure what is held out; the best network is kept."""
    patience: int = 4
    """Stop after so many validations without a better one; 0 goes on to the end."""
    closing: float = 0.25
    """Steps that follow at the end, as a share of the others, in which what was measured on teaches too; 0 for none.
    The Dice that is told stays the one from before."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "minutes": 1e-3, "batch": 1, "learning_rate": 1e-12, "layer_decay": 1e-3}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(
                    f"The {name.replace('_', ' ')} of fine-tuning must be above 0, not {value:g}."
                )
        require_seed(self.seed)
        if self.validations < 1 or not all(n >= 0 for n in (self.patience, self.weight_decay, self.closing)):
            raise InputError(
                "Fine-tuning needs one validation or more, a patience, weight decay and closing of 0 or more."
            )
        if not 0.0 <= self.organ_share <= 1.0 or not (self.augmentation or 0.0) >= 0.0:
            raise InputError("The share of organ samples lies in 0 .. 1 and the augmentation is 0 or more.")

    @property
    def closing_steps(self) -> int:
        """Steps that follow at the end, where there is something held out that can teach in them."""
        return round(self.closing * (self.steps or 0))


@dataclass(frozen=True)
class FinetuneMetric:
    """Where training stands after a validation."""

    step: int
    loss: float
    """Mean since the last report."""
    dice: Mapping[str, float]
    """Per segment that what is held out shows, 0 .. 1; empty when nothing is."""
    best: bool
    """Whether no network so far was better."""

    @property
    def mean_dice(self) -> float:
        """Over the segments; 0 when nothing is held out."""
        return float(np.mean(list(self.dice.values()))) if self.dice else 0.0


@dataclass(frozen=True, eq=False)
class Preview:
    """One slice of what is held out, as the network sees it now."""

    scan: str
    k: int
    """Slice of the prepared grid."""
    labels: NDArray[np.uint8]
    """(J, I) class indices."""


@dataclass
class Fitted:
    """State of a run: what `fit` needs to go on, and its result."""

    step: int = 0
    """Optimiser steps done."""
    best_step: int = -1
    """Step of the network that is kept; -1 before the first validation."""
    best_dice: dict[str, float] | None = None
    """Of that network, per segment."""
    since_best: int = 0
    """Validations since."""
    stopped: bool = False
    """Whether it ended early."""
    closing_step: int = -1
    """Optimiser steps done with everything as teachers; -1 before they begin."""
    unmeasured: bool = False
    """Whether training was stopped in the middle of the validation that belongs to `step`; it comes first then."""
    losses: tuple[float, ...] = ()
    """Since the last report."""
    network: dict[str, Tensor] | None = None
    optimiser: dict[str, Any] | None = None
    best_network: dict[str, Tensor] | None = None

    @property
    def best_mean(self) -> float:
        """Mean Dice of the network that is kept; -1 before the first validation."""
        return float(np.mean(list(self.best_dice.values()))) if self.best_dice else -1.0


def fit(
    network: Segmenter,
    learn_from: Sequence[AnnotatedCase],
    measure_on: Sequence[AnnotatedCase],
    contract: InputContract,
    segments: Sequence[str],
    settings: FinetuneSettings,
    *,
    join: Sequence[AnnotatedCase] = (),
    state: Fitted | None = None,
    device: torch.device | str = "cpu",
    on_checkpoint: Callable[[Fitted], None] = lambda state: None,
    save_every_s: float = 300.0,
    cancelled: Callable[[], bool] = never,
) -> Iterator[Progress | FinetuneMetric | Preview]:
    """Train a network; when the iterator ends it holds the best weights, after the closing steps where there are any.

    Which weights are best, the Dice on what is held out says; where that is fewer than five slices, they are the last.

    Args:
        network: random weights, or an encoder's.
        learn_from: cases to draw samples from.
        measure_on: held out; empty to keep the last network.
        contract: the network's input.
        segments: names, in the order of the network's channels.
        settings: without None, as `automatic` gives them.
        join: cases that teach too in the closing steps, when nothing is measured any more; empty for no such steps.
        state: to go on from; changed in place. None for a new run.
        device: to train on.
        on_checkpoint: gets the state after each validation, when training is cancelled, and in between.
        save_every_s: longest time between two such states; so much is lost at most when the process is killed.
        cancelled: asked before each step and, while measuring, between batches of slices.

    Yields:
        Progress after every step; FinetuneMetric and Preview after every validation.

    Raises:
        InputError: nothing is annotated.
        ModelError: the loss is no longer a number.
        Cancelled: `cancelled` said so, after `on_checkpoint`.
    """
    state = Fitted() if state is None else state
    steps = settings.steps or 1
    network.to(device)
    teaching = _Teaching.of(network, learn_from, contract, segments, settings, device)
    if state.network is not None and state.optimiser is not None:
        network.load_state_dict(state.network)
        teaching.optimiser.load_state_dict(state.optimiser)
    recipe = _recipe(settings, steps, 1.0)
    slices = sum(len(vouched_slices(parts)) for parts in by_scan(measure_on).values())
    decides = slices >= _ENOUGH_SLICES
    every = max(1, math.ceil(steps / settings.validations))

    def stop(step: int) -> NoReturn:
        _keep_state(state, network, teaching.optimiser, step)
        on_checkpoint(state)
        raise Cancelled(f"Training was stopped at step {step}; it can be resumed.")

    def validate(step: int) -> Iterator[FinetuneMetric | Preview]:
        state.unmeasured = True
        try:
            yield from _validate(
                state, network, measure_on, contract, segments, settings, step, decides, device, cancelled
            )
        except Cancelled:
            stop(step)

    if state.unmeasured:
        yield from validate(state.step)
        on_checkpoint(state)
    closing_steps = settings.closing_steps if join else 0
    eta = Eta(steps - state.step + closing_steps - max(state.closing_step, 0))
    first, saved_at = state.step, time.monotonic()
    for step in range(first, steps):
        if state.stopped:
            break
        if cancelled():
            stop(step)
        state.losses = (*state.losses, teaching.descend(step, recipe.learning_rate_at(step)))
        yield eta.step(step + 1 - first, "fine-tuning")
        if (step + 1) % every == 0 or step + 1 == steps:
            yield from validate(step + 1)
        elif time.monotonic() - saved_at < save_every_s:
            continue
        _keep_state(state, network, teaching.optimiser, step + 1)
        on_checkpoint(state)
        saved_at = time.monotonic()
    if state.best_network is not None and state.closing_step < 0:
        network.load_state_dict(state.best_network)
    if closing_steps:
        eta.total -= steps - state.step
        everything = _Teaching.of(network, join, contract, segments, settings, device)
        for done in _close(everything, state, closing_steps, on_checkpoint, save_every_s, cancelled):
            yield eta.step(state.step - first + done, "learning from all cases")
    network.eval()


def _close(
    teaching: _Teaching,
    state: Fitted,
    steps: int,
    on_checkpoint: Callable[[Fitted], None],
    save_every_s: float,
    cancelled: Callable[[], bool],
) -> Iterator[int]:
    """The steps in which everything teaches, at a low rate; yields how many this call has done."""

    def keep(closing_step: int) -> None:
        state.closing_step = closing_step
        _keep_state(state, teaching.network, teaching.optimiser, state.step)
        on_checkpoint(state)

    if state.closing_step >= 0 and state.optimiser is not None:
        teaching.optimiser.load_state_dict(state.optimiser)
    first, saved_at = max(state.closing_step, 0), time.monotonic()
    recipe = _recipe(teaching.settings, steps, _CLOSING_FACTOR)
    for step in range(first, steps):
        if cancelled():
            keep(step)
            raise Cancelled(f"Training was stopped {steps - step} steps before its end; it can be resumed.")
        teaching.descend((teaching.settings.steps or 1) + step, recipe.learning_rate_at(step))
        yield step + 1 - first
        if step + 1 == steps or time.monotonic() - saved_at >= save_every_s:
            keep(step + 1)
            saved_at = time.monotonic()


@dataclass
class _Teaching:
    """A network, what it learns from and how: one step after the other."""

    network: Segmenter
    samples: AnnotatedSamples
    optimiser: torch.optim.AdamW
    augment: Augmentation
    settings: FinetuneSettings
    device: torch.device | str

    @classmethod
    def of(
        cls,
        network: Segmenter,
        cases: Sequence[AnnotatedCase],
        contract: InputContract,
        segments: Sequence[str],
        settings: FinetuneSettings,
        device: torch.device | str,
    ) -> _Teaching:
        """Begin with a new optimiser.

        Raises:
            InputError: nothing is annotated, or the contract's size does not suit the network.
        """
        encoder = network.backbone.encoder
        samples = AnnotatedSamples(cases, contract, encoder.divisor, settings.organ_share)
        encoder.require_size(samples.size)
        augment = Augmentation(
            strength=settings.augmentation or 0.0,
            flip_left_right=not is_lateral(segments) and bool(settings.augmentation),
        )
        optimiser = torch.optim.AdamW(parameter_groups(network, settings), betas=(0.9, 0.99))
        return cls(network, samples, optimiser, augment, settings, device)

    def descend(self, step: int, rate: float) -> float:
        """Take a step; its loss. What is drawn depends on the seed and the step alone.

        Raises:
            ModelError: the loss is no longer a number.
        """
        seed, batch = self.settings.seed, self.settings.batch or 1
        drawn = self.samples.draw(np.random.default_rng([seed, step]), batch)
        torch.manual_seed(seed * 1_000_003 + step)  # dropout
        randomness = torch.Generator(self.device).manual_seed((seed << 32) + step)
        contract = self.samples.contract
        spacing = self.samples.cases[0].scan.spacing_kji_mm[-contract.spatial_dims :]
        images, labels = self.augment(
            drawn.images.to(self.device), drawn.labels.to(self.device), self.samples.size, randomness, spacing
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.network.train()
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            logits = self.network(images)
        loss = segmentation_loss(logits, labels, drawn.known.to(self.device), self.settings.loss)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP_NORM)
        self.optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(f"The loss is no longer a number at step {step}; lower the learning rate.")
        return value


def _recipe(settings: FinetuneSettings, steps: int, factor: float) -> Recipe:
    """Learning rates of so many steps, which rise to the settings' times a factor and fall to nothing."""
    return Recipe(
        epochs=steps,
        batch=settings.batch or 1,
        learning_rate=factor * (settings.learning_rate or 1e-3),
        warmup_epochs=_WARMUP * steps,
    )


def automatic(
    settings: FinetuneSettings,
    network: Segmenter,
    cases: int,
    pretrained: bool,
) -> FinetuneSettings:
    """Fill in what is None, without regard to a budget in minutes; see `time_budget.Pace.within`.

    Args:
        settings: what the user asked for.
        network: convolutions and transformers want different learning rates.
        cases: number of annotated cases.
        pretrained: whether the encoder was.
    """
    kind = "transformer" if _depth(network) else "convolutions"
    return replace(
        settings,
        steps=settings.steps or round(_STEPS_OF_ONE_CASE * cases**0.45 / 10) * 10,
        batch=settings.batch or _BATCH[network.backbone.spatial_dims],
        learning_rate=settings.learning_rate or _RATE[kind],
        layer_decay=settings.layer_decay or (_LAYER_DECAY if pretrained and _depth(network) else 1.0),
        augmentation=float(np.clip(1.1 - 0.025 * cases, 0.6, 1.0))
        if settings.augmentation is None
        else settings.augmentation,
    )


def parameter_groups(network: Segmenter, settings: FinetuneSettings) -> list[dict[str, Any]]:
    """Groups for the optimiser, with a "factor" on the learning rate: layer decay, and no decay on biases and norms."""
    depth, layer_decay = _depth(network), settings.layer_decay or 1.0
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            head = _HEAD_FACTOR if name.startswith("head.") else 1.0
            key = (head * layer_decay ** _layers_above(name, depth), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "factor": factor, "weight_decay": settings.weight_decay if decays else 0.0}
        for (factor, decays), members in groups.items()
    ]


def predictor_of(
    network: Segmenter, contract: InputContract, device: torch.device | str = "cpu"
) -> ScanPredictor:
    """How a segmentation network is shown whole scans."""

    def answer(images: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            logits = network(images)
        probabilities: Tensor = logits.float().softmax(1)
        return probabilities

    encoder = network.backbone.encoder
    return ScanPredictor(
        answer=answer,
        contract=contract,
        classes=network.head.out_channels,
        divisor=encoder.divisor,
        fixed_size=encoder.fixed_size or any(isinstance(m, _SIZE_MATTERS) for m in network.modules()),
        device=device,
    )


def measure(
    network: Segmenter,
    cases: Sequence[AnnotatedCase],
    contract: InputContract,
    segments: Sequence[str],
    device: torch.device | str = "cpu",
    cancelled: Callable[[], bool] = never,
) -> tuple[dict[str, float], Preview | None]:
    """Dice per segment, each scan that shows it counting once, over the voxels that somebody vouched for.

    Returns:
        Dice by segment, of those that any case shows, and the slice of the first scan that shows most of them.
    """
    network.eval()
    predictor = predictor_of(network, contract, device)
    scores: dict[str, list[float]] = {}
    preview = None
    for parts in by_scan(cases).values():
        found = np.full(parts[0].labels.shape, IGNORE, np.uint8)
        wanted = vouched_slices(parts)
        for slab in predictor.slabs(parts[0].image, parts[0].scan.stats, wanted=wanted, cancelled=cancelled):
            found[slab.first : slab.stop] = slab.probabilities.argmax(0)
        for label, name in enumerate(segments, start=1):
            if any(part.known[label] and label in part.shown for part in parts):
                scores.setdefault(name, []).append(_dice(parts, found, label))
        if preview is None:
            shown = sum(((part.labels > 0) & (part.labels != IGNORE)).sum(axis=(1, 2)) for part in parts)
            k = int(np.argmax(shown))
            preview = Preview(parts[0].scan.name, k, found[k])
    return {name: float(np.mean(values)) for name, values in scores.items()}, preview


def _dice(parts: Sequence[AnnotatedCase], found: NDArray[np.uint8], label: int) -> float:
    """Of one segment on a scan that shows it, over the parts that know it."""
    overlap = size = 0
    for part in parts:
        if part.known[label]:
            a, b = (found == label) & (part.labels != IGNORE), part.labels == label
            overlap += int(np.count_nonzero(a & b))
            size += int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * overlap / size


def step_seconds(
    network: Segmenter,
    cases: Sequence[AnnotatedCase],
    contract: InputContract,
    segments: Sequence[str],
    settings: FinetuneSettings,
    device: torch.device | str = "cpu",
) -> float:
    """Time of a training step, measured on a copy of the network; two steps, of which the second counts."""
    times = []
    run = fit(
        copy.deepcopy(network), cases, (), contract, segments, replace(settings, steps=3, validations=1),
        device=device,
    )  # fmt: skip
    for event in run:
        if isinstance(event, Progress):
            times.append(time.perf_counter())
    return min(b - a for a, b in itertools.pairwise(times))


def _validate(
    state: Fitted,
    network: Segmenter,
    measure_on: Sequence[AnnotatedCase],
    contract: InputContract,
    segments: Sequence[str],
    settings: FinetuneSettings,
    step: int,
    decides: bool,
    device: torch.device | str,
    cancelled: Callable[[], bool],
) -> Iterator[FinetuneMetric | Preview]:
    """Measure, and keep the network if none was better so far, or if what was measured does not decide."""
    dice, preview = measure(network, measure_on, contract, segments, device, cancelled)
    state.unmeasured = False
    mean = float(np.mean(list(dice.values()))) if dice else 0.0
    state.since_best = 0 if mean > state.best_mean or not decides else state.since_best + 1
    state.stopped = 0 < settings.patience <= state.since_best
    best = mean >= state.best_mean or not decides
    if best:
        state.best_step, state.best_dice = step, dice
        state.best_network = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    yield FinetuneMetric(step, float(np.mean(state.losses)), dice, best)
    state.losses = ()
    if preview is not None:
        yield preview


def _keep_state(state: Fitted, network: Segmenter, optimiser: torch.optim.Optimizer, step: int) -> None:
    state.step = step
    state.network = copy.deepcopy(network.state_dict())
    state.optimiser = copy.deepcopy(optimiser.state_dict())


def _depth(network: Segmenter) -> int:
    """Blocks of a plain transformer; 0 for anything else."""
    numbers = [
        int(match[1])
        for name, _ in network.backbone.encoder.named_parameters()
        if (match := _BLOCK.search(name))
    ]
    attends = any(".attn." in name for name, _ in network.backbone.encoder.named_parameters())
    return max(numbers) + 1 if numbers and attends else 0


def _layers_above(name: str, depth: int) -> int:
    """Blocks between a weight and the end of the encoder; 0 outside it."""
    prefix = "backbone.encoder."
    if not depth or not name.startswith(prefix):
        return 0
    match = _BLOCK.search(name)
    if match:
        return depth - int(match[1])
    return 1 if name.startswith(prefix + "norm") else depth + 1
